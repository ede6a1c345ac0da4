"""A whole gateway in this process: the real application over a log, a table and stores that live in
memory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaError
from tests.strategies import NAMESPACE, PURPOSE, new_catalog
from tests.table import load_partition, store_partition

from consentry.domain.controls import Control, Controls
from consentry.domain.events import MemberEvent
from consentry.domain.records import Record, fold
from consentry.domain.values import Micros
from consentry.gateway.access import Authenticator
from consentry.gateway.access.dev import DevScheme
from consentry.gateway.app import build_gateway
from consentry.gateway.context import GatewayContext
from consentry.gateway.http.limits import RateLimit
from consentry.gateway.idempotency import IdempotencyStore, InMemoryIdempotency
from consentry.gateway.kafka_submit import Submitter
from consentry.gateway.proposals import InMemoryProposals, ProposalStore
from consentry.gateway.quarantine import QuarantinedMessages
from consentry.gateway.table_reader import TableReader
from consentry.kafka.controls_follower import ControlsFollower
from consentry.kafka.sender import Delivered, Headers, QueueFull, Sender, TopicPosition, Undelivered
from consentry.ops.metrics import Metrics
from consentry.table.memory import InMemoryTable
from consentry.wire.controls import read_control
from consentry.wire.events import read_event
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.partitions import partition_of
from consentry.wire.records import read_record, write_record
from consentry.wire.schemas import CONTROLS, topic_name
from consentry.wire.tokens import TokenKeys

START: Final = Micros(1_750_000_000_000_000)
PARTITIONS: Final = 4
CATALOG: Final = new_catalog()
PRODUCER: Final = "dev:billing:producer"
DESK: Final = "dev:dora:desk"
APPROVER: Final = "dev:eva:approver"
AUDITOR: Final = "dev:adam:auditor"
EVERYTHING: Final = "dev:all:producer+desk+approver+auditor"
POLICY: Final[dict[str, Any]] = {
    "version": "1",
    "terms": [{"jurisdictions": ["*"], "purpose": PURPOSE, "regime": "DEFAULT_ON"}],
}


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
        """The problem's code."""
        return str(self.json["code"])


class Log(Sender):
    """Stands where Kafka does: what is sent is appended, folded and followed at once, unless
    `fails` says otherwise.

    "silent": appended, and never acknowledged. "lost": neither. "full": not taken. "refused": told
    that it was not.
    """

    def __init__(self, table: InMemoryTable, controls: FollowedControls) -> None:
        self.fails = ""
        self.messages: list[tuple[str, bytes, bytes, Headers]] = []
        self._table = table
        self._controls = controls
        self._epochs = {partition: self._opened(partition) for partition in range(PARTITIONS)}

    @property
    def waiting(self) -> int:
        return 0

    def serve(self, seconds: float = 0.0) -> None:
        """Whoever is told is told at once."""

    @property
    def events(self) -> list[MemberEvent]:
        """The member events of the log, in order."""
        return [
            read_event(value, key, CATALOG)
            for topic, key, value, _ in self.messages
            if not topic.endswith(CONTROLS)
        ]

    @property
    def controls(self) -> list[Control]:
        """The controls of the log, in order."""
        return [
            read_control(value, CATALOG)
            for topic, _, value, _ in self.messages
            if topic.endswith(CONTROLS)
        ]

    def send(
        self, topic: str, key: bytes, value: bytes, headers: Headers, delivered: Delivered
    ) -> None:
        if self.fails == "full":
            raise QueueFull
        if self.fails == "refused":
            delivered(Undelivered(topic, KafkaError(KafkaError.NOT_ENOUGH_REPLICAS)))
            return
        if self.fails == "lost":
            return
        self.messages.append((topic, key, value, headers))
        is_control = topic == topic_name(NAMESPACE, CONTROLS)
        place = (
            self._controls.follow(read_control(value, CATALOG))
            if is_control
            else self._fold(key, value)
        )
        if not self.fails:
            delivered(place)

    def record(self, member: str) -> Record | None:
        """What the member's events fold to."""
        [raw] = load_partition(
            self._table, partition_of(member.encode(), PARTITIONS), [member.encode()]
        )
        return None if raw is None else read_record(raw, member.encode())

    def beat(self, now: Micros) -> None:
        """Prove that table and controls are fresh."""
        self._controls.fresh_at = now
        for partition, epoch in self._epochs.items():
            offset = self._table.meta(partition).next_offset or 0
            self._table.heartbeat(partition, epoch=epoch, expected_offset=offset, frontier_at=now)

    def _opened(self, partition: int) -> int:
        epoch = self._table.claim(partition, min_epoch=0).epoch
        self._table.start_generation(
            partition, epoch=epoch, generation="g", next_offset=0, tainted=False
        )
        return epoch

    def _fold(self, key: bytes, value: bytes) -> TopicPosition:
        partition = partition_of(key, PARTITIONS)
        record = fold(self.record(key.decode()), read_event(value, key, CATALOG))
        offset = self._table.meta(partition).next_offset or 0
        store_partition(
            self._table,
            partition,
            {key: write_record(record, CATALOG.frame_of("ConsentRecord"))},
            epoch=self._epochs[partition],
            expected_offset=offset,
            next_offset=offset + 1,
        )
        return TopicPosition(partition, offset)


class FollowedControls(ControlsFollower):
    """Controls as they are followed, without a broker."""

    position = 0

    def __init__(self) -> None:
        self.fresh_at = START
        self.controls = Controls(iso_jurisdictions())

    def follow(self, control: Control) -> TopicPosition:
        self.controls = self.controls.after(control)
        self.position += 1
        return TopicPosition(0, self.position - 1)


@dataclass
class InMemoryGateway:
    """One gateway. `now` is its clock; events carry that time."""

    idempotency: IdempotencyStore = field(default_factory=InMemoryIdempotency)
    proposals: ProposalStore = field(default_factory=InMemoryProposals)
    rate: float = 1e6
    burst: float = 1e6
    concurrency: int = 512
    token_keys: TokenKeys = field(default_factory=lambda: TokenKeys({1: b"k" * 32}))
    now: int = START
    is_fresh: bool = True

    def __post_init__(self) -> None:
        self.table = InMemoryTable()
        self.controls = FollowedControls()
        self.log = Log(self.table, self.controls)
        self.metrics = Metrics("test")
        submitter = Submitter(self.log, CATALOG, namespace=NAMESPACE, answer_seconds=0.1)
        self.context = GatewayContext(
            authenticator=Authenticator([DevScheme(bind_host="127.0.0.1", profile="local")]),
            submitter=submitter,
            reader=TableReader(
                self.table,
                self.controls,
                partitions=PARTITIONS,
                log=b"thislog.",
                staleness_seconds=5,
                clock=lambda: Micros(self.now),
            ),
            idempotency=self.idempotency,
            proposals=self.proposals,
            quarantine=QuarantinedMessages(
                {}, namespace=NAMESPACE, catalog=CATALOG, submitter=submitter
            ),
            rate=RateLimit(per_second=self.rate, burst=self.burst, clock=lambda: self.now / 1e6),
            token_keys=self.token_keys,
            clock=lambda: Micros(self.now),
            metrics=self.metrics,
            subscribers=(("ranker", "posts"), ("ranker", "profiles"), ("ads", "clicks")),
            version="0",
        )
        self.app = build_gateway(self.context, concurrency=self.concurrency)

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
        if self.is_fresh:
            self.log.beat(Micros(self.now))
        sent = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        named = {"content-type": "application/json"} | {
            name.replace("_", "-"): text for name, text in headers.items()
        }
        if who is not None:
            named["authorization"] = f"Bearer {who}"
        return asyncio.run(self.ask(method, path, [sent], named))

    async def ask(
        self,
        method: str,
        path: str,
        body: Iterable[bytes] | AsyncIterable[bytes],
        headers: Mapping[str, str],
    ) -> Reply:
        """One request with its body in pieces."""
        path, _, query = path.partition("?")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (name.lower().encode(), text.encode("latin-1")) for name, text in headers.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        pieces = body if isinstance(body, AsyncIterable) else _given(body)
        iterator = aiter(pieces)
        answer: list[Any] = []

        async def receive() -> dict[str, Any]:
            async for piece in iterator:
                return {"type": "http.request", "body": piece, "more_body": True}
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            answer.append(message)

        await self.app(scope, receive, send)
        found = {name.decode(): text.decode("latin-1") for name, text in answer[0]["headers"]}
        return Reply(
            answer[0]["status"], found, b"".join(one.get("body", b"") for one in answer[1:])
        )

    # ---- what most stories begin with

    def publish(self, policy: Mapping[str, Any] = POLICY) -> None:
        """Have two persons publish a policy, by default one that allows everywhere."""
        approval = self.propose("/v1/policies", policy)
        assert self.call("POST", f"/v1/approvals/{approval}/approve", who=APPROVER).status == 200

    def propose(self, path: str, body: object, who: str = DESK) -> str:
        """Propose something; the id of the proposal."""
        reply = self.call("POST", path, body, who)
        assert reply.status == 202, reply
        return str(reply.json["approval_id"])

    def settle(self, member: str = "m:1", jurisdiction: str = "US") -> None:
        """A grown-up member lives somewhere."""
        body = {"member_id": member, "jurisdiction": jurisdiction, "age_band": "ADULT"}
        assert self.call("POST", "/v1/relocations", body).status == 202

    def decision(self, member: str = "m:1", purpose: str = PURPOSE, **more: str) -> Any:
        """The answer to a question about a member."""
        query = "&".join(
            f"{name}={text}" for name, text in {"purpose": purpose, "wait": "0", **more}.items()
        )
        return self.call("GET", f"/v1/members/{member}/decision?{query}").json


async def _given(pieces: Iterable[bytes]) -> AsyncIterable[bytes]:
    for piece in pieces:
        yield piece
