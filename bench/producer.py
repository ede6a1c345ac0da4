"""What the SDK costs beside a raw client: the same events, the same settings of Kafka, in turn, in
one process.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, Message, Producer
from rich.console import Console
from rich.table import Table

from bench.events import Event, make_events
from bench.figures import CannotMeasure, as_document, check_count, rate_of, spread_of
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
    """The events as each way gets them, made before the clock starts: objects for ours, plain
    fields for raw.
    """

    events: Sequence[Event]
    fields: Sequence[tuple[str, Mapping[str, Any]]]


class Timed(NamedTuple):
    """One way, once: from the first event to the last acknowledgement;

    CPU seconds are of this process alone.
    """

    events: int
    seconds: float
    cpu_seconds: float


Way = Callable[[Prepared], None]


def prepare(count: int, *, seed: int, now: int) -> Prepared:
    """So many events from a seed, recorded in the last hour."""
    events = make_events(range(now - _EVENT_AGE_MICROS, now - _EVENT_AGE_MICROS + count), seed=seed)
    return Prepared(events, [(type(event).__name__, _fields(event)) for event in events])


def measure_producer(
    namespace: BenchNamespace, count: int, *, repeats: int, seed: int, now: int
) -> dict[str, Any]:
    """Every way in turn, `repeats` times, each round in another order.

    Raises CannotMeasure if an event was lost.
    """
    prepared = prepare(count, seed=seed, now=now)
    few = prepare(min(count, WARM_UP_EVENTS), seed=seed + 1, now=now)
    found: dict[str, list[Timed]] = {name: [] for name in WAYS}
    with ExitStack() as opened:
        ways = {
            "sdk": opened.enter_context(by_sdk(namespace, with_headers=True)),
            "raw": opened.enter_context(by_hand(namespace, with_headers=True)),
            "sdk_without_headers": opened.enter_context(by_sdk(namespace, with_headers=False)),
            "raw_without_headers": opened.enter_context(by_hand(namespace, with_headers=False)),
        }
        for name in WAYS:
            ways[name](few)
        for repeat in range(repeats):
            for step in range(len(WAYS)):
                name = WAYS[(repeat + step) % len(WAYS)]
                before = namespace.events()
                found[name].append(timed(ways[name], prepared))
                check_count(
                    f"Events in the log by {name}",
                    expected=count,
                    found=namespace.events() - before,
                )
    return summary(found)


def timed(way: Way, work: Prepared) -> Timed:
    """How long one way takes for the work."""
    gc.collect()
    cpu, start = time.process_time(), time.perf_counter()
    way(work)
    return Timed(len(work.events), time.perf_counter() - start, time.process_time() - cpu)


@contextmanager
def by_sdk(namespace: BenchNamespace, *, with_headers: bool) -> Iterator[Way]:
    """What a service writes with ours."""

    def send(work: Prepared) -> None:
        check_count(
            "Acceptances", expected=len(work.events), found=len(producer.send_all(work.events))
        )

    with ConsentProducer(
        namespace.kafka,
        source="bench",
        catalog=namespace.catalog,
        namespace=namespace.name,
        with_headers=with_headers,
    ) as producer:
        yield send


@contextmanager
def by_hand(namespace: BenchNamespace, *, with_headers: bool) -> Iterator[Way]:
    """What a service would write itself: fastavro, one produce an event, a callback that counts, a
    flush.
    """
    producer = Producer(producer_config(namespace.kafka, "bench-raw"))
    stopping = threading.Event()
    polling = threading.Thread(target=_poll, args=(producer, stopping), daemon=True)
    polling.start()
    try:
        yield lambda work: send_by_hand(producer, namespace, work, with_headers=with_headers)
    finally:
        stopping.set()
        polling.join(5)


def send_by_hand(
    producer: Producer, namespace: BenchNamespace, work: Prepared, *, with_headers: bool
) -> None:
    """Send everything and wait for every acknowledgement. Raises CannotMeasure if one is
    missing.
    """
    acknowledged = 0
    failed: list[str] = []

    def note(error: KafkaError | None, _message: Message) -> None:
        nonlocal acknowledged
        if error is not None:
            failed.append(error.str())
        acknowledged += 1

    topic = namespace.topic(MEMBER_EVENTS)
    frames = {
        name: namespace.catalog.frame_of(name) for name in ("ConsentChanged", "MemberRelocated")
    }
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
        raise CannotMeasure(
            f"The broker did not take {len(work.events) - acknowledged or len(failed)} raw events."
        )
    check_count("Raw acknowledgements", expected=len(work.events), found=acknowledged)


def summary(found: Mapping[str, Sequence[Timed]]) -> dict[str, Any]:
    """Rates and CPU of each way, and the median over the rounds of ours to raw: above 1 ours is
    quicker.
    """
    document: dict[str, Any] = {
        name: {
            "events": runs[0].events,
            "events_per_second": as_document(
                {"_": spread_of([rate_of(run.events, run.seconds) for run in runs])}
            )["_"],
            "cpu_micros_per_event": round(
                statistics.median(run.cpu_seconds * 1_000_000 / run.events for run in runs), 2
            ),
        }
        for name, runs in found.items()
    }
    for ours, theirs in PAIRS:
        pairs = list(zip(found[ours], found[theirs], strict=True))
        document[f"{ours}_to_{theirs}"] = {
            "rate": round(statistics.median(raw.seconds / sdk.seconds for sdk, raw in pairs), 3),
            "cpu": round(
                statistics.median(raw.cpu_seconds / sdk.cpu_seconds for sdk, raw in pairs), 3
            ),
        }
    return document


def document(about: Mapping[str, Any], found: Mapping[str, Any], *, at: datetime) -> dict[str, Any]:
    """The results as they are kept; `about` holds machine, versions and settings."""
    ratios = [found[f"{ours}_to_{theirs}"]["rate"] for ours, theirs in PAIRS]
    return {
        "measured_at": at.astimezone(UTC).isoformat(timespec="seconds"),
        **about,
        "producer": dict(found),
        "ok": {"within_20_percent_of_raw": min(ratios) >= RATIO_MIN},
    }


def show(results: Mapping[str, Any], console: Console) -> None:
    """Print what a person wants to know first."""
    found = results["producer"]
    rates = Table("producer", "events/s, median", "lowest", "highest", "CPU µs an event")
    for name in WAYS:
        spread = found[name]["events_per_second"]
        figures = (f"{spread[figure]:,.0f}" for figure in ("median", "low", "high"))
        rates.add_row(name.replace("_", " "), *figures, str(found[name]["cpu_micros_per_event"]))
    console.print(rates)
    for ours, theirs in PAIRS:
        ratio = found[f"{ours}_to_{theirs}"]
        words = f"{ours} to {theirs}".replace("_", " ")
        console.print(f"{words}: {ratio['rate']} of its rate, {ratio['cpu']} by CPU time")
    wanted = "yes" if results["ok"]["within_20_percent_of_raw"] else "no"
    console.print(f"Within 20 % of raw, with headers and without: {wanted}")


def _poll(producer: Producer, stopping: threading.Event) -> None:
    while not stopping.is_set():
        producer.poll(0.1)


def _fields(event: Event) -> dict[str, Any]:
    """The event as plain fields, by the names of the schema."""
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
