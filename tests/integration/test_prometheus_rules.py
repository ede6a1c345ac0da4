"""The alerts in a real Prometheus: its own rule tests, and one alert that fires from a real
scrape.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from ruamel.yaml import YAML

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"
WAIT_SECONDS_MAX = 240


def tool(name: str) -> str:
    """The path of a program of Prometheus.

    Without it the test is skipped, or fails where the gate demands it.
    """
    found = shutil.which(name)
    if found is None:
        # One sentence for every test, so that pytest prints it once.
        reason = "Prometheus is not installed (on Debian: apt-get install prometheus)"
        if os.environ.get("CONSENTRY_REQUIRE_PROMTOOL") == "1":
            pytest.fail(f"{reason}, and CONSENTRY_REQUIRE_PROMTOOL=1 demands it")
        pytest.skip(reason)  # the gate demands it instead, above
    return found


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [tool("promtool"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_prometheus_takes_the_configuration_and_every_rule() -> None:
    """A file that does not load takes every alert down with it."""
    result = promtool("check", "config", PROMETHEUS / "prometheus.yml")

    assert result.returncode == 0, result.stdout + result.stderr
    for path in (PROMETHEUS / "rules").glob("*.yml"):
        assert str(path) in result.stdout


def test_every_rule_passes_its_unit_tests() -> None:
    """Whoever is on call must be woken by what hurts members, and by nothing else."""
    result = promtool("test", "rules", *sorted((PROMETHEUS / "tests").glob("*_test.yml")))

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("rules", "old", "new"),
    [
        (
            "safety",
            'unless consentry_decisions_total{outcome="allowed",fresh="false"} offset 5m)',
            "< 0)",
        ),
        ("safety", 'fresh="false"', 'fresh="no"'),
        ("safety", "consentry_partitions_tainted > 0", "consentry_partitions_tainted > 1"),
        (
            "safety",
            "max by (kind) (consentry_controls_not_understood) > 0",
            "consentry_controls_not_understood > 0",
        ),
        (
            "safety",
            "(consentry_controls_not_understood) > 0",
            "(consentry_controls_not_understood) > 1",
        ),
        ("safety", "keep_firing_for: 15m", "keep_firing_for: 1m"),
        (
            "safety",
            "consentry_table_generation_changes_total[10m]",
            "consentry_table_generation_changes_total[10s]",
        ),
        ("safety", "for: 5m", "for: 1m"),
        ("freshness", "consentry_frontier_age_seconds > 5", "consentry_frontier_age_seconds > 500"),
        ("freshness", "for: 30s", "for: 0s"),
        ("freshness", "or on () (", "or ("),
        ("freshness", "[6h]", "[5m]"),
        ("freshness", "consentry_staleness_seconds > 5", "consentry_staleness_seconds > 50000"),
        ("purge", "consentry_purge_orders_overdue > 0", "consentry_purge_orders_open > 0"),
        ("bundles", "> 900", "> 90000"),
        ("bundles", "or absent(consentry_bundle_age_seconds)", ""),
        ("bundles", "min by (job)", "max by (job)"),
        (
            "bundles",
            "consentry_bundler_unhealed_seconds > 60",
            "consentry_bundler_unhealed_seconds > 600",
        ),
        (
            "bundles",
            "consentry_bundler_unhealed_seconds > 60",
            "consentry_bundler_regressions_total > 0",
        ),
        ("bundles", "[10m]) > 0", "[10m]) > 5"),
        ("bundles", "keep_firing_for: 1h", "keep_firing_for: 1m"),
        ("watch", 'or absent(up{job="consentry-trainer"})', ""),
        ("watch", 'or absent(up{job="consentry-gateway"})', ""),
        ("watch", 'or absent(up{job="consentry-bundler"})', ""),
        ("watch", "|trainer|bundler", "|trainer"),
        ("watch", "processor|gateway|trainer", "processor|trainer"),
        ("watch", "vector(1)", "vector(1) > 1"),
        ("gateway", "> 0.05", "> 0.5"),
        ("gateway", '=~"5.."', '="500"'),
        ("gateway", "by (instance, route) (rate", "by (instance) (rate"),
        ("gateway", "[5m])) > 2", "[5m])) > 9"),
        ("gateway", "messages_waiting > 10000", "messages_waiting > 50000"),
        ("gateway", 'route=~"/v1/(consent-changes|relocations|erasures|pauses)"', 'route=~".*"'),
        ("gateway", "for: 10m", "for: 5m"),
        ("gateway", "401|403|429", "401|429"),
        ("gateway", "refused|unknown", "refused"),
        ("gateway", "[5m])) > 0", "[5m])) > 1000"),
        ("gateway", "controls_age_seconds > 15", "controls_age_seconds > 300"),
        ("gateway", "[10m])) > 30", "[10m])) > 300"),
    ],
)
def test_the_unit_tests_notice_a_rule_that_was_weakened(
    rules: str, old: str, new: str, tmp_path: Path
) -> None:
    """Tests that pass for every rule would let an alert fall silent in a tidy-up."""
    shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    path = tmp_path / "prometheus" / "rules" / f"{rules}.yml"
    text = path.read_text(encoding="utf-8")
    assert old in text, "this case weakens nothing any more"
    path.write_text(text.replace(old, new), encoding="utf-8")

    result = promtool("test", "rules", tmp_path / "prometheus" / "tests" / f"{rules}_test.yml")

    assert result.returncode != 0, result.stdout


@pytest.mark.stack
def test_a_real_prometheus_fires_from_a_real_scrape(tmp_path: Path) -> None:
    """Between a right rule and a woken SRE stand names, labels and time-outs that no unit test
    sees.
    """
    registry = CollectorRegistry()
    frontier = Gauge("consentry_frontier_age_seconds", "Age.", ["partition"], registry=registry)
    frontier.labels(partition="3").set(99)
    Gauge("consentry_partitions_tainted", "Tainted.", registry=registry).set(1)
    program = tool("prometheus")

    with (
        exporter(registry) as port,
        running_prometheus(program, tmp_path, target=f"127.0.0.1:{port}") as address,
    ):
        firing = wait_for_alerts(
            address, {"ConsentryFrontierStale", "ConsentryPartitionTainted", "ConsentryDeadMan"}
        )

    stale = firing["ConsentryFrontierStale"]
    assert stale["labels"]["partition"] == "3"
    assert stale["labels"]["severity"] == "page"
    assert stale["annotations"]["summary"] == "Partition 3 is 1m 39s behind the log"
    assert firing["ConsentryPartitionTainted"]["labels"]["job"] == "consentry-processor"
    assert "ConsentryPurgeOverdue" not in firing


@contextmanager
def exporter(registry: CollectorRegistry) -> Iterator[int]:
    """Serve `registry` on a loopback port chosen by the system."""
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def running_prometheus(program: str, folder: Path, *, target: str) -> Iterator[str]:
    """A Prometheus of our own with our rules, made impatient; ended by its id."""
    port = free_port()
    command = [
        program,
        f"--config.file={impatient_copy(folder, target)}",
        f"--storage.tsdb.path={folder / 'data'}",
    ]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_until_ours(process, port, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)


def impatient_copy(folder: Path, target: str) -> Path:
    """The real configuration and rules, with one target, one scrape a second, and no rule waiting
    for more than one.
    """
    yaml = YAML(typ="safe", pure=True)
    configuration = yaml.load(PROMETHEUS / "prometheus.yml")
    configuration["global"] = {
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "evaluation_interval": "1s",
    }
    jobs = [
        job for job in configuration["scrape_configs"] if job["job_name"] == "consentry-processor"
    ]
    jobs[0]["static_configs"] = [{"targets": [target]}]
    configuration["scrape_configs"] = jobs
    (folder / "rules").mkdir()
    for path in (PROMETHEUS / "rules").glob("*.yml"):
        rules = yaml.load(path)
        for rule in (rule for group in rules["groups"] for rule in group["rules"]):
            if "for" in rule:
                rule["for"] = "1s"
        yaml.dump(rules, folder / "rules" / path.name)
    yaml.dump(configuration, folder / "prometheus.yml")
    return folder / "prometheus.yml"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ours(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the port answers, and prove that it is our own child that listens there."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        assert process.poll() is None, (
            f"Prometheus left with {process.returncode}: {log.read_text()}"
        )
        listening = psutil.Process(process.pid).net_connections(kind="tcp")
        if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in listening):
            return
        time.sleep(0.1)
    pytest.fail(f"Prometheus {process.pid} did not listen on {port}: {log.read_text()}")


def wait_for_alerts(address: str, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """The firing alerts by name, as soon as all of `wanted` are among them."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    firing: dict[str, dict[str, Any]] = {}
    while time.monotonic() < deadline:
        alerts = ask(f"{address}/api/v1/alerts")
        firing = {one["labels"]["alertname"]: one for one in alerts if one["state"] == "firing"}
        if wanted <= firing.keys():
            return firing
        time.sleep(0.2)
    pytest.fail(f"after {WAIT_SECONDS_MAX} s only these fire: {sorted(firing)}")


def ask(url: str) -> list[dict[str, Any]]:
    """The alerts of an answer of Prometheus; none while it is still starting."""
    try:
        with urlopen(url, timeout=5) as answer:  # noqa: S310 - an address of our own on loopback
            alerts: list[dict[str, Any]] = json.load(answer)["data"]["alerts"]
            return alerts
    except OSError:
        return []
