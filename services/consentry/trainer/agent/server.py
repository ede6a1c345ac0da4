"""Where the agent listens, and the server that it runs on."""

from __future__ import annotations

import asyncio
import socket
import stat
from asyncio import TimerHandle
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from consentry.domain.errors import InvalidInput, Refused, UnsafeSetting
from consentry.ops.metrics import Metrics
from consentry.trainer.agent.app import build_app
from consentry.trainer.agent.guard import Guard, is_loopback
from consentry.trainer.agent.service import Agent

HEAD_SECONDS: Final = 10.0
HEAD_BYTES_MAX: Final = 65_536
CONNECTIONS_MAX: Final = 512
_UNIX: Final = "unix:"


@dataclass(frozen=True, slots=True)
class Listen:
    """An address: HOST and PORT (0: one from the system), or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Listen:
        """From HOST:PORT, [IPv6]:PORT or unix:PATH. Raises InvalidInput."""
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
        """Return if only this machine can call, or callers need a token. Raises UnsafeSetting."""
        if self.path is None and not is_loopback(self.host) and not has_tokens:
            raise UnsafeSetting(
                f"Whoever reaches {self.host} could ask about every member.",
                code="agent.listen",
                fix="listen on 127.0.0.1, or give --token-file",
            )

    def open(self) -> socket.socket:
        """A socket that listens there; that of a file is for this user only. Raises Refused."""
        family = (
            socket.AF_UNIX if self.path else socket.AF_INET6 if ":" in self.host else socket.AF_INET
        )
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if self.path is not None:
                self._make_room(self.path)
                listener.bind(str(self.path))
                # Between these two it does not listen yet: nobody gets in.
                self.path.chmod(0o600)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((self.host, self.port))
        except OSError as error:
            listener.close()
            raise Refused(
                f"The address {self.path or f'{self.host}:{self.port}'} cannot be opened: "
                f"{error.strerror or error}.",
                code="agent.address",
                fix="name a free port, or 0 for one from the operating system",
            ) from error
        listener.listen(512)
        listener.setblocking(False)
        return listener

    @staticmethod
    def _make_room(path: Path) -> None:
        """Remove the socket of an agent that was killed; never a file, nor the socket of one that
        lives.
        """
        if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()

    def close(self, listener: socket.socket) -> None:
        """Close it, and take the file away."""
        listener.close()
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()


class TimedHeads(HttpToolsProtocol):
    """uvicorn's protocol, except that a connection whose head is slow to come, or without an end,
    is closed.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._deadline: TimerHandle | None = None
        self._head_bytes = 0
        self._is_in_head = False

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self.transport.close()
            elif self._deadline is None:
                self._begin()

    def on_message_begin(self) -> None:
        """See httptools."""
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._is_in_head = False
        self._end()
        super().on_headers_complete()

    def _begin(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._expire)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self._begin()  # the request before it is still being answered


class Server(uvicorn.Server):
    """uvicorn's server; readers of events are let go before it waits for connections to end."""

    def __init__(self, config: uvicorn.Config, agent: Agent) -> None:
        super().__init__(config)
        self._agent = agent

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self._agent.close()
        await super().shutdown(sockets)


def make_server(
    agent: Agent, metrics: Metrics, *, tokens: Sequence[bytes] = (), is_unix: bool = False
) -> Server:
    """The server of an agent, to be given its socket."""
    config = uvicorn.Config(
        Guard(build_app(agent, metrics), tokens=tokens, checks_host=not is_unix),
        http=TimedHeads,
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
    """Answer until the server is told to end."""
    watching = asyncio.create_task(agent.watch())
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
