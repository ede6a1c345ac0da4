"""Results are read by people and compared by machines: their shape is a promise, and their verdict is no test."""

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
from bench.report import document, machine, show, write
from bench.throughput import Run
from bench.throughput import summary as throughput_summary
from rich.console import Console

from consentry.domain.events import event_tag

START = 1_700_000_000_000_000
AT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


def numbers(*names: str) -> dict[str, Any]:
    """The schema of an object that has exactly these numbers."""
    properties = {name: {"type": "number", "minimum": 0} for name in names}
    return {"type": "object", "properties": properties, "required": list(names), "additionalProperties": False}


DISTRIBUTION = numbers("count", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms")
CPU = {"type": "object", "additionalProperties": {"type": "number"}, "required": ["worker", "redis", "broker"]}
PEER = {
    "type": "object",
    "required": ["events", "events_per_second", "cpu_seconds_per_million"],
    "properties": {
        "events": {"type": "integer", "minimum": 1},
        "events_per_second": numbers("median", "low", "high", "repeats"),
        "cpu_seconds_per_million": CPU,
    },
}
SCHEMA = {
    "type": "object",
    "required": ["measured_at", "machine", "versions", "settings", "throughput", "latency", "ok"],
    "additionalProperties": False,
    "properties": {
        "measured_at": {"type": "string"},
        "machine": {"type": "object", "required": ["cpus", "model", "python", "platform", "load_1_minute"]},
        "versions": {"type": "object"},
        "settings": {"type": "object"},
        "throughput": {
            "type": "object",
            "required": ["ours", "naive", "ratio"],
            "properties": {"ours": PEER, "naive": PEER, "ratio": {"type": "number"}},
        },
        "latency": {
            "type": "object",
            "required": ["event_to_trainer", "pause_to_trainer", "generator_lateness", "rate"],
            "properties": {
                name: DISTRIBUTION for name in ("event_to_trainer", "pause_to_trainer", "generator_lateness")
            },
        },
        "ok": {
            "type": "object",
            "required": ["ratio_at_least_10", "p99_at_most_50_ms"],
            "additionalProperties": {"type": "boolean"},
        },
    },
}


def results(*, delay_micros: int = 9_000, ours: float = 1.0, naive: float = 20.0) -> dict[str, Any]:
    """The document of a measurement with these delays, and these seconds for a thousand events."""
    plan = make_plan(start=START, rate=100, warm_up=1, seconds=1, pauses=5, seed=1)
    lines = [
        {"applied_at": event.recorded_at + delay_micros, "member": event.member, "tag": event_tag(event.event_id).hex()}
        for event in plan.events
    ] + [{"applied_at": c.recorded_at + delay_micros, "control": c.event_id.hex()} for c in plan.controls]
    cpu = {"worker": 1.0, "redis": 1.0, "broker": 1.0}
    return document(
        about={"machine": machine(), "versions": {}, "settings": {"rf": 1}},
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
        ("delay_micros", "naive", "verdict"),
        [
            (50_000, 10.0, {"ratio_at_least_10": True, "p99_at_most_50_ms": True}),
            (50_001, 9.9, {"ratio_at_least_10": False, "p99_at_most_50_ms": False}),
        ],
    )
    def test_the_verdict_is_the_figures_against_their_bounds(
        self, delay_micros: int, naive: float, verdict: dict[str, bool]
    ) -> None:
        """A verdict that cannot be no says nothing."""
        assert results(delay_micros=delay_micros, naive=naive)["ok"] == verdict

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
