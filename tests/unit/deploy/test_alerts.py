"""The alerts: each is tested, owned, explained, and asks for metrics that exist."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOKS = ROOT / "deploy" / "runbooks"

EXPECTED = {
    "ConsentryAllowedWhileNotFresh", "ConsentryBundleOld", "ConsentryControlNotUnderstood", "ConsentryDeadMan",
    "ConsentryEventIdReused", "ConsentryFrontierAbsent", "ConsentryFrontierStale", "ConsentryGatewayBulkLines",
    "ConsentryGatewayControlsStale",
    "ConsentryGatewayErrors", "ConsentryGatewayRefusals", "ConsentryGatewaySlow",
    "ConsentryGatewayWaiting", "ConsentryPartitionTainted", "ConsentryPurgeOverdue", "ConsentryQuarantine",
    "ConsentryRecordsDiverged", "ConsentryRegressionNotHealed",
    "ConsentryTableGenerationChanged", "ConsentryTableRefusals", "ConsentryTargetDown", "ConsentryTrainerStale",
}  # fmt: skip
SEVERITIES = {"page", "ticket", "deadman"}
OWNERS = {"sre", "privacy", "training"}
ANNOTATIONS = {"summary", "meaning", "first_step", "runbook_url"}
CASES = {"firing", "not firing", "series absent"}
# A dead man's switch that is silent proves that Prometheus is dead, and a dead Prometheus runs no
# test.
WITHOUT_CASE = {("ConsentryDeadMan", "not firing")}
RUNBOOK_PARTS = [
    "What it means",
    "Is anyone wrongly included or excluded now",
    "First step",
    "How to end it",
    "How to prove it ended",
]
METRIC = re.compile(r"\bconsentry_[a-z_]+")
FOREIGN_METRICS = {"up", "ALERTS"}
SELECTOR = re.compile(r"\b(consentry_[a-z_]+)\{([^}]*)\}")
FIRST_STEP = re.compile(r"## First step\n.*?```sh\n(?P<command>[^\n]+)\n```", re.DOTALL)
QUERY = re.compile(r"^    (?P<query>\S.*)$", re.MULTILINE)

Rule = dict[str, Any]


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe", pure=True).load(path)
    return loaded


def alerts() -> Iterator[tuple[str, Rule]]:
    """Each alert with the name of its file."""
    for path in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in load(path)["groups"]:
            for rule in group["rules"]:
                yield path.stem, rule


def by_name() -> dict[str, Rule]:
    return {rule["alert"]: rule for _, rule in alerts()}


def rule_complaints(rule: Rule) -> list[str]:
    """What whoever is woken would miss."""
    labels, annotations = rule.get("labels", {}), rule.get("annotations", {})
    complaints = (
        [] if labels.get("severity") in SEVERITIES else [f"severity {labels.get('severity')}"]
    )
    complaints += [] if labels.get("owner") in OWNERS else [f"owner {labels.get('owner')}"]
    complaints += [
        f"annotation {name} is missing" for name in sorted(ANNOTATIONS - annotations.keys())
    ]
    complaints += [
        f"annotation {name} has no place" for name in sorted(annotations.keys() - ANNOTATIONS)
    ]
    if annotations.get("runbook_url") != f"deploy/runbooks/{rule['alert']}.md":
        complaints.append(f"runbook_url {annotations.get('runbook_url')}")
    return complaints


def runbook_complaints(rule: Rule, text: str) -> list[str]:
    """Where a runbook leaves its five parts, or says something else than its alert."""
    complaints = (
        []
        if text.startswith(f"# {rule['alert']}\n")
        else ["the title is not the name of the alert"]
    )
    parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
    if parts != RUNBOOK_PARTS:
        complaints.append(f"the parts are {parts}")
    first_step = FIRST_STEP.search(text)
    if text.count("```sh") != 1 or first_step is None:
        complaints.append("the first step is not one command")
    elif first_step["command"] != rule["annotations"]["first_step"]:
        complaints.append(
            f"the alert says {rule['annotations']['first_step']}, the runbook "
            f"{first_step['command']}"
        )
    if "wrongly" not in text.partition(RUNBOOK_PARTS[1])[2].lower():
        complaints.append("nobody learns who is wrongly included or excluded")
    return complaints


def metric_complaints(query: str, metrics: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The metrics and labels that a query asks for and nobody exports."""
    complaints = []
    for name in METRIC.findall(query):
        if base_name(name) not in metrics:
            complaints.append(f"{name} is exported by nobody")
    for name, matchers in SELECTOR.findall(query):
        labels = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)
        known = {*metrics.get(base_name(name), ()), "job", "instance", "le"}
        complaints += [f"{name} has no label {label}" for label in labels if label not in known]
    return complaints


def base_name(name: str) -> str:
    """The name under which a metric is declared: a histogram is asked for by its buckets, count or
    sum.
    """
    return re.sub(
        r"_seconds_(?:bucket|count|sum)$",
        "_seconds",
        re.sub(r"_events_(?:bucket|count|sum)$", "_events", name),
    )


def command_complaints(command: str) -> list[str]:
    """Where a first step would fail at whoever types it."""
    words = command.split()
    services = load(ROOT / "docker-compose.yml")["services"]
    if words[:2] != ["docker", "compose"] or words[2] not in {
        "exec",
        "logs",
        "ps",
        "restart",
        "stop",
    }:
        return [f"not a command of the stack: {command}"]
    names = [
        word
        for word in words[3:]
        if not word.startswith("-") and not re.fullmatch(r"\d+[mh]", word)
    ]
    if words[2] == "exec":
        names = names[:1]
    return [f"no service {name}" for name in names if name not in services]


class TestRules:
    def test_these_alerts_exist(self) -> None:
        """An alert that got lost in a merge is a silence that nobody hears."""
        names = [rule["alert"] for _, rule in alerts()]

        assert sorted(names) == sorted(EXPECTED)

    @pytest.mark.parametrize("name", sorted(EXPECTED))
    def test_each_alert_says_how_bad_whose_and_what_to_do(self, name: str) -> None:
        """Whoever is woken at night has to know within one line whether a member is concerned."""
        rule = by_name()[name]

        assert rule_complaints(rule) == []
        assert command_complaints(rule["annotations"]["first_step"]) == []

    @pytest.mark.parametrize("name", sorted(EXPECTED))
    def test_each_alert_has_a_runbook_of_five_parts(self, name: str) -> None:
        """Nobody invents well at three in the morning."""
        text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")

        assert runbook_complaints(by_name()[name], text) == []

    def test_no_runbook_is_left_without_an_alert(self) -> None:
        """A runbook for an alert that is gone sends people the wrong way."""
        assert {path.stem for path in RUNBOOKS.iterdir()} == EXPECTED

    def test_each_alert_is_tested_firing_quiet_and_without_its_series(self) -> None:
        """An alert that was never seen to fire is a hope, and one that fires for nothing is soon
        ignored.
        """
        missing = []
        for stem, rule in alerts():
            tested = {
                test["name"]: test
                for test in load(PROMETHEUS / "tests" / f"{stem}_test.yml")["tests"]
            }
            for case in sorted(CASES):
                wanted = f"{rule['alert']}: {case}"
                if (rule["alert"], case) not in WITHOUT_CASE and wanted not in tested:
                    missing.append(wanted)
                for check in tested.get(wanted, {}).get("alert_rule_test", []):
                    assert check["alertname"] == rule["alert"], wanted

        assert missing == []

    @pytest.mark.parametrize("name", sorted(EXPECTED - {"ConsentryDeadMan"}))
    def test_a_case_that_is_called_firing_expects_the_alert(self, name: str) -> None:
        """A test that expects nothing passes for every rule, the broken ones included."""
        tests = [
            test for path in (PROMETHEUS / "tests").glob("*.yml") for test in load(path)["tests"]
        ]
        checks = {test["name"]: test["alert_rule_test"] for test in tests}

        assert any(check.get("exp_alerts") for check in checks[f"{name}: firing"])
        assert not any(check.get("exp_alerts") for check in checks[f"{name}: not firing"])


class TestMetrics:
    def test_every_metric_of_a_rule_or_runbook_is_exported(self) -> None:
        """A rule about a metric with another name never fires, and looks like peace."""
        from consentry.ops.metrics import METRICS

        queries = {rule["alert"]: rule["expr"] for _, rule in alerts()}
        for path in RUNBOOKS.iterdir():
            queries[path.name] = path.read_text(encoding="utf-8")
        found = {name: metric_complaints(query, METRICS) for name, query in queries.items()}

        assert {name: complaints for name, complaints in found.items() if complaints} == {}

    def test_every_rule_asks_for_something(self) -> None:
        """Hurt when this breaks: whoever trusts the test above, which finds nothing wrong in an
        empty rule.
        """
        for _, rule in alerts():
            words = set(re.findall(r"[A-Za-z_]+", rule["expr"]))
            assert (
                METRIC.search(rule["expr"])
                or words & FOREIGN_METRICS
                or rule["alert"] == "ConsentryDeadMan"
            )

    def test_an_unknown_metric_or_label_is_noticed(self) -> None:
        """A rule that cannot fail protects nobody."""
        metrics = {"consentry_a_total": ("reason",), "consentry_b_seconds": ()}

        assert metric_complaints('consentry_a_total{reason="x",job="y"}', metrics) == []
        assert metric_complaints("rate(consentry_b_seconds_bucket[5m])", metrics) == []
        assert metric_complaints("consentry_c > 0", metrics) == [
            "consentry_c is exported by nobody"
        ]
        assert metric_complaints('consentry_a_total{cause="x"}', metrics) == [
            "consentry_a_total has no label cause"
        ]


class TestTheGateway:
    def test_the_routes_that_have_to_be_fast_are_routes_that_take_what_members_say(self) -> None:
        """A route that was renamed would be slow unseen: its old name has no requests, which looks
        like peace.
        """
        from consentry.gateway.app import build_app

        expression = by_name()["ConsentryGatewaySlow"]["expr"]
        found = re.search(r'route=~"/v1/\(([^)]+)\)"', expression)
        assert found is not None
        posts = {
            path
            for path, methods in build_app(None).openapi()["paths"].items()
            if "post" in methods
        }

        assert {f"/v1/{name}" for name in found[1].split("|")} <= posts

    def test_waiting_is_told_long_before_the_queue_is_full(self) -> None:
        """A bound above the queue's own would never be passed, and the first sign would be refused
        opt-outs.
        """
        from consentry.kafka.sender import QUEUE_MESSAGES

        bound = int(by_name()["ConsentryGatewayWaiting"]["expr"].rpartition(">")[2])

        assert bound * 10 == QUEUE_MESSAGES, (
            "the alert and its runbook say that ten times as many are too many"
        )

    def test_every_job_is_watched_for_silence(self) -> None:
        """A service that is scraped and not watched may be dead for weeks."""
        expression = by_name()["ConsentryTargetDown"]["expr"]
        jobs = [job["job_name"] for job in load(PROMETHEUS / "prometheus.yml")["scrape_configs"]]
        pattern = re.search(r'job=~"([^"]+)"', expression)

        assert pattern is not None
        assert [job for job in jobs if not re.fullmatch(pattern[1], job)] == []
        assert [job for job in jobs if f'absent(up{{job="{job}"}})' not in expression] == []


class TestTheChecks:
    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            (lambda rule: rule["labels"].pop("severity"), "severity None"),
            (lambda rule: rule["labels"].update(owner="nobody"), "owner nobody"),
            (lambda rule: rule["annotations"].pop("meaning"), "annotation meaning is missing"),
            (lambda rule: rule["annotations"].update(hint=""), "annotation hint has no place"),
            (lambda rule: rule["annotations"].update(runbook_url="x"), "runbook_url x"),
        ],
    )
    def test_an_alert_that_says_too_little_is_noticed(
        self, change: Callable[[Rule], object], complaint: str
    ) -> None:
        """A rule that cannot fail protects nobody."""
        rule = copy.deepcopy(by_name()["ConsentryFrontierStale"])
        change(rule)

        assert rule_complaints(rule) == [complaint]

    def test_a_runbook_that_leaves_its_form_is_noticed(self) -> None:
        """A rule that cannot fail protects nobody."""
        rule = by_name()["ConsentryFrontierStale"]
        text = (RUNBOOKS / "ConsentryFrontierStale.md").read_text(encoding="utf-8")

        assert len(runbook_complaints(rule, text.replace("## How to end it\n", ""))) == 1
        assert len(runbook_complaints(rule, text.replace("--since 15m", "--since 16m"))) == 1
        assert (
            len(runbook_complaints(rule, text.replace("# ConsentryFrontierStale", "# Stale"))) == 1
        )

    def test_a_first_step_that_cannot_be_typed_is_noticed(self) -> None:
        """A rule that cannot fail protects nobody."""
        assert command_complaints("docker compose ps") == []
        assert command_complaints("docker compose logs processr") == ["no service processr"]
        assert command_complaints("rm -rf /") == ["not a command of the stack: rm -rf /"]


def test_the_queries_of_a_runbook_are_found() -> None:
    """Hurt when this breaks: whoever trusts that each runbook tells how to prove the end."""
    for name in EXPECTED:
        _, _, proof = (
            (RUNBOOKS / f"{name}.md")
            .read_text(encoding="utf-8")
            .partition(f"## {RUNBOOK_PARTS[-1]}\n")
        )
        assert QUERY.findall(proof), name
