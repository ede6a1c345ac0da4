"""The processor's hot path, built with its Kafka clients; and its health probes' answers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from confluent_kafka import Consumer

from consentry.kafka.clients import read_all, read_partition
from consentry.ops.clock import Clock
from consentry.ops.failpoints import Failpoint
from consentry.ops.metrics import Metrics
from consentry.processor.frontiers import FrontierThread, Watermarks
from consentry.processor.hotpath import HotPath
from consentry.processor.materialiser import Materialiser
from consentry.processor.ownership import last_frontiers
from consentry.processor.ports import Obligations
from consentry.processor.publisher import KafkaPublisher
from consentry.processor.service import STALL_SECONDS
from consentry.processor.source import processor_consumer_config
from consentry.table.protocol import ConsentTable
from consentry.wire.catalog import Catalog
from consentry.wire.frontiers import Frontier, readable_frontiers, write_frontier
from consentry.wire.schemas import FRONTIERS, MEMBER_EVENTS, RECORDS, topic_name


class HotPathParts(NamedTuple):
    """The parts of a running processor: hot path, frontier thread, and their publisher."""

    hot_path: HotPath
    frontiers: FrontierThread
    publisher: KafkaPublisher


def build_hot_path(
    *,
    kafka: Mapping[str, str],
    namespace: str,
    worker_id: str,
    catalog: Catalog,
    partitions: int,
    table: ConsentTable,
    obligations: Obligations,
    failpoint: Failpoint,
    clock: Clock,
    metrics: Metrics,
    version: str,
) -> HotPathParts:
    """Build the processor's hot path and frontier thread over one publisher. Starts nothing.

    `kafka` holds librdkafka's settings; `version` is noted with every quarantined message.
    """
    publisher = KafkaPublisher(kafka, namespace=namespace, catalog=catalog, version=version)
    watermarks = Watermarks()
    frontiers_topic = topic_name(namespace, FRONTIERS)

    def publish_frontier(frontier: Frontier) -> None:
        key = str(frontier.partition).encode()
        publisher.send(frontiers_topic, key, write_frontier(frontier, catalog), 0)

    materialiser = Materialiser(
        table=table,
        publisher=publisher,
        obligations=obligations,
        catalog=catalog,
        partitions=partitions,
        failpoint=failpoint,
    )
    hot_path = HotPath(
        consumer=Consumer(
            processor_consumer_config(kafka, group=f"{namespace}-processor", worker_id=worker_id)
        ),
        topic=topic_name(namespace, MEMBER_EVENTS),
        table=table,
        materialiser=materialiser,
        watermarks=watermarks,
        last_frontiers=partial(_read_last_frontiers, kafka, frontiers_topic, catalog),
        records=partial(read_partition, kafka, topic_name(namespace, RECORDS)),
        clock=clock,
        metrics=metrics,
        failpoint=failpoint,
    )
    frontiers = FrontierThread(
        watermarks,
        kafka=kafka,
        namespace=namespace,
        publish=publish_frontier,
        clock=clock,
        metrics=metrics,
    )
    return HotPathParts(hot_path, frontiers, publisher)


def _read_last_frontiers(
    kafka: Mapping[str, str], topic: str, catalog: Catalog
) -> Mapping[int, Frontier]:
    messages = read_all(kafka, topic)
    return last_frontiers(readable_frontiers(messages, catalog))


def liveness(*, idle_seconds: float, follows_controls: bool) -> dict[str, Any]:
    """Return the processor's answer to /healthz; not ok if it stands still or lacks controls."""
    return {
        "ok": idle_seconds < STALL_SECONDS and follows_controls,
        "seconds_since_progress": round(idle_seconds, 1),
        "controls": follows_controls,
    }


def readiness(
    ages: Mapping[int, float], *, owned: int, is_settled: bool, staleness_seconds: float
) -> dict[str, Any]:
    """Return the processor's answer to /readyz; ok if each partition has a fresh frontier.

    `ages` is partition → seconds since its last frontier; `owned` is the number of partitions.
    """
    oldest = max(ages.values(), default=None)
    is_fresh = oldest is not None and len(ages) == owned and oldest < staleness_seconds
    return {
        "ok": is_settled and is_fresh,
        "partitions": owned,
        "oldest_frontier_seconds": None if oldest is None else round(oldest, 2),
    }
