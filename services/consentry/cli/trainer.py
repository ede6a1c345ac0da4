"""`consentry trainer`: the reference trainer over one Parquet data set."""

from __future__ import annotations

import signal
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import structlog
import typer

from consentry.cli.connections import open_catalog
from consentry.cli.health import start_health
from consentry.cli.options import PurposeOption
from consentry.cli.settings import load_settings, load_token_keys
from consentry.domain.errors import InvalidInput
from consentry.domain.values import DATASET_PATTERN, parse_name
from consentry.ops.clock import system_clock
from consentry.ops.logs import set_up_logs
from consentry.ops.metrics import Metrics
from consentry.ops.settings import Settings
from consentry.trainer.client import Client
from consentry.trainer.reference import ReferenceTrainer

app = typer.Typer(add_completion=False)


DatasetOption = Annotated[
    Path, typer.Option(help="Directory of Parquet files with a column member_id.")
]
NameOption = Annotated[str, typer.Option(help="Name of this subscriber, as it stands in receipts.")]
EveryOption = Annotated[
    float, typer.Option(min=0, help="Seconds between epochs; 0: only on SIGUSR1.")
]
ManifestOption = Annotated[
    Path | None, typer.Option(help="Write each row's answer of the last epoch to this file.")
]
JournalOption = Annotated[
    Path | None, typer.Option(help="Write the arrival of each record and control to this file.")
]
BundlesOption = Annotated[
    str | None, typer.Option(metavar="STORE", help="Begin with this store's newest bundle.")
]
BundleKeyOption = Annotated[Path | None, typer.Option(help="File with the bundler's public keys.")]


@app.command()
def run(
    dataset: DatasetOption,
    name: NameOption,
    purpose: PurposeOption = "genai_training",
    every: EveryOption = 60.0,
    manifest: ManifestOption = None,
    journal: JournalOption = None,
    bundles: BundlesOption = None,
    bundle_key: BundleKeyOption = None,
) -> None:
    """Run the reference trainer over a Parquet data set.

    It follows records and controls, excludes and purges rows, until SIGINT or SIGTERM. SIGUSR1
    starts an epoch.
    """
    settings = load_settings()
    set_up_logs(style=settings.log_format, level=settings.log_level)
    for file in (manifest, journal):
        _check_directory(file)
    purpose = parse_name(purpose, what="purpose")
    name = parse_name(name, what="subscriber")
    _check_dataset_name(dataset)
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
    _follow(settings, client, trainer, metrics, name=name)


def _check_directory(file: Path | None) -> None:
    """Raise InvalidInput where the directory of a file that will be written does not exist."""
    if file is not None and not file.absolute().parent.is_dir():
        raise InvalidInput(
            f"The directory of {str(file)!r} does not exist.",
            code="input.file",
            fix="make it, or name another",
        )


def _check_dataset_name(dataset: Path) -> None:
    """Raise InvalidInput where the directory's name cannot be a data set's name in receipts."""
    if DATASET_PATTERN.fullmatch(dataset.resolve().name) is None:
        raise InvalidInput(
            f"The directory {str(dataset)!r} gives its data set its name, which has to be 1 to 128 "
            "letters, digits, '_', '.' or '-', a letter or digit first.",
            code="input.dataset",
            fix="rename it, or name a link to it",
        )


def _follow(
    settings: Settings, client: Client, trainer: ReferenceTrainer, metrics: Metrics, *, name: str
) -> None:
    """Run the trainer until a signal ends it."""
    health = start_health(
        settings,
        metrics,
        alive=lambda: {"ok": client.is_following},
        ready=trainer.status,
        pages={"/digest": lambda: {"ok": True, "digests": client.snapshot.digests()}},
    )
    structlog.get_logger(__name__).info("trainer", subscriber=name, metrics=health.address)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: trainer.stop())
    signal.signal(signal.SIGUSR1, lambda *_: trainer.request_epoch())
    client.start()
    trainer.run()
    client.stop()
    health.stop()
