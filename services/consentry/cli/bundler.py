"""`consentry bundler`: signed bundles of all records, one after another, and the healing of records
that went back.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import structlog
import typer

from consentry.bundler.claims import SequenceClaims
from consentry.bundler.follower import BundleFollower
from consentry.bundler.record_repair import KafkaAppender, RecordRepairer
from consentry.bundler.service import STALL_SECONDS, Bundler, BundlerPlan, went_back
from consentry.bundles import (
    BundleRefused,
    BundleState,
    BundleStore,
    Manifest,
    PublicKeys,
    Regression,
    SigningKey,
    open_bundle,
    restore,
)
from consentry.bundles.keys import make_key_files
from consentry.cli.connections import load_settings, open_catalog
from consentry.domain.errors import Refused, Unavailable
from consentry.kafka.clients import read_all
from consentry.ops.clock import system_clock
from consentry.ops.health import HealthServer
from consentry.ops.logs import set_up_logs
from consentry.ops.metrics import Metrics
from consentry.ops.settings import Settings
from consentry.wire.catalog import Catalog
from consentry.wire.schemas import RECORDS, topic_name

app = typer.Typer(add_completion=False)


_TAKE_UP_ATTEMPTS_MAX = 3


@app.command()
def run(
    store: Annotated[
        str | None,
        typer.Option(
            help="Directory or fsspec URL of the bundles; default: CONSENTRY_BUNDLE_STORE."
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="File of the signing key; default: CONSENTRY_BUNDLE_SIGNING_KEY_FILE."),
    ] = None,
    believe: Annotated[
        list[Path] | None,
        typer.Option(help="Public keys that earlier bundles are signed with; may be repeated."),
    ] = None,
    make_key: Annotated[
        bool,
        typer.Option(
            "--make-key",
            help="Make the signing key where its file is not there, as in a first start.",
        ),
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Seconds between bundles.")
    ] = 60.0,
    snapshot_every: Annotated[
        int,
        typer.Option(
            min=1, max=256, help="Every so many bundles a snapshot, the others deltas on it."
        ),
    ] = 60,
    keep: Annotated[
        float, typer.Option(min=0, help="Seconds that a bundle stays after it was the newest.")
    ] = 3600.0,
    claim: Annotated[
        float,
        typer.Option(
            min=1, help="Seconds that writing one may take before another bundler takes its turn."
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

    _run(
        settings,
        BundlerPlan(
            every_seconds=every,
            snapshot_every=snapshot_every,
            keep_seconds=keep,
            claim_seconds=claim,
            staleness_seconds=settings.staleness_seconds,
        ),
        [*(believe or []), *settings.bundle_public_keys()],
        make_key=make_key,
    )


def _run(settings: Settings, plan: Any, public_keys: list[Path], *, make_key: bool) -> None:
    kafka, namespace = settings.kafka(), settings.namespace
    signing, believed = _keys(settings, public_keys, make_key=make_key)
    store = BundleStore(_store_of(settings))
    catalog = open_catalog(settings)
    metrics = Metrics(version("consentry"))
    stopping = threading.Event()
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, lambda *_: stopping.set())
    state, newest = _taken_up(store, believed, namespace, catalog)
    appender = KafkaAppender(kafka, namespace=namespace)

    def note(regression: Regression) -> None:
        # What is read before that was healed long ago, or is found by looking back.
        if follower.is_caught_up:
            healer.note(regression)

    with BundleFollower(
        kafka, catalog, namespace=namespace, state=state, on_regression=note
    ) as follower:
        healer = RecordRepairer(
            appender,
            newest=follower.state.get,
            ready=lambda: follower.is_caught_up,
            metrics=metrics,
        )
        bundler = Bundler(
            follower,
            store,
            SequenceClaims(
                store.url,
                writer=_writer(settings),
                clock=system_clock,
                claim_seconds=plan.claim_seconds,
            ),
            key=signing,
            believed=believed,
            namespace=namespace,
            plan=plan,
            clock=system_clock,
            metrics=metrics,
            healer=healer,
            newest=newest,
        )
        health = _health(settings, bundler, healer, metrics)
        structlog.get_logger(__name__).info(
            "bundler",
            metrics=health.address,
            key=signing.key_id,
            sequence=0 if newest is None else newest.sequence,
        )
        healer.start(
            lambda: went_back(read_all(kafka, topic_name(namespace, RECORDS)), follower.state.get)
        )
        try:
            bundler.run(stopping)
        finally:
            healer.stop()
            appender.close()
            health.stop()


def _store_of(settings: Settings) -> str:
    if not settings.bundle_store:
        raise Refused(
            "No store for the bundles is named.",
            code="bundle.no_store",
            fix="give --store, or set CONSENTRY_BUNDLE_STORE: a directory, or a URL such as s3://bucket/bundles",
        )
    return settings.bundle_store


def _keys(
    settings: Settings, public_keys: list[Path], *, make_key: bool
) -> tuple[SigningKey, PublicKeys]:
    """The key that signs, and all that earlier bundles may be signed with.

    Raises Refused, UnsafeSetting.
    """
    if settings.bundle_signing_key_file is None:
        raise Refused(
            "No signing key is named: nobody would believe an unsigned bundle.",
            code="bundle.no_key",
            fix="run `consentry bundle keys init FILE` once, then give --key FILE",
        )
    file = settings.bundle_signing_key_file
    if make_key and not file.exists():
        make_key_files(file)
    signing = SigningKey.read(file)
    return signing, PublicKeys.read(*public_keys).and_of(signing)


def _writer(settings: Settings) -> str:
    """Who claims numbers: with a worker id of its own a bundler that was killed goes on at once, as
    the same one.
    """
    return settings.worker_id or f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"


def _taken_up(
    store: BundleStore, believed: PublicKeys, namespace: str, catalog: Catalog
) -> tuple[BundleState | None, Manifest | None]:
    """The state of the store's newest bundle, every byte of its chain checked; nothing where the
    store is empty.

    A chain that does not check ends the bundler: to write over it would hide whatever happened to
    it, and lose the members who are quarantined by nothing but the bundle. Raises BundleRefused,
    Unavailable.
    """
    for attempt in range(_TAKE_UP_ATTEMPTS_MAX):
        try:
            bundle = open_bundle(store, keys=believed, namespace=namespace, now=system_clock())
            return restore(bundle, catalog), bundle.manifest
        except Unavailable as error:
            if error.code == "bundle.none":
                return None, None
            raise
        except BundleRefused as error:
            # Another bundler may have published meanwhile, and deleted what this was being read
            # from.
            if error.code != "bundle.missing" or attempt + 1 == _TAKE_UP_ATTEMPTS_MAX:
                raise
    raise AssertionError("the last attempt returns or raises")


def _health(settings: Settings, bundler: Bundler, healer: RecordRepairer, metrics: Any) -> Any:
    def alive() -> dict[str, Any]:
        idle = monotonic() - bundler.progress_at
        heals = healer.is_alive
        return {
            "ok": idle < STALL_SECONDS and heals,
            "seconds_since_progress": round(idle, 1),
            "heals": heals,
        }

    health = HealthServer(
        metrics,
        alive=alive,
        ready=bundler.status,
        host=settings.metrics_host,
        port=settings.metrics_port,
    )
    health.start()
    return health
