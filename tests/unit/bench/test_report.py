"""Results are read by people and compared by machines: their shape is a promise, and their
decisions is no test.
"""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from bench import __main__ as command
from bench.figures import CannotMeasure
from bench.latency import make_plan, read_journal, summary
from bench.report import document, machine, packages, show, write
from bench.rules import RuleSizes
from bench.rules import summary as rules_summary
from bench.throughput import Run
from bench.throughput import summary as throughput_summary
from rich.console import Console

from consentry.domain.events import event_tag

START = 1_700_000_000_000_000
AT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


def numbers(*names: str) -> dict[str, Any]:
    """The schema of an object that has exactly these numbers."""
    properties = {name: {"type": "number", "minimum": 0} for name in names}
    return {
        "type": "object",
        "properties": properties,
        "required": list(names),
        "additionalProperties": False,
    }


DISTRIBUTION = numbers("count", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms")
SPREAD = numbers("median", "low", "high", "repeats")
CPU = {
    "type": "object",
    "additionalProperties": {"type": "number"},
    "required": ["worker", "redis", "broker"],
}
PEER = {
    "type": "object",
    "required": ["events", "events_per_second", "cpu_seconds_per_million"],
    "properties": {
        "events": {"type": "integer", "minimum": 1},
        "events_per_second": SPREAD,
        "cpu_seconds_per_million": CPU,
    },
}
RATES = (
    *(
        "fold_events_per_second",
        "decide_per_second",
        "decide_cold_micros",
        "decide_warm_micros",
        "extend_micros",
    ),
    *("table_cold_rows_per_second", "table_warm_rows_per_second", "naive_rows_per_second"),
)
RULES = {
    **{name: SPREAD for name in RATES},
    **{name: {"type": "number", "minimum": 0} for name in ("ratio_cold", "ratio_warm")},
    "sizes": numbers(
        "histories", "questions", "rows", "members", "controls", "controls_many", "opt_outs"
    ),
}
SCHEMA = {
    "type": "object",
    "required": [
        "measured_at",
        "machine",
        "versions",
        "settings",
        "rules",
        "throughput",
        "latency",
        "ok",
    ],
    "additionalProperties": False,
    "properties": {
        "measured_at": {"type": "string"},
        "machine": {
            "type": "object",
            "required": ["cpus", "model", "python", "platform", "load_1_minute"],
        },
        "versions": {"type": "object"},
        "settings": {"type": "object"},
        "rules": {
            "type": "object",
            "required": list(RULES),
            "properties": RULES,
            "additionalProperties": False,
        },
        "throughput": {
            "type": "object",
            "required": ["ours", "naive", "ratio"],
            "properties": {"ours": PEER, "naive": PEER, "ratio": {"type": "number"}},
        },
        "latency": {
            "type": "object",
            "required": ["event_to_trainer", "pause_to_trainer", "generator_lateness", "rate"],
            "properties": {
                name: DISTRIBUTION
                for name in ("event_to_trainer", "pause_to_trainer", "generator_lateness")
            },
        },
        "ok": {
            "type": "object",
            "required": ["table_ratio_at_least_50", "ratio_at_least_10", "p99_at_most_50_ms"],
            "additionalProperties": {"type": "boolean"},
        },
    },
}


def rules(warm: float = 80.0) -> dict[str, Any]:
    """What is told of the rules where a table was so many times as quick as its loop."""
    run = dict.fromkeys(RATES, 7.0) | {
        "naive_rows_per_second": 1000.0,
        "table_cold_rows_per_second": 20_000.0,
    }
    return rules_summary(
        [run | {"table_warm_rows_per_second": warm * 1000}], RuleSizes(1, 1, 1_000_000, 200_000)
    )


def results(
    *, delay_micros: int = 9_000, ours: float = 1.0, naive: float = 20.0, warm: float = 80.0
) -> dict[str, Any]:
    """The document of a measurement with these delays, seconds for a thousand events, and this
    ratio of the table.
    """
    plan = make_plan(start=START, rate=100, warm_up=1, seconds=1, pauses=5, seed=1)
    lines = [
        {
            "applied_at": event.recorded_at + delay_micros,
            "member": event.member,
            "tag": event_tag(event.event_id).hex(),
        }
        for event in plan.events
    ] + [
        {"applied_at": c.recorded_at + delay_micros, "control": c.event_id.hex()}
        for c in plan.controls
    ]
    cpu = {"worker": 1.0, "redis": 1.0, "broker": 1.0}
    return document(
        about={"machine": machine(), "versions": {}, "settings": {"rf": 1}},
        rules=rules(warm),
        throughput=throughput_summary(
            [Run(events=1000, seconds=ours, cpu=cpu, steps={"decode": 1.0})],
            [Run(events=1000, seconds=naive, cpu=cpu)],
            client="asyncio",
        ),
        latency=summary(plan, read_journal(map(json.dumps, lines)), [1]) | {"rate": 100.0},
        at=AT,
    )


class TestDocument:
    def test_it_has_the_promised_shape(self) -> None:
        """Whoever compares two versions reads these names."""
        jsonschema.validate(json.loads(json.dumps(results())), SCHEMA)

    @pytest.mark.parametrize(
        ("delay_micros", "naive", "warm", "decisions"),
        [(50_000, 10.0, 50.0, True), (50_001, 9.9, 49.9, False)],
    )
    def test_the_verdict_is_the_figures_against_their_bounds(
        self, delay_micros: int, naive: float, warm: float, decisions: bool
    ) -> None:
        """A decisions that cannot be no says nothing."""
        found = results(delay_micros=delay_micros, naive=naive, warm=warm)["ok"]

        assert found == dict.fromkeys(
            ("table_ratio_at_least_50", "ratio_at_least_10", "p99_at_most_50_ms"), decisions
        )

    def test_the_rules_alone_are_told_without_what_was_not_measured(self) -> None:
        """Zeros for servers that never ran would be compared with some day."""
        about = {"machine": machine(), "versions": packages(), "settings": {}}
        found = document(about=about, rules=rules(), at=AT)
        printed = io.StringIO()
        show(found, Console(file=printed, width=160))

        assert set(found) == {"measured_at", "machine", "versions", "settings", "rules", "ok"}
        assert found["ok"] == {"table_ratio_at_least_50": True}
        assert "latency" not in printed.getvalue()

    def test_it_is_kept_under_the_time_of_the_measurement(self, tmp_path: Path) -> None:
        """A second run on one day must not overwrite the first."""
        kept = write(results(), tmp_path / "results")

        assert kept.name == "2026-02-03T040506Z.json"
        assert json.loads(kept.read_text()) == results()

    def test_a_person_sees_the_same_figures(self) -> None:
        """Two truths would be one too many."""
        printed = io.StringIO()
        show(results(), Console(file=printed, width=160))
        text = printed.getvalue()

        assert "20.0 times the naive peer (10 wanted: yes)" in text
        assert "p99 9.0 ms (50 wanted: yes)" in text
        assert (
            "80.0 times the loop over its rows (50 wanted: yes); 20.0 times when asked for the "
            "first time" in text
        )
        assert "µs a question under 5,000 controls, first time" in text


class TestCommand:
    def test_quick_changes_only_what_was_not_asked_for(self) -> None:
        """An option that is silently overruled makes a figure of something else."""
        assert command.parse(["--quick", "--events", "7"]).events == 7
        assert command.parse(["--quick"]).repeats == 1
        assert command.parse([]).events == 200_000

    def test_what_could_not_be_measured_ends_with_2(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A script must tell "slow" from "unknown"."""

        def fail(*_: object) -> None:
            raise CannotMeasure("1 lost")

        monkeypatch.setattr(command, "run", fail)

        assert command.main([]) == 2

    def test_the_rules_are_measured_without_any_server_where_only_they_are_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A look at the rules must not wait for a broker."""
        called: list[str] = []
        monkeypatch.setattr(command, "run", lambda *_: called.append("all"))
        monkeypatch.setattr(command, "run_rules", lambda *_: called.append("rules"))

        assert command.main(["rules", "--quick"]) == command.main([]) == 0
        assert called == ["rules", "all"]

    def test_a_table_of_too_few_members_is_refused(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As many members as opt out between two calls have to be there."""
        with pytest.raises(SystemExit):
            command.parse(["rules", "--members", "99"])

        assert "members have to be at least 100" in capsys.readouterr().err
