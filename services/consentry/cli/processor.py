"""`consentry processor`: the Faust worker that turns member events into the table and the
records.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import structlog
import typer
from confluent_kafka import Consumer

from consentry.cli.connections import load_settings, open_catalog
from consentry.cli.consent_table import open_table
from consentry.domain.errors import Refused
from consentry.kafka.clients import read_all, read_partition
from consentry.kafka.controls_follower import MISUNDERSTANDINGS, ControlsFollower
from consentry.ledger.agent import Ledger, add_ledger
from consentry.ledger.obligations import KafkaObligations
from consentry.ops.clock import system_clock
from consentry.ops.failpoints import parse_failpoint
from consentry.ops.health import HealthServer
from consentry.ops.logs import set_up_logs
from consentry.ops.metrics import Metrics
from consentry.ops.settings import Settings
from consentry.processor.frontiers import FrontierThread, Watermarks
from consentry.processor.hotpath import HotPath
from consentry.processor.materialiser import Materialiser
from consentry.processor.ownership import last_frontiers
from consentry.processor.publisher import KafkaPublisher
from consentry.processor.safety import check_topics
from consentry.processor.service import STALL_SECONDS, HotPathService, build_app, run_worker
from consentry.processor.source import processor_consumer_config
from consentry.wire.frontiers import Frontier, readable_frontiers, write_frontier
from consentry.wire.schemas import FRONTIERS, MEMBER_EVENTS, RECORDS, topic_name

app = typer.Typer(add_completion=False)


@app.command()
def run() -> None:
    """Run the processor, which folds member events into the table.

    It runs until SIGINT or SIGTERM, and refuses unsafe settings of the broker, the topics and the
    table by name.
    """
    settings = load_settings()
    if settings.failpoint and settings.profile != "local":
        raise Refused(
            "CONSENTRY_FAILPOINT is set, which ends the process on purpose; it is for tests.",
            code="settings.failpoint",
            fix="unset it",
        )
    set_up_logs(style=settings.log_format, level=settings.log_level)
    status = _run(settings)
    # The clients' threads may still hold connections to a broker that is gone; all that matters is
    # done.
    os._exit(status)


def _run(settings: Settings) -> int:
    kafka, namespace = settings.kafka(), settings.namespace
    partitions = check_topics(kafka, namespace=namespace, profile=settings.profile)
    catalog = open_catalog(settings)
    metrics = Metrics(version("consentry"))
    with open_table(settings, partitions) as table:
        table.check()
        controls = ControlsFollower(kafka, namespace=namespace, catalog=catalog)
        controls.start()
        controls.wait_until_read(30)
        for kind in MISUNDERSTANDINGS:
            count = partial(_count_not_understood, controls, kind)
            metrics.gauge("consentry_controls_not_understood", kind).set_function(count)
        parts = _hot_path(settings, catalog, table, controls, metrics, partitions)
        ledger = Ledger(
            kafka,
            namespace=namespace,
            catalog=catalog,
            declared=settings.declared_subscribers(),
            clock=system_clock,
            metrics=metrics,
        )
        health = _health(settings, parts, metrics)
        structlog.get_logger(__name__).info(
            "processor", metrics=health.address, partitions=partitions
        )
        # Faust keeps nothing there, but wants a directory; one place for all, as a killed worker
        # cannot remove its own.
        data_directory = str(Path(tempfile.gettempdir()) / f"consentry-faust-{os.getuid()}")
        app = build_app(kafka=kafka, app_id=f"{namespace}-ledger", data_directory=data_directory)
        add_ledger(app, ledger)
        status = run_worker(app, [lambda: HotPathService(parts["hot_path"], parts["frontiers"])])
        parts["publisher"].close()
        controls.stop()
        health.stop()
    return status


def _count_not_understood(controls: Any, kind: str) -> float:
    """The gauge's value whenever somebody asks for it: a lift takes it back by itself."""

    return float(controls.not_understood(kind, system_clock()))


def _hot_path(
    settings: Settings,
    catalog: Any,
    table: Any,
    controls: Any,
    metrics: Any,
    partitions: int,
) -> dict[str, Any]:
    kafka, namespace = settings.kafka(), settings.namespace
    failpoint = parse_failpoint(settings.failpoint)
    publisher = KafkaPublisher(
        kafka, namespace=namespace, catalog=catalog, version=version("consentry")
    )
    watermarks = Watermarks()
    frontiers_topic = topic_name(namespace, FRONTIERS)

    def publish_frontier(frontier: Frontier) -> None:
        publisher.send(
            frontiers_topic, str(frontier.partition).encode(), write_frontier(frontier, catalog), 0
        )

    hot_path = HotPath(
        consumer=Consumer(
            processor_consumer_config(
                kafka, group=f"{namespace}-processor", worker_id=settings.worker_id
            )
        ),
        topic=topic_name(namespace, MEMBER_EVENTS),
        table=table,
        materialiser=Materialiser(
            table=table,
            publisher=publisher,
            obligations=KafkaObligations(
                kafka, namespace=namespace, catalog=catalog, controls=controls
            ),
            catalog=catalog,
            partitions=partitions,
            failpoint=failpoint,
        ),
        watermarks=watermarks,
        last_frontiers=lambda: last_frontiers(
            readable_frontiers(read_all(kafka, frontiers_topic), catalog)
        ),
        records=lambda partition: read_partition(kafka, topic_name(namespace, RECORDS), partition),
        clock=system_clock,
        metrics=metrics,
        failpoint=failpoint,
    )
    frontiers = FrontierThread(
        watermarks,
        kafka=kafka,
        namespace=namespace,
        publish=publish_frontier,
        clock=system_clock,
        metrics=metrics,
    )
    return {
        "hot_path": hot_path,
        "frontiers": frontiers,
        "publisher": publisher,
        "controls": controls,
    }


def _health(settings: Settings, parts: dict[str, Any], metrics: Any) -> Any:
    hot_path, frontiers = parts["hot_path"], parts["frontiers"]

    def alive() -> dict[str, Any]:
        idle = monotonic() - hot_path.progress_at
        follows = parts["controls"].is_alive
        return {
            "ok": idle < STALL_SECONDS and follows,
            "seconds_since_progress": round(idle, 1),
            "controls": follows,
        }

    def ready() -> dict[str, Any]:
        ages = frontiers.ages()
        worst = max(ages.values(), default=None)
        is_fresh = (
            worst is not None and len(ages) == hot_path.owned and worst < settings.staleness_seconds
        )
        return {
            "ok": hot_path.is_settled and is_fresh,
            "partitions": hot_path.owned,
            "oldest_frontier_seconds": None if worst is None else round(worst, 2),
        }

    health = HealthServer(
        metrics, alive=alive, ready=ready, host=settings.metrics_host, port=settings.metrics_port
    )
    health.start()
    return health
