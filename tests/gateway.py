"""A real gateway on the real stack, and requests to it as any HTTP client would send them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from tests.stack import PURPOSE, World, wait_for

PRODUCER: Final = "dev:billing:producer"
DESK: Final = "dev:dora:desk"
APPROVER: Final = "dev:eva:approver"
AUDITOR: Final = "dev:adam:auditor"
EVERYTHING: Final = "dev:all:producer+desk+approver+auditor"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the gateway answered; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body's JSON value."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem's code; empty for a success."""
        return str(self.json.get("code", "")) if self.status >= 400 else ""


class Gateway:
    """`consentry gateway` on a World, on a port of its own; with `--dev` unless told otherwise."""

    def __init__(self, world: World, *, dev: bool = True, **environment: str) -> None:
        self.world = world
        self.running = world.start(
            "gateway", *(["--dev"] if dev else []), "--port", "0", **environment
        )

        def told() -> str:
            assert self.running.is_running, self.running.text()[-3000:]
            return next(
                (str(line["url"]) for line in self.running.lines("gateway") if "url" in line), ""
            )

        self.url = wait_for(told, "the gateway's address", seconds=40)
        self.address = (urlsplit(self.url).hostname or "", urlsplit(self.url).port or 0)
        self.running.wait_ready()

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        who: str | None = PRODUCER,
        **headers: str,
    ) -> Reply:
        """One request and its answer. A body that is no bytes goes as JSON.

        `if_match=` is the header If-Match.
        """
        sent = (
            body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        )
        named = {"Content-Type": "application/json"} if body is not None else {}
        named |= {name.replace("_", "-"): text for name, text in headers.items()}
        if who is not None:
            named["Authorization"] = f"Bearer {who}"
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        try:
            connection.request(method, path, sent, named)
            answer = connection.getresponse()
            return Reply(
                answer.status,
                {name.lower(): text for name, text in answer.getheaders()},
                answer.read(),
            )
        finally:
            connection.close()

    def raw(self, *pieces: bytes, seconds: float = 15) -> bytes:
        """All that comes back for these bytes until the gateway closes the connection, or for so
        long.
        """
        with socket.create_connection(self.address, timeout=seconds) as connection:
            found = b""
            try:
                for piece in pieces:
                    connection.sendall(piece)
                while piece := connection.recv(65_536):
                    found += piece
            except (TimeoutError, ConnectionError):
                pass  # what came until then is the answer
            return found

    def accept(self, path: str, body: object, who: str = PRODUCER, **headers: str) -> Any:
        """A request that has to be accepted; its answer."""
        reply = self.call("POST", path, body, who, **headers)
        assert reply.status == 202, reply
        return reply.json

    def settle(self, member: str, jurisdiction: str = "US") -> str:
        """A grown-up member lives somewhere; the token."""
        body = {"member_id": member, "jurisdiction": jurisdiction, "age_band": "ADULT"}
        return str(self.accept("/v1/relocations", body)["token"])

    def choose(self, member: str, choice: str, **more: object) -> Any:
        """A choice that has to be accepted; the answer."""
        return self.accept(
            "/v1/consent-changes",
            {"member_id": member, "purpose": PURPOSE, "choice": choice, **more},
        )

    def decision(self, member: str, token: str = "", *, wait: float = 5, who: str = AUDITOR) -> Any:
        """The decision about a member, at least as fresh as the token."""
        query = f"purpose={PURPOSE}&wait={wait}" + (f"&at_least={token}" if token else "")
        reply = self.call("GET", f"/v1/members/{member}/decision?{query}", who=who)
        assert reply.status == 200, reply
        return reply.json

    def decide(self, approval: str, act: str = "approve", who: str = APPROVER) -> Reply:
        """Approve or reject a proposal."""
        return self.call("POST", f"/v1/approvals/{approval}/{act}", who=who)

    def approve(self, approval: str) -> Any:
        """A proposal that has to be approved; what came of it."""
        reply = self.decide(approval)
        assert reply.status == 200, reply
        return reply.json["result"]


@contextmanager
def frozen_broker(world: World) -> Iterator[None]:
    """Kafka stands still: it takes bytes, and answers nothing."""
    pid = world.stack.processes["kafka"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
