"""The address that the trainer's agent listens on, and the HTTP server that it runs."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn

from consentry.domain.errors import InvalidInput, UnsafeSetting
from consentry.ops.http.address import bind, cannot_open, is_loopback
from consentry.ops.http.head_limits import HeadLimits
from consentry.ops.metrics import Metrics
from consentry.trainer.agent.app import build_app
from consentry.trainer.agent.guard import Guard
from consentry.trainer.agent.service import Agent

CONNECTIONS_MAX: Final = 512
BACKLOG: Final = 512
"""Callers that wait to be accepted."""
_UNIX: Final = "unix:"
_ADDRESS_CODE: Final = "agent.address"
_ADDRESS_FIX: Final = "name a free port, or 0 for one from the operating system"


@dataclass(frozen=True, slots=True)
class Listen:
    """The address of the trainer's agent: host and port, or the path of a Unix socket.

    Port 0 is one from the system.
    """

    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Return the address of HOST:PORT, [IPv6]:PORT or unix:PATH. Raises InvalidInput."""
        if text.startswith(_UNIX) and len(text) > len(_UNIX):
            return cls(path=Path(text[len(_UNIX) :]))
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isdecimal() or int(port) > 65_535:
            raise InvalidInput(
                f"The address {text!r} is not HOST:PORT or unix:PATH.",
                code="agent.listen",
                fix="write --listen 127.0.0.1:8790, or --listen unix:/run/consentry/agent.sock",
            )
        return cls(host=host, port=int(port))

    def check(self, *, has_tokens: bool) -> None:
        """Check that only this machine can call, or that callers need a token.

        Raises UnsafeSetting.
        """
        if self.path is None and not is_loopback(self.host) and not has_tokens:
            raise UnsafeSetting(
                f"Whoever reaches {self.host} could ask about every member.",
                code="agent.listen",
                fix="listen on 127.0.0.1, or give --token-file",
            )

    def open(self) -> socket.socket:
        """Return a socket that listens at this address. Raises Refused.

        A Unix socket is for this user only.
        """
        if self.path is None:
            return bind(self.host, self.port, backlog=BACKLOG, code=_ADDRESS_CODE, fix=_ADDRESS_FIX)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_dead_socket(self.path)
            listener.bind(str(self.path))
            # Between these two calls it does not listen yet: nobody gets in.
            self.path.chmod(0o600)
        except OSError as error:
            listener.close()
            raise cannot_open(
                str(self.path), error, code=_ADDRESS_CODE, fix=_ADDRESS_FIX
            ) from error
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return listener

    def close(self, listener: socket.socket) -> None:
        """Close the agent's socket, and remove the file of a Unix socket."""
        listener.close()
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()


def _remove_dead_socket(path: Path) -> None:
    """Remove the socket of an agent that was killed.

    A file stays, and so does the socket of an agent that still runs.
    """
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


class Server(uvicorn.Server):
    """The agent's uvicorn server; it ends the event streams before it waits for connections."""

    def __init__(self, config: uvicorn.Config, agent: Agent) -> None:
        super().__init__(config)
        self._agent = agent

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut the server down, the event streams first; see uvicorn."""
        self._agent.close()
        await super().shutdown(sockets)


def make_server(
    agent: Agent, metrics: Metrics, *, tokens: Sequence[bytes] = (), is_unix: bool = False
) -> Server:
    """Return the HTTP server of a trainer's agent; `serve` gives it its socket."""
    config = uvicorn.Config(
        Guard(build_app(agent, metrics), tokens=tokens, checks_host=not is_unix),
        http=HeadLimits,
        loop="asyncio",
        log_config=None,
        # A path holds a member id.
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
        limit_concurrency=CONNECTIONS_MAX,
        lifespan="off",
    )
    return Server(config, agent)


async def serve(server: Server, agent: Agent, listener: socket.socket) -> None:
    """Answer requests to the trainer's agent until its server is stopped."""
    watcher = asyncio.create_task(agent.watch())
    try:
        await server.serve(sockets=[listener])
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
