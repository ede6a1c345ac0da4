"""An agent on a real socket over a view that the test moves by hand."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from tests.strategies import PURPOSE, chose, day, folded, moved

from consentry.domain.decisions import Decision, Row
from consentry.domain.errors import Unavailable
from consentry.domain.events import MemberEvent
from consentry.domain.values import Choice, parse_member_id
from consentry.ops.metrics import Metrics
from consentry.trainer.agent.server import Listen, Server, make_server, serve
from consentry.trainer.agent.service import Agent
from consentry.trainer.deciding.columns import Columns, find_columns
from consentry.trainer.deciding.decide_table import Decisions, decide_table
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.hooks import Hooks
from consentry.wire.frames import frame
from consentry.wire.freshness import FOREVER
from consentry.wire.partitions import partition_of
from consentry.wire.records import write_record

NOW = day(30)


class StillFollower:
    """The client in memory: what it holds changes when the test says so, and so does whether it is
    fresh.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.stale_detail = ""
        self.is_following = True
        self.reached: set[str] = set()
        """Tokens that it is as fresh as."""
        self.judged: list[tuple[int, str]] = []
        """Rows of each call of judge, and the thread that it was on."""
        self.hooks = Hooks(snapshot, list, clock=lambda: NOW)

    @property
    def snapshot_id(self) -> str:
        """See Judge."""
        return self.snapshot.snapshot_id

    def _behind(self, at_least: str | None) -> str:
        if at_least is not None and at_least not in self.reached:
            return "the token asks for more"
        return self.stale_detail

    def decide_table(
        self,
        table: pa.Table,
        *,
        purpose: str,
        columns: Columns | None = None,
        at_least: str | None = None,
        wait_seconds: float = 0.0,
    ) -> Decisions:
        """See Judge."""
        self.judged.append((table.num_rows, threading.current_thread().name))
        return decide_table(
            table,
            self.snapshot,
            purpose=purpose,
            at=NOW,
            known_at=FOREVER,
            columns=columns or find_columns(table.column_names, None),
            is_fresh=not self._behind(at_least),
        )

    def decide(
        self,
        member: str,
        *,
        purpose: str,
        row: Row | None = None,
        at_least: str | None = None,
        wait_seconds: float = 0.0,
    ) -> Decision:
        """See Client."""
        return self.snapshot.decide(
            parse_member_id(member),
            row,
            purpose=purpose,
            at=NOW,
            known_at=FOREVER,
            stale_detail=self._behind(at_least),
        )

    def wait_for(self, token: str, timeout_seconds: float) -> None:
        """See Client."""
        if self._behind(token):
            raise Unavailable("not yet", code="trainer.not_yet")

    def status(self) -> dict[str, Any]:
        """See Client."""
        return {"ok": not self.stale_detail, "members": len(self.snapshot.records)}

    def record(self, member: str, *events: MemberEvent) -> None:
        """Take a member's record in, as following does."""
        found = folded(*events)
        assert found is not None
        key, value = (
            member.encode(),
            write_record(replace(found, member=parse_member_id(member)), frame(1)),
        )
        earlier = self.hooks.states_before([key])
        self.snapshot.apply_records(partition_of(key, self.snapshot.partitions), [key], [value])
        self.hooks.note_records(earlier, [key], [value])


class Answer(NamedTuple):
    """Status, headers in lower case, and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class RunningAgent:
    """An agent that answers on a port of this machine, on a thread of its own."""

    def __init__(self, follower: StillFollower, **options: Any) -> None:
        self.follower = follower
        tokens = options.pop("tokens", ())
        address = (
            Listen(host="127.0.0.1") if "path" not in options else Listen(path=options.pop("path"))
        )
        self.listener = address.open()
        self.port = 0 if address.path else self.listener.getsockname()[1]
        self.agent = Agent(
            follower, follower.hooks, purposes=options.pop("purposes", [PURPOSE]), **options
        )
        self.server: Server = make_server(
            self.agent, Metrics("test"), tokens=tokens, is_unix=bool(address.path)
        )
        self.address = address
        self._thread = threading.Thread(target=self._run, name="agent")
        self._thread.start()

    def _run(self) -> None:
        asyncio.run(serve(self.server, self.agent, self.listener))

    def call(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        *,
        kind: str = "application/json",
        **headers: str,
    ) -> Answer:
        """Ask, as a client of any language does."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent["Content-Type"] = kind
        try:
            connection.request(
                method, path, json.dumps(body) if isinstance(body, Mapping) else body, sent
            )
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def raw(self, text: bytes, *, seconds: float = 10.0) -> bytes:
        """Send these bytes and nothing more; all that comes back until the end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(text)
            found = b""
            while part := connection.recv(65_536):
                found += part
            return found

    def mask(self, *members: Any, **more: Any) -> Answer:
        """Ask for a mask of these members."""
        return self.call(
            "POST", "/v1/mask", {"purpose": PURPOSE, "member_id": list(members), **more}
        )

    def stop(self) -> None:
        """End it."""
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.follower.hooks.stop()
        self.address.close(self.listener)


@pytest.fixture
def follower(snapshot: Snapshot) -> StillFollower:
    """One who lives in the US, one who opted out; everybody else is unknown."""
    follower = StillFollower(snapshot)
    follower.record("anna", moved("US", 1, on=1))
    follower.record("bert", moved("US", 1, on=1), chose(Choice.OPT_OUT, 2, on=2))
    return follower


@pytest.fixture
def start(follower: StillFollower) -> Iterator[Any]:
    """Start an agent with these options; it ends with the test."""
    running: list[RunningAgent] = []

    def begin(**options: Any) -> RunningAgent:
        running.append(RunningAgent(follower, **options))
        return running[-1]

    yield begin
    for one in running:
        one.stop()


@pytest.fixture
def agent(start: Any) -> RunningAgent:
    """A ready agent without tokens."""
    found: RunningAgent = start()
    found.follower.hooks.begin()
    return found


@pytest.fixture
def data(tmp_path: Path) -> SimpleNamespace:
    """A root with a clean and a bad file in it, and a file beside it."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "clean.csv").write_text("member_id\nanna\n")
    (root / "bad.csv").write_text("member_id\nanna\nbert\nbert\n")
    (tmp_path / "secret.csv").write_text("member_id\nanna\n")
    return SimpleNamespace(root=root, outside=tmp_path / "secret.csv")
