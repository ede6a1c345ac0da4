"""`consentry agent`: the client as a local HTTP service, for trainers in other languages."""

from __future__ import annotations

import asyncio
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from consentry.cli.connections import open_catalog
from consentry.cli.settings import load_settings, load_token_keys
from consentry.domain.errors import InvalidInput
from consentry.domain.values import parse_name
from consentry.ops.health import HealthServer
from consentry.ops.logs import set_up_logs
from consentry.ops.metrics import Metrics
from consentry.ops.settings import Settings
from consentry.trainer.agent.guard import read_tokens
from consentry.trainer.agent.server import Listen, make_server, serve
from consentry.trainer.agent.service import Agent
from consentry.trainer.client import Client

app = typer.Typer(add_completion=False)


@app.command()
def run(
    name: Annotated[str, typer.Option(help="Name of this subscriber, in metrics.")],
    listen: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT, 0 for a port from the system, or unix:PATH; CONSENTRY_AGENT_LISTEN."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Callers bring a token of this file; CONSENTRY_AGENT_TOKEN_FILE."),
    ] = None,
    purpose: Annotated[
        list[str] | None, typer.Option(help="Tell events for it; default: genai_training.")
    ] = None,
    root: Annotated[
        list[Path] | None, typer.Option(help="Directory under which /v1/check may read files.")
    ] = None,
) -> None:
    """Run the local HTTP agent, for trainers in other languages.

    It answers on this machine which members' data may be used, until SIGINT or SIGTERM. See
    docs/trainers.md, "Other languages".
    """
    settings = load_settings(agent_listen=listen, agent_token_file=token_file)
    set_up_logs(style=settings.log_format, level=settings.log_level)
    name = parse_name(name, what="subscriber")
    purposes = [parse_name(one, what="purpose") for one in purpose or ["genai_training"]]
    tokens: Any = ()
    if settings.agent_token_file is not None:
        tokens = read_tokens(settings.agent_token_file)
    address = Listen.parse(settings.agent_listen)
    address.check(has_tokens=bool(tokens))
    for directory in root or ():
        if not directory.is_dir():
            raise InvalidInput(
                f"The root {str(directory)!r} is no directory.",
                code="agent.root",
                fix="make it, or name another",
            )
    listener = address.open()
    try:
        asyncio.run(_serve(settings, name, purposes, root or [], address, listener, tokens))
    finally:
        address.close(listener)


async def _serve(
    settings: Settings,
    name: str,
    purposes: list[str],
    roots: list[Path],
    address: Any,
    listener: Any,
    tokens: Any,
) -> None:
    client = _client(settings, name)
    agent = Agent(client, client.hooks, purposes=purposes, roots=roots)
    server = make_server(agent, client.metrics, tokens=tokens, is_unix=address.path is not None)
    health = _health(settings, client, agent)
    url = _url(address, listener)
    log = structlog.get_logger(__name__)
    # A line of its own: it is what a caller needs, and names on one line are sorted.
    log.info("agent", url=url)
    log.info("agent_metrics", subscriber=name, metrics=health.address)
    # The server raises the signal that ended it once more: what is open is to be closed first.
    signal.signal(signal.SIGTERM, lambda *_: None)
    client.start()
    try:
        await serve(server, agent, listener)
    finally:
        await asyncio.to_thread(client.stop)
        health.stop()


def _url(address: Any, listener: Any) -> str:
    """Return the URL at which callers reach the agent; an IPv6 address stands in brackets."""
    if address.path:
        return f"unix:{address.path}"
    host = address.host
    if ":" in host:
        host = f"[{host}]"
    port = listener.getsockname()[1]
    return f"http://{host}:{port}"


def _client(settings: Settings, name: str) -> Client:
    return Client(
        settings.kafka(),
        open_catalog(settings),
        name=name,
        namespace=settings.namespace,
        staleness_seconds=settings.staleness_seconds,
        metrics=Metrics(version("consentry")),
        token_keys=load_token_keys(settings),
    )


def _health(settings: Settings, client: Client, agent: Any) -> Any:
    def alive() -> dict[str, Any]:
        return {"ok": client.is_following}

    def ready() -> dict[str, Any]:
        detail = client.stale_detail
        return {"ok": not detail, "detail": detail, "ready": agent.is_ready}

    health = HealthServer(
        client.metrics,
        alive=alive,
        ready=ready,
        host=settings.metrics_host,
        port=settings.metrics_port,
    )
    health.start()
    return health
