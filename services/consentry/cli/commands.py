"""The commands of `consentry`, by name: the module of each, and its one line of help.

A command's module is imported only when that command runs or shows its own help. So
`consentry --help` is quick, and a trainer's computer needs no package of a server.
"""

from __future__ import annotations

import gc
import importlib
from typing import Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

_TRY = "Try it"
_SERVICES = "Run a service"
_DECLARE = "Record what members and regulators decide"
_TRAIN = "Prepare, check and purge training data"
_OPERATE = "Look into the system and operate it"


class CommandEntry(NamedTuple):
    """One `consentry` command: its module in `consentry.cli`, its line of help, its help panel.

    The panel is the one in --help.
    """

    module: str
    help: str
    panel: str


COMMANDS: Final = {
    "demo": CommandEntry(
        "demo.command", "Run the demo: consent events reach three training systems.", _TRY
    ),
    "local": CommandEntry(
        "local", "Run Kafka, Redis and a schema registry on this computer, without Docker.", _TRY
    ),
    "scenario": CommandEntry(
        "scenario.command", "Run scenarios against the rules or the real stack.", _TRY
    ),
    "processor": CommandEntry(
        "processor", "Run the processor, which folds member events into the table.", _SERVICES
    ),
    "gateway": CommandEntry(
        "gateway", "Run the HTTP gateway for producers, desks and trainers.", _SERVICES
    ),
    "bundler": CommandEntry("bundler", "Run the service that writes signed bundles.", _SERVICES),
    "trainer": CommandEntry(
        "trainer", "Run the reference trainer over a Parquet data set.", _SERVICES
    ),
    "agent": CommandEntry(
        "agent", "Run the local HTTP agent, for trainers in other languages.", _SERVICES
    ),
    "emit": CommandEntry("emit", "Send one member event and wait until it is accepted.", _DECLARE),
    "pause": CommandEntry("controls.pauses", "Impose, lift and list pauses.", _DECLARE),
    "policy": CommandEntry("controls.policies", "Publish and list policies.", _DECLARE),
    "approval": CommandEntry(
        "approval", "List proposals, and approve or reject those of others.", _DECLARE
    ),
    "check": CommandEntry("check", "Check data files for rows that may not be used.", _TRAIN),
    "purge": CommandEntry("purge", "Delete rows that purge orders name, and check again.", _TRAIN),
    "bundle": CommandEntry("bundle", "Build, verify, inspect and compare signed bundles.", _TRAIN),
    "verify": CommandEntry("verify", "Verify the certificates of training runs, offline.", _TRAIN),
    "reach": CommandEntry("reach", "List the training runs that read a member's data.", _TRAIN),
    "explain": CommandEntry(
        "explain", "Explain why a member's data may or may not be used.", _OPERATE
    ),
    "table": CommandEntry("table", "Inspect, verify and rebuild the consent table.", _OPERATE),
    "quarantine": CommandEntry(
        "quarantine", "List unreadable messages; propose to release or replay them.", _OPERATE
    ),
    "keys": CommandEntry("keys", "Make, list and revoke the API keys of the gateway.", _OPERATE),
    "schemas": CommandEntry(
        "schemas", "Check, publish, register and describe the Avro schemas.", _OPERATE
    ),
    "topics": CommandEntry(
        "topics", "Create the declared topics, and show where a broker differs.", _OPERATE
    ),
}


def load_command(name: str) -> Any:
    """Import the module of a `consentry` command and return the command.

    Raises ModuleNotFoundError where a package is not installed that this command needs.
    """
    gc.disable()  # modules make no garbage, and looking for some takes a tenth of the import
    try:
        module = importlib.import_module(f"consentry.cli.{COMMANDS[name].module}")
    finally:
        gc.enable()
    command = typer.main.get_command(module.app)
    command.name = name
    return command


class LazyGroup(TyperGroup):
    """The group of all `consentry` commands; it imports only the one that is run.

    It lists them by COMMANDS.
    """

    def __init__(self, **arguments: Any) -> None:
        summaries = {
            name: TyperCommand(name, help=entry.help, rich_help_panel=entry.panel)
            for name, entry in COMMANDS.items()
        }
        super().__init__(**arguments | {"commands": summaries})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Import the `consentry` command that `args` name; return it, its name and arguments."""
        name, summary, rest = super().resolve_command(ctx, args)
        if name is None:
            return name, summary, rest
        return name, load_command(name), rest
