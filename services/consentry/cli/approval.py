"""`consentry approval …`: list what waits for a second person, approve it, or reject it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from consentry.cli.gateway_client import GatewayClient
from consentry.cli.options import JsonOption
from consentry.ops.settings import Settings

app = typer.Typer(
    name="approval",
    help="List proposals, and approve or reject those of others.",
    no_args_is_help=True,
    add_completion=False,
)

IdArgument = Annotated[
    str,
    typer.Argument(metavar="ID", help="Id of the proposal, as `consentry approval list` shows it."),
]


@app.command("list")
def list_approvals(
    everything: Annotated[
        bool, typer.Option("--all", help="Also list proposals that are decided.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the proposals that wait for a second person, the newest first."""
    proposals = _gateway().get("/v1/approvals")["approvals"]
    if not everything:
        proposals = [proposal for proposal in proposals if _is_open(proposal)]
    if as_json:
        typer.echo(json.dumps(proposals))
        return
    for proposal in proposals:
        _print(proposal)
    if not proposals:
        typer.echo("nothing waits for approval")


@app.command()
def approve(approval_id: IdArgument, as_json: JsonOption = False) -> None:
    """Approve somebody else's proposal at the gateway. It takes effect now."""
    _show(_gateway().post(f"/v1/approvals/{approval_id}/approve"), as_json=as_json)


@app.command()
def reject(approval_id: IdArgument, as_json: JsonOption = False) -> None:
    """Reject a proposal at the gateway."""
    _show(_gateway().post(f"/v1/approvals/{approval_id}/reject"), as_json=as_json)


def _gateway() -> Any:
    return GatewayClient.open(Settings.parse())


def _is_open(proposal: dict[str, Any]) -> bool:
    return proposal["state"] in ("open", "approving")


def _show(proposal: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(proposal))
    else:
        _print(proposal)


def _print(proposal: dict[str, Any]) -> None:
    """Print a proposal for a person."""
    decided = ""
    if proposal["decided_by"]:
        decided = f", {proposal['decided_by']} decided"
    typer.echo(f"{proposal['approval_id']}  {proposal['kind']:<8} {proposal['state']}")
    typer.echo(f"  {proposal['requested_by']} asked {proposal['requested_at'][:16]}Z{decided}")
    for line in proposal["opens"]:
        typer.echo(f"  opens: {line}")
    for name, value in proposal["asks_for"].items():
        if name != "terms" and value not in (None, "", []):
            typer.echo(f"  {name}: {value}")


def print_proposed(answer: dict[str, Any], *, as_json: bool) -> None:
    """Print that a control waits for a second person, and how that person approves it."""
    if as_json:
        typer.echo(json.dumps(answer))
        return
    typer.echo(f"awaiting approval: {answer['approval_id']}, until {answer['expires_at'][:10]}")
    for line in answer["opens"]:
        typer.echo(f"  opens: {line}")
    typer.echo(f"  a second person runs: consentry approval approve {answer['approval_id']}")
