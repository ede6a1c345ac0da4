"""`consentry trainer`: the reference trainer over one Parquet data set."""

from __future__ import annotations

import signal
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from consentry.cli.connections import open_catalog
from consentry.cli.settings import load_settings, load_token_keys
from consentry.domain.errors import InvalidInput
from consentry.domain.values import DATASET_PATTERN, parse_name
from consentry.ops.clock import system_clock
from consentry.ops.health import HealthServer
from consentry.ops.logs import set_up_logs
from consentry.ops.metrics import Metrics
from consentry.trainer.client import Client
from consentry.trainer.reference import ReferenceTrainer

app = typer.Typer(add_completion=False)


@app.command()
def run(
    dataset: Annotated[
        Path, typer.Option(help="Directory of Parquet files with a column member_id.")
    ],
    name: Annotated[str, typer.Option(help="Name of this subscriber, as it stands in receipts.")],
    purpose: Annotated[str, typer.Option(help="What the data is used for.")] = "genai_training",
    every: Annotated[
        float, typer.Option(min=0, help="Seconds between epochs; 0: only on SIGUSR1.")
    ] = 60.0,
    manifest: Annotated[
        Path | None, typer.Option(help="Write each row's answer of the last epoch here.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="Write when each record and control arrived here.")
    ] = None,
    bundles: Annotated[
        str | None, typer.Option(help="Store of bundles to begin with instead of all of Kafka.")
    ] = None,
    bundle_key: Annotated[
        Path | None, typer.Option(help="File with the bundler's public keys.")
    ] = None,
) -> None:
    """Run the reference trainer over a Parquet data set.

    It follows records and controls, excludes and purges rows, until SIGINT or SIGTERM. SIGUSR1
    starts an epoch.
    """

    settings = load_settings()
    set_up_logs(style=settings.log_format, level=settings.log_level)
    for file in (manifest, journal):
        if file is not None and not file.absolute().parent.is_dir():
            raise InvalidInput(
                f"The directory of {str(file)!r} does not exist.",
                code="input.file",
                fix="make it, or name another",
            )
    purpose, name = parse_name(purpose, what="purpose"), parse_name(name, what="subscriber")
    if DATASET_PATTERN.fullmatch(dataset.resolve().name) is None:
        raise InvalidInput(
            f"The directory {str(dataset)!r} names its data set, but is not called by 1 to 128 "
            "letters, digits, '_', "
            "'.' or '-', a letter or digit first.",
            code="input.dataset",
            fix="rename it, or name a link to it",
        )
    catalog = open_catalog(settings)
    metrics = Metrics(version("consentry"))
    client = Client(
        settings.kafka(),
        catalog,
        name=name,
        namespace=settings.namespace,
        staleness_seconds=settings.staleness_seconds,
        metrics=metrics,
        journal=journal,
        bundles=bundles,
        bundle_keys=bundle_key,
        token_keys=load_token_keys(settings),
    )
    trainer = ReferenceTrainer(
        client,
        kafka=settings.kafka(),
        catalog=catalog,
        namespace=settings.namespace,
        directory=dataset,
        purpose=purpose,
        clock=system_clock,
        every_seconds=every,
        manifest=manifest,
    )

    def alive() -> dict[str, Any]:
        return {"ok": client.is_following}

    health = HealthServer(
        metrics,
        alive=alive,
        ready=trainer.status,
        host=settings.metrics_host,
        port=settings.metrics_port,
    )
    health.pages["/digest"] = lambda: {"ok": True, "digests": client.snapshot.digests()}
    health.start()
    structlog.get_logger(__name__).info("trainer", subscriber=name, metrics=health.address)
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, lambda *_: trainer.stop())
    signal.signal(signal.SIGUSR1, lambda *_: trainer.request_epoch())
    client.start()
    trainer.run()
    client.stop()
    health.stop()
