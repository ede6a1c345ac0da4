"""Teeth: the harness says so when events get lost, come twice, or are not the ones that were
sent.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bench.events import encode, make_events
from bench.figures import CannotMeasure
from bench.latency import (
    LatencyJournal,
    LoadPlan,
    control_delays,
    event_delays,
    make_plan,
    read_journal,
    summary,
)
from bench.throughput import Run, check_versions, step_seconds
from bench.throughput import summary as throughput_summary

from consentry.domain.events import ConsentChanged, event_tag
from consentry.wire.catalog import Catalog, InMemoryRegistry, load_catalog, register_all
from consentry.wire.event_batches import EventColumns
from consentry.wire.records import append_fact, first_record

START = 1_700_000_000_000_000
DELAY = 7_000


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    """All schema ids of a registry in memory."""
    registry = InMemoryRegistry()
    register_all(registry, "bench")
    return load_catalog(registry, "bench")


@pytest.fixture(scope="module")
def plan() -> LoadPlan:
    """Two seconds at 500 a second, the first of them not counted, with ten pauses and their
    lifts.
    """
    return make_plan(start=START, rate=500, warm_up=1, seconds=1, pauses=10, seed=1)


def lines_of(plan: LoadPlan) -> list[str]:
    """The journal of a trainer that knew everything DELAY microseconds after it was meant to be
    sent.
    """
    records = [
        {
            "applied_at": event.recorded_at + DELAY,
            "member": event.member,
            "tag": event_tag(event.event_id).hex(),
        }
        for event in plan.events
    ]
    controls = [
        {"applied_at": c.recorded_at + DELAY, "control": c.event_id.hex()} for c in plan.controls
    ]
    return [json.dumps(line) for line in (*records, *controls)]


def held_by(keys: list[bytes], values: list[bytes], catalog: Catalog) -> dict[bytes, bytes]:
    """The records of a table that holds exactly these events."""
    table: dict[bytes, bytes] = {}
    for key, fact in zip(keys, EventColumns(catalog).read(values, keys), strict=True):
        assert fact is not None
        before = table.get(key)
        after = (
            first_record(key, fact.body, catalog.frame_of("ConsentRecord"))
            if before is None
            else append_fact(before, key, fact.body, fact.tag)
        )
        assert after is not None
        table[key] = after
    return table


class TestEvents:
    def test_the_same_seed_gives_the_same_events(self) -> None:
        """The peer is measured on what we are measured on, in every run."""
        assert make_events(range(START, START + 50), seed=7) == make_events(
            range(START, START + 50), seed=7
        )
        assert make_events(range(START, START + 50), seed=7) != make_events(
            range(START, START + 50), seed=8
        )

    def test_the_mix_is_the_one_that_is_told(self) -> None:
        """A rate over only the cheapest kind of event would be a rate of something else."""
        events = make_events(range(START, START + 10_000), seed=1)

        assert sum(isinstance(event, ConsentChanged) for event in events) == pytest.approx(
            8_000, abs=200
        )
        assert {len(event.member) for event in events} == {20}
        assert len({event.member for event in events}) == pytest.approx(2_500, rel=0.05)
        assert len({event.event_id for event in events}) == len(events)


class TestCounting:
    def test_a_table_that_holds_every_event_passes(self, catalog: Catalog) -> None:
        """The check below must not be one that always fails."""
        work = encode(make_events(range(START, START + 400), seed=1), catalog)
        table = held_by(list(work.keys), list(work.values), catalog)

        check_versions("table", table.items(), work.keys)

    def test_one_lost_event_is_noticed(self, catalog: Catalog) -> None:
        """A processor that skips what is slow would win every comparison."""
        work = encode(make_events(range(START, START + 400), seed=1), catalog)
        again = max(index for index, key in enumerate(work.keys) if key in work.keys[:index])
        keys = [key for index, key in enumerate(work.keys) if index != again]
        values = [value for index, value in enumerate(work.values) if index != again]

        with pytest.raises(CannotMeasure, match="events: 400 expected, 399 found, 1 lost"):
            check_versions("table", held_by(keys, values, catalog).items(), work.keys)

    def test_one_lost_member_is_noticed(self, catalog: Catalog) -> None:
        """Even where others' versions would make the sum right again."""
        work = encode(make_events(range(START, START + 400), seed=1), catalog)
        table = held_by(list(work.keys), list(work.values), catalog)
        table.popitem()

        with pytest.raises(CannotMeasure, match="members"):
            check_versions("table", table.items(), work.keys)


class TestDelays:
    def test_only_events_after_the_warm_up_count(self, plan: LoadPlan) -> None:
        """A cold start is another question."""
        assert event_delays(plan, read_journal(lines_of(plan))) == [DELAY] * 500

    def test_events_that_came_as_one_record_all_count(self, plan: LoadPlan) -> None:
        """Leaving coalesced events out would drop just those that were sent in a burst."""
        member = plan.events[-1].member
        ours = [event for event in plan.events if event.member == member]
        burst = replace(
            plan.events[-1], event_id=b"another event id", recorded_at=plan.events[-1].recorded_at
        )
        plan = replace(plan, events=[*plan.events, burst])
        lines = [line for line in lines_of(plan) if event_tag(ours[-1].event_id).hex() not in line]

        assert event_delays(plan, read_journal(lines)) == [DELAY] * 501

    def test_a_lost_event_is_noticed(self, plan: LoadPlan) -> None:
        """The event that never arrives has the longest delay of all, and no sample."""
        with pytest.raises(CannotMeasure, match="1 of 1000 events never reached"):
            event_delays(plan, read_journal(lines_of(plan)[: len(plan.events) - 1]))

    def test_a_foreign_event_is_noticed(self, plan: LoadPlan) -> None:
        """Samples of an earlier run would make this one look good."""
        line = json.dumps({"applied_at": START, "member": "urn:m:other", "tag": "00" * 8})

        with pytest.raises(CannotMeasure, match="not sent"):
            event_delays(plan, read_journal([*lines_of(plan), line]))

    def test_a_lost_pause_is_noticed(self, plan: LoadPlan) -> None:
        """A pause that one trainer does not hold is the failure that all this exists to prevent."""
        with pytest.raises(CannotMeasure, match="1 of 20 pauses"):
            control_delays(plan, read_journal(lines_of(plan)[:-1]))

    def test_a_pause_counts_from_its_first_arrival(self, plan: LoadPlan) -> None:
        """A repetition changes nothing, so it proves nothing either."""
        first = json.loads(lines_of(plan)[-1])
        again = json.dumps(first | {"applied_at": first["applied_at"] + 1})

        assert control_delays(plan, read_journal([*lines_of(plan), again])) == [DELAY] * 20


class TestSummaries:
    def test_latency_tells_what_was_late_because_of_us(self, plan: LoadPlan) -> None:
        """An overdue generator must not be taken for a slow processor, nor hidden in it."""
        found = summary(plan, read_journal(lines_of(plan)), [5, 10])

        assert (
            found["event_to_trainer"]["p99_ms"]
            == found["pause_to_trainer"]["p99_ms"]
            == DELAY / 1000
        )
        assert found["generator_lateness"]["max_ms"] == 0.01

    def test_without_pauses_nothing_is_said_of_them(self, plan: LoadPlan) -> None:
        """No figure is better than a zero."""
        plan = replace(plan, controls=[])

        assert "pause_to_trainer" not in summary(
            plan, LatencyJournal(read_journal(lines_of(plan)).records, {}), [1]
        )

    def test_the_ratio_is_one_of_medians(self) -> None:
        """Best against worst would be a different story."""
        ours = [
            Run(events=100, seconds=seconds, cpu={"worker": 1.0}, steps={"decode": 2.0})
            for seconds in (1, 2, 4)
        ]
        naive = [Run(events=10, seconds=seconds, cpu={"worker": 9.0}) for seconds in (1, 1, 2)]
        found = throughput_summary(ours, naive, client="asyncio")

        assert found["ours"]["events_per_second"] == {
            "median": 50.0,
            "low": 25.0,
            "high": 100.0,
            "repeats": 3,
        }
        assert found["naive"]["cpu_seconds_per_million"] == {"worker": 9.0}
        assert found["ratio"] == 5.0

    def test_steps_are_told_per_million_events(self) -> None:
        """Runs of different length have to be comparable."""
        text = "\n".join(
            (
                "# TYPE consentry_batch_seconds histogram",
                'consentry_batch_seconds_sum{step="decode"} 0.5',
                "# TYPE consentry_batch_events histogram",
                "consentry_batch_events_count 4.0",
                "",
            )
        )

        assert step_seconds(text, 100_000) == {"decode": 5.0, "batch_events_mean": 25_000.0}
