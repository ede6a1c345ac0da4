"""`consentry processor`: the worker that turns member events into the table and the records.

It is a Faust worker.
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

from consentry.cli.connections import open_catalog
from consentry.cli.consent_table import open_table
from consentry.cli.health import start_health
from consentry.cli.settings import load_settings
from consentry.domain.errors import Refused
from consentry.kafka.controls_follower import MISUNDERSTANDINGS, ControlsFollower
from consentry.ledger.agent import Ledger, add_ledger
from consentry.ledger.obligations import KafkaObligations
from consentry.ops.clock import system_clock
from consentry.ops.failpoints import parse_failpoint
from consentry.ops.health import HealthServer
from consentry.ops.logs import set_up_logs
from consentry.ops.metrics import Metrics
from consentry.ops.settings import Settings
from consentry.processor.build import HotPathParts, build_hot_path, liveness, readiness
from consentry.processor.safety import check_topics
from consentry.processor.service import HotPathService, build_app, run_worker
from consentry.table.redis_table import RedisTable
from consentry.wire.catalog import Catalog

app = typer.Typer(add_completion=False)

_CONTROLS_SECONDS_MAX = 30.0


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
    partitions = check_topics(
        settings.kafka(), namespace=settings.namespace, profile=settings.profile
    )
    catalog = open_catalog(settings)
    with open_table(settings, partitions) as table:
        table.check()
        status = _run_worker(settings, catalog, table, partitions)
    # The clients' threads may still hold connections to a broker that is gone; all that matters is
    # done.
    os._exit(status)


def _run_worker(settings: Settings, catalog: Catalog, table: RedisTable, partitions: int) -> int:
    """Run hot path and ledger until a signal, and return the exit status."""
    kafka, namespace = settings.kafka(), settings.namespace
    metrics = Metrics(version("consentry"))
    controls = ControlsFollower(kafka, namespace=namespace, catalog=catalog)
    controls.start()
    controls.wait_until_read(_CONTROLS_SECONDS_MAX)
    _gauge_misunderstandings(controls, metrics)
    parts = build_hot_path(
        kafka=kafka,
        namespace=namespace,
        worker_id=settings.worker_id,
        catalog=catalog,
        partitions=partitions,
        table=table,
        obligations=KafkaObligations(
            kafka, namespace=namespace, catalog=catalog, controls=controls
        ),
        failpoint=parse_failpoint(settings.failpoint),
        clock=system_clock,
        metrics=metrics,
        version=version("consentry"),
    )
    ledger = Ledger(
        kafka,
        namespace=namespace,
        catalog=catalog,
        declared=settings.declared_subscribers(),
        clock=system_clock,
        metrics=metrics,
    )
    health = _start_probes(settings, parts, controls, metrics)
    structlog.get_logger(__name__).info("processor", metrics=health.address, partitions=partitions)
    # Faust keeps nothing there, but wants a directory. It is one for all workers: a worker that is
    # killed cannot remove its own.
    data_directory = str(Path(tempfile.gettempdir()) / f"consentry-faust-{os.getuid()}")
    worker = build_app(kafka=kafka, app_id=f"{namespace}-ledger", data_directory=data_directory)
    add_ledger(worker, ledger)
    status = run_worker(worker, [lambda: HotPathService(parts.hot_path, parts.frontiers)])
    parts.publisher.close()
    controls.stop()
    health.stop()
    return status


def _gauge_misunderstandings(controls: ControlsFollower, metrics: Metrics) -> None:
    """Count, at every scrape, the controls that are not understood: a lift takes one back."""

    def count(kind: str) -> float:
        return float(controls.not_understood(kind, system_clock()))

    for kind in MISUNDERSTANDINGS:
        gauge = metrics.gauge("consentry_controls_not_understood", kind)
        gauge.set_function(partial(count, kind))


def _start_probes(
    settings: Settings, parts: HotPathParts, controls: ControlsFollower, metrics: Metrics
) -> HealthServer:
    def alive() -> dict[str, Any]:
        idle_seconds = monotonic() - parts.hot_path.progress_at
        return liveness(idle_seconds=idle_seconds, follows_controls=controls.is_alive)

    def ready() -> dict[str, Any]:
        return readiness(
            parts.frontiers.ages(),
            owned=parts.hot_path.owned,
            is_settled=parts.hot_path.is_settled,
            staleness_seconds=settings.staleness_seconds,
        )

    return start_health(settings, metrics, alive=alive, ready=ready)
