"""How many events a second: the processor as it really runs, and the naive peer, in turn, on the
same events.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client.parser import text_string_to_metric_families

from bench.events import Workload, encode, make_events
from bench.figures import CannotMeasure, as_document, check_count, rate_of, spread_of
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
LOOK_SECONDS = 0.01
EVENT_AGE_MICROS = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measurement: events, seconds, CPU seconds per million events by process, and what else
    was seen.
    """

    events: int
    seconds: float
    cpu: Mapping[str, float]
    steps: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Events per second."""
        return rate_of(self.events, self.seconds)


class Workloads:
    """The events, encoded once for as long as namespaces get the same schema ids."""

    def __init__(self, count: int, *, seed: int, now: int) -> None:
        self._events = make_events(
            range(now - EVENT_AGE_MICROS, now - EVENT_AGE_MICROS + count), seed=seed
        )
        self._made: dict[tuple[int, ...], Workload] = {}

    def of(self, namespace: BenchNamespace) -> Workload:
        """The events as this namespace's registry frames them."""
        ids = tuple(namespace.catalog.id_of(name) for name in ("ConsentChanged", "MemberRelocated"))
        if ids not in self._made:
            self._made[ids] = encode(self._events, namespace.catalog)
        return self._made[ids]


def measure_processor(
    namespace: BenchNamespace, work: Workload, services: Mapping[str, int]
) -> Run:
    """Pre-produce, start the processor, and time it from the first open partition to the last
    committed offset.
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
    """Pre-produce the same events once more, and time the peer from its first event to its last."""
    topic, kept = namespace.add_topic("naive-events"), f"{namespace.name}-naive"
    namespace.produce(topic, work)
    count = len(work.keys)
    command = [sys.executable, "-m", "bench.naive", topic, kept, str(count), client]
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
        check_count(
            "Members in the peer's hash", expected=work.members, found=_integer(table.hlen(kept))
        )
    return Run(
        events=count, seconds=last["at"] - first["at"], cpu=cpu_per_million(before, after, count)
    )


def check_records(namespace: BenchNamespace, work: Workload) -> None:
    """Raise CannotMeasure unless table and topic hold every event: a record's version counts its
    member's events.
    """
    table = RedisTable(
        namespace.addresses.redis_url,
        namespace=namespace.name,
        partitions=namespace.partitions,
        members=TABLE_MEMBERS,
    )
    held = (pair for partition in range(namespace.partitions) for pair in table.scan(partition))
    check_versions("The table", held, work.keys)
    published = (
        (message.key, message.value)
        for message in read_all(namespace.kafka, namespace.topic(RECORDS))
    )
    check_versions(
        "The records topic", ((key, value) for key, value in published if key and value), work.keys
    )
    table.close()


def check_versions(
    what: str, records: Iterable[tuple[bytes, bytes]], keys: Sequence[bytes]
) -> None:
    """Raise CannotMeasure unless these records account for every event of every member."""
    versions: dict[bytes, int] = {}
    for key, value in records:
        versions[key] = max(versions.get(key, 0), version_of(value))
    check_count(f"{what}, members", expected=len(set(keys)), found=len(versions))
    check_count(f"{what}, events", expected=len(keys), found=sum(versions.values()))


def step_seconds(metrics: str, events: int) -> dict[str, float]:
    """Seconds per million events that the hot path says it spent in each step, and the mean
    batch.
    """
    samples = [
        sample for family in text_string_to_metric_families(metrics) for sample in family.samples
    ]
    steps = {
        sample.labels["step"]: round(sample.value * 1_000_000 / events, 2)
        for sample in samples
        if sample.name == "consentry_batch_seconds_sum"
    }
    batches = sum(
        sample.value for sample in samples if sample.name == "consentry_batch_events_count"
    )
    return steps | {"batch_events_mean": round(events / batches, 1) if batches else 0.0}


def summary(ours: Sequence[Run], naive: Sequence[Run], *, client: str) -> dict[str, Any]:
    """The part of the results that tells throughput."""
    figures = as_document(
        {
            "ours": spread_of([run.rate for run in ours]),
            "naive": spread_of([run.rate for run in naive]),
        }
    )
    document: dict[str, Any] = {
        name: {
            "events": runs[0].events,
            "events_per_second": figures[name],
            "cpu_seconds_per_million": _medians([run.cpu for run in runs]),
        }
        for name, runs in (("ours", ours), ("naive", naive))
    }
    document["ours"]["step_seconds_per_million"] = _medians([run.steps for run in ours])
    document["naive"]["client"] = client
    document["ratio"] = round(figures["ours"]["median"] / figures["naive"]["median"], 2)
    return document


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}


def _wait_for_count(program: Program, count: Any, wanted: int, what: str) -> None:
    def look() -> bool | None:
        found = count()
        if found > wanted:
            raise CannotMeasure(
                f"The offsets that are to {what} end at {wanted}, but {found} were seen."
            )
        return True if found == wanted else None

    program.wait_until(
        look, f"{what} {wanted} events", timeout_seconds=RUN_SECONDS_MAX, every=LOOK_SECONDS
    )


def _stored(table: Any, namespace: BenchNamespace) -> int:
    """How far the table has come, all partitions together."""
    ask = table.pipeline(transaction=False)
    for partition in range(namespace.partitions):
        ask.hget(f"{namespace.name}:{{{partition}}}:meta", "next_offset")
    return sum(int(offset or 0) for offset in ask.execute())


def _committed(namespace: BenchNamespace) -> int:
    """How far the committed offsets have come, all partitions together."""
    admin = AdminClient(client_config(namespace.kafka, "consentry-bench"))
    wanted = [
        TopicPartition(namespace.topic(MEMBER_EVENTS), partition)
        for partition in range(namespace.partitions)
    ]
    group = f"{namespace.name}-processor"
    answer = admin.list_consumer_group_offsets(
        [ConsumerGroupTopicPartitions(group, wanted)], request_timeout=10
    )
    return sum(max(0, found.offset) for found in answer[group].result().topic_partitions)


def _integer(value: Any) -> int:
    return int(value)
