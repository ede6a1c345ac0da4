"""The time until a trainer knows of an event or a pause.

An open loop sends them; each is timed from the moment when it was meant to be sent.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import Producer

from bench.events import Event, encode, make_events
from bench.figures import SECOND_MICROS, CannotMeasure, Latency, as_document, latency_of, schedule
from bench.stack import (
    BenchNamespace,
    Program,
    cpu_per_million,
    cpu_seconds,
    processor,
    trainer,
    wait_until_ready,
)
from consentry.domain.controls import Control, PauseBasis, PauseImposed, PauseLifted, Reach, Scope
from consentry.domain.events import event_tag
from consentry.domain.values import Micros
from consentry.kafka.clients import producer_config
from consentry.ops.clock import system_clock
from consentry.wire.controls import control_key, write_control
from consentry.wire.schemas import CONTROLS, MEMBER_EVENTS

LEAD_SECONDS = 2.0
"""The time from making the schedule to its first moment; everything is encoded in that time."""
DRAIN_SECONDS_MAX = 30.0
MEMBERS = 10_000
_MICROS = 1_000_000


class Sending(NamedTuple):
    """One message and the moment it is meant to be sent, in microseconds."""

    at: int
    topic: str
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """The messages to send and their times; those before `counted_from` only warm up."""

    events: Sequence[Event]
    controls: Sequence[Control]
    counted_from: int


class LatencyJournal(NamedTuple):
    """The trainer's notes of when each record (member, newest tag) and each control had come."""

    records: Sequence[tuple[int, str, str]]
    controls: Mapping[str, int]


def make_plan(
    *, start: int, rate: float, warm_up: float, seconds: float, pauses: int, seed: int
) -> LoadPlan:
    """Return events evenly at `rate`, and pauses, each with its lift, over the measured part."""
    instants = schedule(start=start, rate=rate, seconds=warm_up + seconds)
    counted_from = start + round(warm_up * SECOND_MICROS)
    control_instants: list[int] = []
    if pauses:
        control_rate = 2 * pauses / seconds
        control_instants = schedule(start=counted_from, rate=control_rate, seconds=seconds)
    controls = [_control(number, at, seed) for number, at in enumerate(control_instants)]
    return LoadPlan(
        events=make_events(instants, seed=seed, members=MEMBERS),
        controls=controls,
        counted_from=counted_from,
    )


def measure_latency(
    namespace: BenchNamespace,
    services: Mapping[str, int],
    *,
    rate: float,
    warm_up: float,
    seconds: float,
    pauses: int,
    seed: int,
) -> dict[str, Any]:
    """Run the processor and a trainer, send on schedule, and return the delays."""
    with tempfile.TemporaryDirectory(prefix="consentry-bench-") as name:
        directory = Path(name)
        path = directory / "journal"
        with (
            processor(namespace, directory) as ours,
            trainer(namespace, directory, journal=path) as follower,
        ):
            wait_until_ready(ours)
            wait_until_ready(follower)
            processes = {"worker": ours.pid, "trainer": follower.pid, **services}
            before = cpu_seconds(processes)
            start = system_clock() + round(LEAD_SECONDS * SECOND_MICROS)
            plan = make_plan(
                start=start, rate=rate, warm_up=warm_up, seconds=seconds, pauses=pauses, seed=seed
            )
            late = _send(namespace, _sendings(namespace, plan))
            journal = _drained(follower, path, plan)
            after = cpu_seconds(processes)
    return summary(plan, journal, late) | {
        "rate": rate,
        "seconds": seconds,
        "cpu_seconds_per_million": cpu_per_million(before, after, len(plan.events)),
    }


def summary(plan: LoadPlan, journal: LatencyJournal, late: Sequence[int]) -> dict[str, Any]:
    """Return the latency part of the results. Raises CannotMeasure if a message never arrived."""
    figures: dict[str, Latency] = {
        "event_to_trainer": latency_of(event_delays(plan, journal)),
        "generator_lateness": latency_of(late),
    }
    if plan.controls:
        figures["pause_to_trainer"] = latency_of(control_delays(plan, journal))
    return dict(as_document(figures))


def event_delays(plan: LoadPlan, journal: LatencyJournal) -> list[int]:
    """Return the microseconds from each counted event's intended time to its arrival.

    Several events of one member may reach the trainer as one record: that record then holds all up
    to its newest. Raises CannotMeasure if an event never came.
    """
    tags_of: dict[str, list[str]] = defaultdict(list)
    position_of: dict[str, int] = {}
    for event in plan.events:
        tag = event_tag(event.event_id).hex()
        position_of[tag] = len(tags_of[event.member])
        tags_of[event.member].append(tag)
    arrived_at: dict[str, int] = {}
    arrived_count: dict[str, int] = defaultdict(int)
    for applied_at, member, tag in journal.records:
        if tag not in position_of:
            raise CannotMeasure(f"The trainer holds an event that was not sent (tag {tag}).")
        count = max(arrived_count[member], position_of[tag] + 1)
        for new_tag in tags_of[member][arrived_count[member] : count]:
            arrived_at[new_tag] = applied_at
        arrived_count[member] = count
    lost = len(plan.events) - len(arrived_at)
    if lost:
        raise CannotMeasure(f"{lost} of {len(plan.events)} events never reached the trainer.")
    delays: list[int] = []
    for event in plan.events:
        if event.recorded_at >= plan.counted_from:
            tag = event_tag(event.event_id).hex()
            delays.append(arrived_at[tag] - event.recorded_at)
    return delays


def control_delays(plan: LoadPlan, journal: LatencyJournal) -> list[int]:
    """Return the microseconds from each pause's or lift's intended time to its arrival.

    Raises CannotMeasure if one never came.
    """
    lost = 0
    delays: list[int] = []
    for control in plan.controls:
        applied_at = journal.controls.get(control.event_id.hex())
        if applied_at is None:
            lost += 1
        else:
            delays.append(applied_at - control.recorded_at)
    if lost:
        raise CannotMeasure(
            f"{lost} of {len(plan.controls)} pauses and lifts never reached the trainer."
        )
    return delays


def read_journal(lines: Iterable[str]) -> LatencyJournal:
    """Return the trainer's journal; if a control came twice, its first arrival counts."""
    records: list[tuple[int, str, str]] = []
    controls: dict[str, int] = {}
    for line in lines:
        entry = json.loads(line)
        if "control" in entry:
            controls.setdefault(entry["control"], entry["applied_at"])
        else:
            records.append((entry["applied_at"], entry["member"], entry["tag"]))
    return LatencyJournal(records, controls)


def _control(number: int, instant: int, seed: int) -> Control:
    identity = bytes([seed % 256, 1]) + number.to_bytes(14, "big")
    pause = f"bench-{number // 2}"
    at = Micros(instant)
    if number % 2:
        return PauseLifted(
            event_id=identity,
            pause=pause,
            version=1,
            effective_at=at,
            recorded_at=at,
            source="bench",
        )
    return PauseImposed(
        event_id=identity,
        pause=pause,
        version=1,
        scope=Scope(jurisdictions=("HK",)),
        effective_at=at,
        recorded_at=at,
        authority="bench",
        basis=PauseBasis.UNDERTAKING,
        reach=Reach.GOING_FORWARD,  # the other one would open purge orders
        source="bench",
    )


def _sendings(namespace: BenchNamespace, plan: LoadPlan) -> list[Sending]:
    """Return every message of the plan, encoded, in the order of intended times."""
    work = encode(plan.events, namespace.catalog)
    events_topic = namespace.topic(MEMBER_EVENTS)
    controls_topic = namespace.topic(CONTROLS)
    sendings: list[Sending] = []
    for event, key, value in zip(plan.events, work.keys, work.values, strict=True):
        sendings.append(Sending(event.recorded_at, events_topic, key, value))
    for control in plan.controls:
        value = write_control(control, namespace.catalog)
        sendings.append(Sending(control.recorded_at, controls_topic, control_key(control), value))
    return sorted(sendings, key=lambda sending: sending.at)


def _send(namespace: BenchNamespace, sendings: Sequence[Sending]) -> list[int]:
    """Send each message at its time, whether or not those before it have arrived.

    Returns the lateness of each, in microseconds.
    """
    failed: list[str] = []
    config: dict[str, Any] = {
        **producer_config(namespace.kafka, "consentry-bench"),
        "linger.ms": 0,
        "delivery.report.only.error": True,
        "on_delivery": lambda error, _message: failed.append(error.str()),
    }
    producer = Producer(config)
    producer.list_topics(timeout=10)
    late: list[int] = []

    def run() -> None:
        for sending in sendings:
            while (wait_micros := sending.at - time.time_ns() // 1000) > 0:
                time.sleep(wait_micros / _MICROS)
            producer.produce(sending.topic, sending.value, sending.key)
            late.append(time.time_ns() // 1000 - sending.at)

    thread = threading.Thread(target=run, name="generator", daemon=True)
    thread.start()
    thread.join()
    if producer.flush(DRAIN_SECONDS_MAX) or failed or len(late) < len(sendings):
        raise CannotMeasure(
            f"The generator sent {len(late)} of {len(sendings)} messages, {len(failed)} failed."
        )
    return late


def _drained(follower: Program, path: Path, plan: LoadPlan) -> LatencyJournal:
    """Return the journal when each member's last event and every control are in it.

    After some time the journal is returned as it is.
    """
    last_tags = {event.member: event_tag(event.event_id).hex() for event in plan.events}
    expected = {control.event_id.hex() for control in plan.controls}
    expected.update(last_tags.values())
    until = time.monotonic() + DRAIN_SECONDS_MAX
    while True:
        follower.check_alive()
        whole_lines, _, _ = path.read_text().rpartition("\n")
        journal = read_journal(whole_lines.splitlines())
        arrived = {tag for _, _, tag in journal.records}
        arrived.update(journal.controls)
        if expected <= arrived or time.monotonic() > until:
            return journal
        time.sleep(0.2)
