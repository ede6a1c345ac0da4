"""How long until a trainer knows: an open loop of events and pauses, each timed from when it was
meant to be sent.
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
"""Between deciding the schedule and its first moment: everything is encoded in that time."""
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
    """What is sent and when. Whatever was meant to be sent before `counted_from` only warms up."""

    events: Sequence[Event]
    controls: Sequence[Control]
    counted_from: int


class LatencyJournal(NamedTuple):
    """What the trainer wrote: when each record (member, newest tag) and each control was in its
    memory.
    """

    records: Sequence[tuple[int, str, str]]
    controls: Mapping[str, int]


def make_plan(
    *, start: int, rate: float, warm_up: float, seconds: float, pauses: int, seed: int
) -> LoadPlan:
    """Events evenly at `rate`; pauses, each followed by its lift, evenly over the measured part."""
    instants = schedule(start=start, rate=rate, seconds=warm_up + seconds)
    counted_from = start + round(warm_up * SECOND_MICROS)
    spaced = (
        schedule(start=counted_from, rate=2 * pauses / seconds, seconds=seconds) if pauses else []
    )
    controls = [_control(namespace, instant, seed) for namespace, instant in enumerate(spaced)]
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
    """Run the processor and a trainer, send on schedule, and tell when the trainer knew."""
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
    """The part of the results that tells latency. Raises CannotMeasure if anything never
    arrived.
    """
    figures: dict[str, Latency] = {
        "event_to_trainer": latency_of(event_delays(plan, journal)),
        "generator_lateness": latency_of(late),
    }
    if plan.controls:
        figures["pause_to_trainer"] = latency_of(control_delays(plan, journal))
    return dict(as_document(figures))


def event_delays(plan: LoadPlan, journal: LatencyJournal) -> list[int]:
    """Microseconds from the intended time of each counted event until its member's record held it.

    Several events of one member may reach the trainer as one record: that record then holds all up
    to its newest. Raises CannotMeasure if an event never came.
    """
    order: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for event in plan.events:
        order[event.member].append((event_tag(event.event_id).hex(), event.recorded_at))
    arrived: dict[str, int] = {}
    known: dict[str, int] = defaultdict(int)
    places = {tag: namespace for sent in order.values() for namespace, (tag, _) in enumerate(sent)}
    for applied_at, member, tag in journal.records:
        if tag not in places:
            raise CannotMeasure(f"The trainer holds an event that was not sent (tag {tag}).")
        for earlier, _ in order[member][known[member] : places[tag] + 1]:
            arrived[earlier] = applied_at
        known[member] = max(known[member], places[tag] + 1)
    lost = len(plan.events) - len(arrived)
    if lost:
        raise CannotMeasure(f"{lost} of {len(plan.events)} events never reached the trainer.")
    sent_at = (pair for sent in order.values() for pair in sent)
    return [arrived[tag] - at for tag, at in sent_at if at >= plan.counted_from]


def control_delays(plan: LoadPlan, journal: LatencyJournal) -> list[int]:
    """Microseconds from the intended time of each pause or lift until the trainer held it.

    Raises CannotMeasure.
    """
    lost = sum(control.event_id.hex() not in journal.controls for control in plan.controls)
    if lost:
        raise CannotMeasure(
            f"{lost} of {len(plan.controls)} pauses and lifts never reached the trainer."
        )
    return [
        journal.controls[control.event_id.hex()] - control.recorded_at for control in plan.controls
    ]


def read_journal(lines: Iterable[str]) -> LatencyJournal:
    """The trainer's journal; where a control came twice, its first arrival counts."""
    records: list[tuple[int, str, str]] = []
    controls: dict[str, int] = {}
    for line in lines:
        entry = json.loads(line)
        if "control" in entry:
            controls.setdefault(entry["control"], entry["applied_at"])
        else:
            records.append((entry["applied_at"], entry["member"], entry["tag"]))
    return LatencyJournal(records, controls)


def _control(namespace: int, instant: int, seed: int) -> Control:
    identity = bytes([seed % 256, 1]) + namespace.to_bytes(14, "big")
    pause, at = f"bench-{namespace // 2}", Micros(instant)
    if namespace % 2:
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
    """Every message of the plan, encoded, in the order of intended times."""
    work, topic, controls = (
        encode(plan.events, namespace.catalog),
        namespace.topic(MEMBER_EVENTS),
        namespace.topic(CONTROLS),
    )
    sendings = [
        Sending(event.recorded_at, topic, key, value)
        for event, key, value in zip(plan.events, work.keys, work.values, strict=True)
    ]
    for control in plan.controls:
        value = write_control(control, namespace.catalog)
        sendings.append(Sending(control.recorded_at, controls, control_key(control), value))
    return sorted(sendings, key=lambda sending: sending.at)


def _send(namespace: BenchNamespace, sendings: Sequence[Sending]) -> list[int]:
    """Send each message when its time has come, whatever became of those before; how late each was,
    in µs.
    """
    failed: list[str] = []
    config = producer_config(namespace.kafka, "consentry-bench") | {
        "linger.ms": 0,
        "delivery.report.only.error": True,
    }
    producer = Producer(
        config | {"on_delivery": lambda error, _message: failed.append(error.str())}
    )
    producer.list_topics(timeout=10)
    late: list[int] = []

    def run() -> None:
        for sending in sendings:
            while (wait := sending.at - time.time_ns() // 1000) > 0:
                time.sleep(wait / _MICROS)
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
    """The journal once the last event of every member and every control is in it, or when the
    patience is over.
    """
    last = {event.member: event_tag(event.event_id).hex() for event in plan.events}
    wanted = {*last.values(), *(control.event_id.hex() for control in plan.controls)}
    until = time.monotonic() + DRAIN_SECONDS_MAX
    while True:
        follower.check_alive()
        whole = path.read_text().rpartition("\n")[0].splitlines()
        journal = read_journal(whole)
        if (
            wanted <= {tag for _, _, tag in journal.records} | journal.controls.keys()
            or time.monotonic() > until
        ):
            return journal
        time.sleep(0.2)
