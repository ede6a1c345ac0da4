"""`consentry bundler`: writes signed bundles as a service, and repairs records that went back.

The bundles are of all records, one after another.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import structlog
import typer

from consentry.bundler.claims import SequenceClaims
from consentry.bundler.follower import BundleFollower
from consentry.bundler.record_repair import KafkaRecordAppender, RecordRepairer
from consentry.bundler.service import Bundler, BundlerPlan, went_back
from consentry.bundler.setup import liveness, read_keys, require_store, restore_newest, writer_name
from consentry.bundles import (
    BundleStore,
    Manifest,
    Regression,
    SigningKey,
)
from consentry.cli.connections import open_catalog
from consentry.cli.health import start_health
from consentry.cli.options import BelieveOption
from consentry.cli.settings import load_settings
from consentry.kafka.clients import read_all
from consentry.ops.clock import system_clock
from consentry.ops.health import HealthServer
from consentry.ops.logs import set_up_logs
from consentry.ops.metrics import Metrics
from consentry.ops.settings import Settings
from consentry.wire.schemas import RECORDS, topic_name

app = typer.Typer(add_completion=False)


@app.command()
def run(
    store: Annotated[
        str | None,
        typer.Option(help="Directory or URL of the bundles; default: CONSENTRY_BUNDLE_STORE."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="File of the signing key; default: CONSENTRY_BUNDLE_SIGNING_KEY_FILE."),
    ] = None,
    believe: BelieveOption = None,
    make_key: Annotated[
        bool,
        typer.Option(
            "--make-key",
            help="Make the signing key if its file is missing, as in a first start.",
        ),
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Seconds between bundles.")
    ] = 60.0,
    snapshot_every: Annotated[
        int,
        typer.Option(
            min=1, max=256, help="How many bundles share a snapshot: it, then deltas on it."
        ),
    ] = 60,
    keep: Annotated[
        float,
        typer.Option(min=0, help="Seconds for which a bundle is kept after it was the newest."),
    ] = 3600.0,
    claim: Annotated[
        float,
        typer.Option(
            min=1, help="Seconds that writing a bundle may take before another bundler takes over."
        ),
    ] = 300.0,
) -> None:
    """Run the service that writes signed bundles.

    It follows records and controls, and writes bundles while all of them are proven fresh. It also
    appends the newest record of a member again where the log went back to an older one. It runs
    until SIGINT or SIGTERM. `consentry bundle` builds one bundle, or inspects one.
    """
    settings = load_settings(bundle_store=store, bundle_signing_key_file=key)
    set_up_logs(style=settings.log_format, level=settings.log_level)

    plan = BundlerPlan(
        every_seconds=every,
        snapshot_every=snapshot_every,
        keep_seconds=keep,
        claim_seconds=claim,
        staleness_seconds=settings.staleness_seconds,
    )
    public_files = [*(believe or []), *settings.bundle_public_keys()]
    _run(settings, plan, public_files, make_key=make_key)


def _run(
    settings: Settings, plan: BundlerPlan, public_files: Sequence[Path], *, make_key: bool
) -> None:
    """Open everything, and write bundles until a signal."""
    kafka, namespace = settings.kafka(), settings.namespace
    signing, believed = read_keys(settings.bundle_signing_key_file, public_files, make_key=make_key)
    store = BundleStore(require_store(settings.bundle_store))
    catalog = open_catalog(settings)
    metrics = Metrics(version("consentry"))
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    state, newest = restore_newest(store, believed, namespace, catalog, system_clock)
    appender = KafkaRecordAppender(kafka, namespace=namespace)

    def note_regression(regression: Regression) -> None:
        # A regression that is read before that was repaired long ago, or `went_back` finds it.
        if follower.is_caught_up:
            repairer.note(regression)

    with BundleFollower(
        kafka, catalog, namespace=namespace, state=state, on_regression=note_regression
    ) as follower:
        repairer = RecordRepairer(
            appender,
            newest=follower.state.get,
            ready=lambda: follower.is_caught_up,
            metrics=metrics,
        )
        claims = SequenceClaims(
            store.url,
            writer=writer_name(settings.worker_id),
            clock=system_clock,
            claim_seconds=plan.claim_seconds,
        )
        bundler = Bundler(
            follower,
            store,
            claims,
            key=signing,
            believed=believed,
            namespace=namespace,
            plan=plan,
            clock=system_clock,
            metrics=metrics,
            repairer=repairer,
            newest=newest,
        )
        health = _start_probes(settings, bundler, repairer, metrics)
        _log_start(health, signing, newest)
        repairer.start(lambda: _find_regressions(settings, follower))
        try:
            bundler.run(stopping)
        finally:
            repairer.stop()
            appender.close()
            health.stop()


def _find_regressions(settings: Settings, follower: BundleFollower) -> Iterator[Regression]:
    """Look back through the records topic for records that went back."""
    messages = read_all(settings.kafka(), topic_name(settings.namespace, RECORDS))
    return went_back(messages, follower.state.get)


def _log_start(health: HealthServer, signing: SigningKey, newest: Manifest | None) -> None:
    sequence = 0
    if newest is not None:
        sequence = newest.sequence
    structlog.get_logger(__name__).info(
        "bundler", metrics=health.address, key=signing.key_id, sequence=sequence
    )


def _start_probes(
    settings: Settings, bundler: Bundler, repairer: RecordRepairer, metrics: Metrics
) -> HealthServer:
    def alive() -> dict[str, Any]:
        return liveness(idle_seconds=monotonic() - bundler.progress_at, repairs=repairer.is_alive)

    return start_health(settings, metrics, alive=alive, ready=bundler.status)
