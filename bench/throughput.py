"""The throughput of the processor as it really runs, and of the naive peer, on the same events."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client.parser import text_string_to_metric_families

from bench.events import Workload, encode, make_events
from bench.figures import CannotMeasure, check_count, rate_of, spread_of
from bench.stack import (
    BenchNamespace,
    Program,
    cpu_per_million,
    cpu_seconds,
    logged_at,
    metrics_text,
    processor,
)
from consentry.kafka.clients import client_config, read_all
from consentry.table.redis_table import RedisTable
from consentry.wire.records import version_of
from consentry.wire.schemas import MEMBER_EVENTS, RECORDS

RUN_SECONDS_MAX = 240.0
TABLE_MEMBERS = 1_000_000
CHECK_SECONDS = 0.01
EVENT_AGE_MICROS = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measurement.

    `cpu` has the CPU seconds per million events of each process, `steps` those of each step.
    """

    events: int
    seconds: float
    cpu: Mapping[str, float]
    steps: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """The events per second."""
        return rate_of(self.events, self.seconds)


class Workloads:
    """The events, encoded once for as long as namespaces get the same schema ids."""

    def __init__(self, count: int, *, seed: int, now: int) -> None:
        start = now - EVENT_AGE_MICROS
        self._events = make_events(range(start, start + count), seed=seed)
        self._encoded: dict[tuple[int, ...], Workload] = {}

    def of(self, namespace: BenchNamespace) -> Workload:
        """Return the events as this namespace's registry frames them."""
        catalog = namespace.catalog
        ids = (catalog.id_of("ConsentChanged"), catalog.id_of("MemberRelocated"))
        if ids not in self._encoded:
            self._encoded[ids] = encode(self._events, catalog)
        return self._encoded[ids]


def measure_processor(
    namespace: BenchNamespace, work: Workload, services: Mapping[str, int]
) -> Run:
    """Produce all events, start the processor, and time it.

    The time is from its first open partition to its last committed offset.
    """
    namespace.produce(namespace.topic(MEMBER_EVENTS), work)
    table = redis.Redis.from_url(namespace.addresses.redis_url, protocol=3)
    with (
        tempfile.TemporaryDirectory(prefix="consentry-bench-") as directory,
        processor(namespace, Path(directory)) as ours,
    ):
        opened = ours.wait_for("partition_opened")
        processes = {"worker": ours.pid, **services}
        before = cpu_seconds(processes)
        _wait_for_count(ours, lambda: _stored(table, namespace), len(work.keys), "store")
        _wait_for_count(ours, lambda: _committed(namespace), len(work.keys), "commit")
        ended_at = time.time()
        after = cpu_seconds(processes)
        steps = step_seconds(metrics_text(ours), len(work.keys))
    table.close()
    check_records(namespace, work)
    return Run(
        events=len(work.keys),
        seconds=ended_at - logged_at(opened),
        cpu=cpu_per_million(before, after, len(work.keys)),
        steps=steps,
    )


def measure_naive(
    namespace: BenchNamespace, work: Workload, services: Mapping[str, int], *, client: str
) -> Run:
    """Produce the same events once more, and time the peer from its first event to its last."""
    topic = namespace.add_topic("naive-events")
    hash_name = f"{namespace.name}-naive"
    namespace.produce(topic, work)
    count = len(work.keys)
    command = [sys.executable, "-m", "bench.naive", topic, hash_name, str(count), client]
    with (
        tempfile.TemporaryDirectory(prefix="consentry-bench-") as directory,
        Program(
            "naive", command, directory=Path(directory), environment=namespace.environment
        ) as peer,
    ):
        first = peer.wait_for("first_event")
        processes = {"worker": peer.pid, **services}
        before = cpu_seconds(processes)
        last = peer.wait_for("last_event", timeout_seconds=RUN_SECONDS_MAX)
        after = cpu_seconds(processes)
    with redis.Redis.from_url(namespace.addresses.redis_url, protocol=3) as table:
        stored = _integer(table.hlen(hash_name))
    check_count("Members in the peer's hash", expected=work.members, found=stored)
    seconds = last["at"] - first["at"]
    return Run(events=count, seconds=seconds, cpu=cpu_per_million(before, after, count))


def check_records(namespace: BenchNamespace, work: Workload) -> None:
    """Raise CannotMeasure unless table and topic hold every event.

    A record's version is the number of its member's events.
    """
    table = RedisTable(
        namespace.addresses.redis_url,
        namespace=namespace.name,
        partitions=namespace.partitions,
        members=TABLE_MEMBERS,
    )
    stored: list[tuple[bytes, bytes]] = []
    for partition in range(namespace.partitions):
        stored.extend(table.scan(partition))
    check_versions("The table", stored, work.keys)
    published: list[tuple[bytes, bytes]] = []
    for message in read_all(namespace.kafka, namespace.topic(RECORDS)):
        if message.key and message.value:
            published.append((message.key, message.value))
    check_versions("The records topic", published, work.keys)
    table.close()


def check_versions(
    source: str, records: Iterable[tuple[bytes, bytes]], keys: Sequence[bytes]
) -> None:
    """Raise CannotMeasure unless the versions of these records add up to all events."""
    versions: dict[bytes, int] = {}
    for key, value in records:
        versions[key] = max(versions.get(key, 0), version_of(value))
    check_count(f"{source}, members", expected=len(set(keys)), found=len(versions))
    check_count(f"{source}, events", expected=len(keys), found=sum(versions.values()))


def step_seconds(metrics: str, events: int) -> dict[str, float]:
    """Return the seconds per million events of each step, by the processor's own metrics.

    `batch_events_mean` is the mean size of a batch.
    """
    steps: dict[str, float] = {}
    batches = 0.0
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "consentry_batch_seconds_sum":
                steps[sample.labels["step"]] = round(sample.value * 1_000_000 / events, 2)
            elif sample.name == "consentry_batch_events_count":
                batches += sample.value
    steps["batch_events_mean"] = 0.0
    if batches:
        steps["batch_events_mean"] = round(events / batches, 1)
    return steps


def summary(ours: Sequence[Run], naive: Sequence[Run], *, client: str) -> dict[str, Any]:
    """Return the throughput part of the results."""
    ours_rates = spread_of([run.rate for run in ours])
    naive_rates = spread_of([run.rate for run in naive])
    return {
        "ours": {
            "events": ours[0].events,
            "events_per_second": asdict(ours_rates),
            "cpu_seconds_per_million": _medians([run.cpu for run in ours]),
            "step_seconds_per_million": _medians([run.steps for run in ours]),
        },
        "naive": {
            "events": naive[0].events,
            "events_per_second": asdict(naive_rates),
            "cpu_seconds_per_million": _medians([run.cpu for run in naive]),
            "client": client,
        },
        "ratio": round(ours_rates.median / naive_rates.median, 2),
    }


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    medians: dict[str, float] = {}
    for name in runs[0]:
        medians[name] = round(statistics.median([run[name] for run in runs]), 2)
    return medians


def _wait_for_count(program: Program, count: Callable[[], int], expected: int, action: str) -> None:
    """Wait until `count` returns `expected`. Raises CannotMeasure if it returns more."""

    def is_reached() -> bool | None:
        offsets = count()
        if offsets > expected:
            raise CannotMeasure(
                f"The offsets to {action} end at {expected}, but there are {offsets}."
            )
        if offsets < expected:
            return None
        return True

    program.wait_until(
        is_reached,
        f"{action} {expected} events",
        timeout_seconds=RUN_SECONDS_MAX,
        every=CHECK_SECONDS,
    )


def _stored(table: Any, namespace: BenchNamespace) -> int:
    """Return the sum of the table's next offsets over all partitions."""
    pipeline = table.pipeline(transaction=False)
    for partition in range(namespace.partitions):
        pipeline.hget(f"{namespace.name}:{{{partition}}}:meta", "next_offset")
    return sum(int(offset or 0) for offset in pipeline.execute())


def _committed(namespace: BenchNamespace) -> int:
    """Return the sum of the committed offsets over all partitions."""
    admin = AdminClient(client_config(namespace.kafka, "consentry-bench"))
    topic = namespace.topic(MEMBER_EVENTS)
    partitions = [TopicPartition(topic, number) for number in range(namespace.partitions)]
    group = f"{namespace.name}-processor"
    question = ConsumerGroupTopicPartitions(group, partitions)
    answer = admin.list_consumer_group_offsets([question], request_timeout=10)
    committed = answer[group].result().topic_partitions
    return sum(max(0, position.offset) for position in committed)


def _integer(value: Any) -> int:
    return int(value)
