"""The cost of the SDK beside a raw client.

Both send the same events with the same settings of Kafka, in turn, in one process.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, Message, Producer
from rich.console import Console
from rich.table import Table

from bench.events import Event, make_events
from bench.figures import (
    CannotMeasure,
    check_count,
    rate_of,
    spread_columns,
    spread_of,
    yes_or_no,
)
from bench.stack import BenchNamespace
from consentry.domain.events import ConsentChanged
from consentry.kafka.clients import producer_config
from consentry.producer import ConsentProducer
from consentry.wire.cloudevents import event_headers
from consentry.wire.schemas import MEMBER_EVENTS, schema

WAYS: Final = ("sdk", "raw", "sdk_without_headers", "raw_without_headers")
PAIRS: Final = (("sdk", "raw"), ("sdk_without_headers", "raw_without_headers"))
RATIO_MIN: Final = 0.8
WARM_UP_EVENTS: Final = 5_000
ACKNOWLEDGED_SECONDS_MAX: Final = 120.0
_EVENT_AGE_MICROS: Final = 3_600_000_000


class Prepared(NamedTuple):
    """The events as each way gets them, made before the clock starts.

    Ours gets objects, raw gets plain fields.
    """

    events: Sequence[Event]
    fields: Sequence[tuple[str, Mapping[str, Any]]]


class Timed(NamedTuple):
    """One run of one way, from the first event to the last acknowledgement.

    CPU seconds are of this process alone.
    """

    events: int
    seconds: float
    cpu_seconds: float


Way = Callable[[Prepared], None]


def prepare(count: int, *, seed: int, now: int) -> Prepared:
    """Return `count` events from a seed, recorded in the last hour."""
    start = now - _EVENT_AGE_MICROS
    events = make_events(range(start, start + count), seed=seed)
    fields = [(type(event).__name__, _fields(event)) for event in events]
    return Prepared(events, fields)


def measure_producer(
    namespace: BenchNamespace, count: int, *, repeats: int, seed: int, now: int
) -> dict[str, Any]:
    """Measure every way in turn, `repeats` times, each round in another order.

    Raises CannotMeasure if an event was lost.
    """
    prepared = prepare(count, seed=seed, now=now)
    warm_up = prepare(min(count, WARM_UP_EVENTS), seed=seed + 1, now=now)
    timings: dict[str, list[Timed]] = {name: [] for name in WAYS}
    with ExitStack() as stack:
        ways = {
            "sdk": stack.enter_context(sdk_producer(namespace, with_headers=True)),
            "raw": stack.enter_context(raw_producer(namespace, with_headers=True)),
            "sdk_without_headers": stack.enter_context(sdk_producer(namespace, with_headers=False)),
            "raw_without_headers": stack.enter_context(raw_producer(namespace, with_headers=False)),
        }
        for name in WAYS:
            ways[name](warm_up)
        for repeat in range(repeats):
            for step in range(len(WAYS)):
                name = WAYS[(repeat + step) % len(WAYS)]
                before = namespace.events()
                timings[name].append(time_way(ways[name], prepared))
                check_count(
                    f"Events in the log by {name}",
                    expected=count,
                    found=namespace.events() - before,
                )
    return summary(timings)


def time_way(way: Way, work: Prepared) -> Timed:
    """Run one way once, and return the times that it took."""
    gc.collect()
    cpu_start = time.process_time()
    start = time.perf_counter()
    way(work)
    seconds = time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu_start
    return Timed(len(work.events), seconds, cpu_seconds)


@contextmanager
def sdk_producer(namespace: BenchNamespace, *, with_headers: bool) -> Iterator[Way]:
    """Yield the way of a service that uses the SDK."""

    def send(work: Prepared) -> None:
        acceptances = producer.send_all(work.events)
        check_count("Acceptances", expected=len(work.events), found=len(acceptances))

    with ConsentProducer(
        namespace.kafka,
        source="bench",
        catalog=namespace.catalog,
        namespace=namespace.name,
        with_headers=with_headers,
    ) as producer:
        yield send


@contextmanager
def raw_producer(namespace: BenchNamespace, *, with_headers: bool) -> Iterator[Way]:
    """Yield the way of a service without the SDK.

    It uses fastavro, one produce for each event, a callback that counts, and a flush.
    """
    producer = Producer(producer_config(namespace.kafka, "bench-raw"))
    stopping = threading.Event()
    thread = threading.Thread(target=_poll, args=(producer, stopping), daemon=True)
    thread.start()
    try:
        yield lambda work: send_raw(producer, namespace, work, with_headers=with_headers)
    finally:
        stopping.set()
        thread.join(5)


def send_raw(
    producer: Producer, namespace: BenchNamespace, work: Prepared, *, with_headers: bool
) -> None:
    """Send everything and wait for every acknowledgement.

    Raises CannotMeasure if one is missing.
    """
    acknowledged = 0
    failed: list[str] = []

    def note(error: KafkaError | None, _message: Message) -> None:
        nonlocal acknowledged
        if error is not None:
            failed.append(error.str())
        acknowledged += 1

    topic = namespace.topic(MEMBER_EVENTS)
    frames: dict[str, bytes] = {}
    for name in ("ConsentChanged", "MemberRelocated"):
        frames[name] = namespace.catalog.frame_of(name)
    schemas = {name: schema(name) for name in frames}
    for (name, fields), event in zip(work.fields, work.events, strict=True):
        value = frames[name] + schemas[name].encode(fields)
        headers: Any = event_headers(event) if with_headers else None
        while True:
            try:
                producer.produce(
                    topic, value, fields["member_id"].encode(), headers=headers, on_delivery=note
                )
                break
            except BufferError:
                time.sleep(0.001)
    if producer.flush(ACKNOWLEDGED_SECONDS_MAX) or failed:
        missing = len(work.events) - acknowledged
        if missing == 0:
            missing = len(failed)
        raise CannotMeasure(f"The broker did not take {missing} raw events.")
    check_count("Raw acknowledgements", expected=len(work.events), found=acknowledged)


def summary(timings: Mapping[str, Sequence[Timed]]) -> dict[str, Any]:
    """Return the rates and CPU times of each way, and the ratios of ours to raw.

    A ratio is the median over the rounds; above 1 ours is faster.
    """
    document: dict[str, Any] = {}
    for name, runs in timings.items():
        rates = [rate_of(run.events, run.seconds) for run in runs]
        cpu_micros = [run.cpu_seconds * 1_000_000 / run.events for run in runs]
        document[name] = {
            "events": runs[0].events,
            "events_per_second": asdict(spread_of(rates)),
            "cpu_micros_per_event": round(statistics.median(cpu_micros), 2),
        }
    for ours, theirs in PAIRS:
        pairs = list(zip(timings[ours], timings[theirs], strict=True))
        rate_ratios = [raw.seconds / sdk.seconds for sdk, raw in pairs]
        cpu_ratios = [raw.cpu_seconds / sdk.cpu_seconds for sdk, raw in pairs]
        document[f"{ours}_to_{theirs}"] = {
            "rate": round(statistics.median(rate_ratios), 3),
            "cpu": round(statistics.median(cpu_ratios), 3),
        }
    return document


def document(
    about: Mapping[str, Any], measurement: Mapping[str, Any], *, at: datetime
) -> dict[str, Any]:
    """Return the results as they are kept; `about` holds machine, versions and settings."""
    ratios = [measurement[f"{ours}_to_{theirs}"]["rate"] for ours, theirs in PAIRS]
    return {
        "measured_at": at.astimezone(UTC).isoformat(timespec="seconds"),
        **about,
        "producer": dict(measurement),
        "ok": {"within_20_percent_of_raw": min(ratios) >= RATIO_MIN},
    }


def show(results: Mapping[str, Any], console: Console) -> None:
    """Print the main figures for a person."""
    measurement = results["producer"]
    rates = Table("producer", "events/s, median", "lowest", "highest", "CPU µs an event")
    for name in WAYS:
        columns = spread_columns(measurement[name]["events_per_second"])
        cpu_micros = str(measurement[name]["cpu_micros_per_event"])
        rates.add_row(name.replace("_", " "), *columns, cpu_micros)
    console.print(rates)
    for ours, theirs in PAIRS:
        ratio = measurement[f"{ours}_to_{theirs}"]
        title = f"{ours} to {theirs}".replace("_", " ")
        console.print(f"{title}: {ratio['rate']} of its rate, {ratio['cpu']} by CPU time")
    verdict = yes_or_no(results["ok"]["within_20_percent_of_raw"])
    console.print(f"Within 20 % of raw, with headers and without: {verdict}")


def _poll(producer: Producer, stopping: threading.Event) -> None:
    while not stopping.is_set():
        producer.poll(0.1)


def _fields(event: Event) -> dict[str, Any]:
    """Return the event as plain fields, by the names of the schema."""
    common = {
        "event_id": event.event_id,
        "effective_at": event.effective_at,
        "recorded_at": event.recorded_at,
        "source": event.source,
        "member_id": event.member,
    }
    if isinstance(event, ConsentChanged):
        return common | {
            "choice": event.choice.value,
            "legal_basis": event.legal_basis,
            "purpose": event.purpose,
            "notice_version": event.notice_version,
            "observed_version": event.observed_version,
            "evidence": event.evidence,
        }
    return common | {"age_band": event.age_band.value, "jurisdiction": event.jurisdiction}
