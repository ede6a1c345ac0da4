"""`consentry quarantine …`: list unreadable messages, and propose to release or replay them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from consentry.cli.approval import print_proposed
from consentry.cli.gateway_client import GatewayClient
from consentry.cli.options import JsonOption
from consentry.ops.settings import Settings

app = typer.Typer(
    name="quarantine",
    help="List unreadable messages; propose to release or replay them.",
    no_args_is_help=True,
    add_completion=False,
)

EntryArgument = Annotated[
    str, typer.Argument(metavar="ENTRY", help="Partition and offset, such as 3-1042.")
]
ReasonOption = Annotated[str, typer.Option(help="Why. The second person reads it.")]


@app.command("list")
def list_entries(
    limit: Annotated[
        int, typer.Option(min=1, max=500, help="How many to list, the newest first.")
    ] = 100,
    as_json: JsonOption = False,
) -> None:
    """Print the messages that could not be read, and the state of their members."""
    entries = _gateway().get(f"/v1/quarantine?limit={limit}")["entries"]
    if as_json:
        typer.echo(json.dumps(entries))
        return
    for entry in entries:
        member = entry["member"] or "(no readable key)"
        typer.echo(
            f"{entry['entry']:<14} {entry['state']:<9} {entry['error_class']:<18} "
            f"{entry['appended_at'][:19]}Z  {member}"
        )
    if not entries:
        typer.echo("the quarantine is empty")


@app.command()
def show(entry: EntryArgument, as_json: JsonOption = False) -> None:
    """Print one quarantined message: bytes, headers, and if it can be replayed."""
    message = _gateway().get(f"/v1/quarantine/{entry}")
    if as_json:
        typer.echo(json.dumps(message))
        return
    for name in ("entry", "member", "state", "error_class", "schema_id", "appended_at"):
        value = message[name]
        if value is None:
            value = "(none)"
        typer.echo(f"{name:<12} {value}")
    typer.echo(f"replay       {message['why_not_replayed'] or 'possible'}")
    for header in message["headers"]:
        typer.echo(
            f"header       {_printable(header['name'].encode())} = "
            f"{_printable_hex(header['value_hex'])}"
        )
    for line in _dump(bytes.fromhex(message["value_hex"] or "")):
        typer.echo(line)


@app.command()
def release(entry: EntryArgument, reason: ReasonOption, as_json: JsonOption = False) -> None:
    """Propose to release a member from quarantine, without the message.

    What the message said is then lost. A second person approves it.
    """
    _propose(entry, "release", reason, as_json=as_json)


@app.command()
def replay(entry: EntryArgument, reason: ReasonOption, as_json: JsonOption = False) -> None:
    """Propose to send a quarantined message again, and to release its member.

    The original bytes are sent. A second person approves it.
    """
    _propose(entry, "replay", reason, as_json=as_json)


def _propose(entry: str, act: str, reason: str, *, as_json: bool) -> None:
    print_proposed(
        _gateway().post(f"/v1/quarantine/{entry}/{act}", {"reason": reason}), as_json=as_json
    )


def _gateway() -> Any:
    return GatewayClient.open(Settings.parse())


def _dump(value: bytes) -> list[str]:
    """Return bytes sixteen a line, as hexadecimal digits and as text without control characters."""
    lines = []
    for start in range(0, len(value), 16):
        part = value[start : start + 16]
        lines.append(f"{start:08x}  {part.hex(' '):<47}  {_printable(part)}")
    return lines or ["(no value)"]


def _printable_hex(digits: str) -> str:
    return _printable(bytes.fromhex(digits))


def _printable(part: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
