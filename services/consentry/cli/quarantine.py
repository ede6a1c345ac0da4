"""`consentry quarantine …`: what could not be read, and proposing to release its member or to send
it again.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from consentry.cli.approval import print_proposed
from consentry.cli.gateway_client import GatewayClient
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
ReasonOption = Annotated[str, typer.Option(help="Why; the second person reads it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


@app.command("list")
def list_entries(
    limit: Annotated[
        int, typer.Option(min=1, max=500, help="At most so many, the newest first.")
    ] = 100,
    as_json: JsonOption = False,
) -> None:
    """List the messages that could not be read, and the state of their members."""
    found = _gateway().get(f"/v1/quarantine?limit={limit}")["entries"]
    if as_json:
        typer.echo(json.dumps(found))
        return
    for one in found:
        member = one["member"] or "(no readable key)"
        typer.echo(
            f"{one['entry']:<14} {one['state']:<9} {one['error_class']:<18} "
            f"{one['appended_at'][:19]}Z  {member}"
        )
    if not found:
        typer.echo("the quarantine is empty")


@app.command()
def show(entry: EntryArgument, as_json: JsonOption = False) -> None:
    """Show one message: its bytes, its headers, and whether it can be replayed."""
    found = _gateway().get(f"/v1/quarantine/{entry}")
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name in ("entry", "member", "state", "error_class", "schema_id", "appended_at"):
        typer.echo(f"{name:<12} {found[name] if found[name] is not None else '(none)'}")
    typer.echo(f"replay       {found['why_not_replayed'] or 'possible'}")
    for header in found["headers"]:
        typer.echo(
            f"header       {_printable(header['name'].encode())} = "
            f"{_printable_hex(header['value_hex'])}"
        )
    for line in _dump(bytes.fromhex(found["value_hex"] or "")):
        typer.echo(line)


@app.command()
def release(entry: EntryArgument, reason: ReasonOption, as_json: JsonOption = False) -> None:
    """Propose to release the member, without what the message said.

    A second person approves it.
    """
    _propose(entry, "release", reason, as_json=as_json)


@app.command()
def replay(entry: EntryArgument, reason: ReasonOption, as_json: JsonOption = False) -> None:
    """Propose to send the original bytes again, and to release the member.

    A second person approves it.
    """
    _propose(entry, "replay", reason, as_json=as_json)


def _propose(entry: str, act: str, reason: str, *, as_json: bool) -> None:
    print_proposed(
        _gateway().post(f"/v1/quarantine/{entry}/{act}", {"reason": reason}), as_json=as_json
    )


def _gateway() -> Any:
    return GatewayClient.open(Settings.parse())


def _dump(value: bytes) -> list[str]:
    """Bytes as sixteen a line, in hexadecimal digits and as text: nothing of them reaches the
    terminal as it is.
    """
    lines = []
    for start in range(0, len(value), 16):
        part = value[start : start + 16]
        lines.append(f"{start:08x}  {part.hex(' '):<47}  {_printable(part)}")
    return lines or ["(no value)"]


def _printable_hex(digits: str) -> str:
    return _printable(bytes.fromhex(digits))


def _printable(part: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
