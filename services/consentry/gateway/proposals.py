"""Proposals at the gateway: what would widen use waits here for a second person.

They are lifts, opening policies, releases and replays. A proposal is kept in Redis only until it is
decided, signed where there are token keys. Its result stands in the log, and names both persons.
Losing Redis loses open proposals, which opens nothing.
"""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import asdict, dataclass, replace
from time import monotonic
from typing import Any, ClassVar, Final, Literal, NamedTuple, Protocol

import structlog
from pydantic import ConfigDict, TypeAdapter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from consentry.domain.errors import Unavailable
from consentry.domain.values import DAY_MICROS, Micros
from consentry.forms.document import Document
from consentry.ops.http.problems import Problem
from consentry.wire.tokens import TokenKeys

ProposalKind = Literal["lift", "policy", "release", "replay"]
State = Literal["open", "approving", "approved", "rejected"]
OPEN_MICROS: Final = Micros(7 * DAY_MICROS)
KEPT_SECONDS: Final = 30 * 86_400
LISTED_MAX: Final = 200
LOCK_SECONDS: Final = 60
_UNLOCK: Final = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)
_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A proposal at the gateway that waits for a second person: its request, effects and state.

    The request is plain values in `form`; its effects are in `opens`.

    Times are in microseconds. `decided_at` is the time that the control or event gets, also when
    approving is repeated; `tried_at` is that of the last attempt to send it. `digest` says exactly
    what `opens` says in words.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    proposal_id: str
    kind: ProposalKind
    form: dict[str, Any]
    opens: list[str]
    requested_by: str
    requested_at: Micros
    expires_at: Micros
    state: State = "open"
    decided_by: str = ""
    decided_at: Micros = Micros(0)
    tried_at: Micros = Micros(0)
    digest: str = ""
    result: dict[str, Any] | None = None

    @property
    def event_id(self) -> bytes:
        """The identity of the one event or control that this proposal can become."""
        return bytes.fromhex(self.proposal_id)


_PROPOSAL: Final = TypeAdapter(Proposal)


class SignedProposal(Document):
    """A proposal as the gateway stores it: `body` is its JSON text, `mac` its signature.

    `mac` is made with the token key.
    """

    key: int
    mac: str
    body: str


class ProposalRequest(NamedTuple):
    """A request to the gateway that needs a second person: plain values, and its effects.

    The effects are in words and as an exact digest.
    """

    kind: ProposalKind
    form: dict[str, Any]
    opens: list[str]
    digest: str = ""


def new_proposal(request: ProposalRequest, *, proposal_id: str, by: str, now: Micros) -> Proposal:
    """Return a proposal made at the gateway now; its id has 32 hexadecimal digits."""
    return Proposal(
        proposal_id=proposal_id,
        kind=request.kind,
        form=request.form,
        opens=request.opens,
        requested_by=by,
        requested_at=now,
        expires_at=Micros(now + OPEN_MICROS),
        digest=request.digest,
    )


class ProposalStore(Protocol):
    """The gateway's store of proposals by id. Every call may raise Unavailable."""

    async def put(self, proposal: Proposal) -> None:
        """Keep the proposal with its state of now."""
        ...

    async def get(self, proposal_id: str) -> Proposal | None:
        """Return the proposal; None without one, and where it was tampered with."""
        ...

    async def newest(self) -> list[Proposal]:
        """Return the newest LISTED_MAX proposals, newest first."""
        ...

    async def lock(self, proposal_id: str) -> str | None:
        """Return a ticket to decide the proposal until `unlock`, for at most LOCK_SECONDS.

        None while somebody else has one.
        """
        ...

    async def unlock(self, proposal_id: str, ticket: str) -> None:
        """Let others decide the proposal.

        Does nothing where the ticket's time is over and somebody else has one by now.
        """
        ...


class InMemoryProposals:
    """The gateway's proposals in the memory of this process only."""

    def __init__(self) -> None:
        self._proposals: dict[str, Proposal] = {}
        self._locks: dict[str, tuple[str, float]] = {}

    async def put(self, proposal: Proposal) -> None:
        """See ProposalStore."""
        self._proposals[proposal.proposal_id] = proposal
        for other in list(self._proposals.values()):
            if _is_expired(other, proposal.requested_at):
                del self._proposals[other.proposal_id]

    async def get(self, proposal_id: str) -> Proposal | None:
        """See ProposalStore."""
        return self._proposals.get(proposal_id)

    async def newest(self) -> list[Proposal]:
        """See ProposalStore."""
        newest_first = sorted(self._proposals.values(), key=lambda one: -one.requested_at)
        return newest_first[:LISTED_MAX]

    async def lock(self, proposal_id: str) -> str | None:
        """See ProposalStore."""
        if proposal_id in self._locks and self._locks[proposal_id][1] > monotonic():
            return None
        ticket = secrets.token_hex(16)
        self._locks[proposal_id] = (ticket, monotonic() + LOCK_SECONDS)
        return ticket

    async def unlock(self, proposal_id: str, ticket: str) -> None:
        """See ProposalStore."""
        if proposal_id in self._locks and self._locks[proposal_id][0] == ticket:
            del self._locks[proposal_id]


class RedisProposals:
    """The gateway's proposals in Redis, shared by all gateways of a namespace."""

    def __init__(self, redis: Redis, *, namespace: str, keys: TokenKeys) -> None:
        self._redis = redis
        self._prefix = f"{namespace}:proposal:"
        self._index = f"{namespace}:proposals"
        self._unlock = redis.register_script(_UNLOCK)
        self._keys = keys

    async def put(self, proposal: Proposal) -> None:
        """See ProposalStore."""
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(
                    self._prefix + proposal.proposal_id, self._write(proposal), ex=KEPT_SECONDS
                )
                pipe.zadd(self._index, {proposal.proposal_id: proposal.requested_at})
                pipe.zremrangebyscore(
                    self._index, 0, proposal.requested_at - KEPT_SECONDS * 1_000_000
                )
                await pipe.execute()
        except RedisError as error:
            raise _unavailable(error) from error

    async def get(self, proposal_id: str) -> Proposal | None:
        """See ProposalStore."""
        try:
            text = await self._redis.get(self._prefix + proposal_id)
        except RedisError as error:
            raise _unavailable(error) from error
        return None if text is None else self._read(text, proposal_id)

    async def newest(self) -> list[Proposal]:
        """See ProposalStore."""
        try:
            members: list[Any] = list(await self._redis.zrevrange(self._index, 0, LISTED_MAX - 1))
            ids = [_text(member) for member in members]
            names = [self._prefix + proposal_id for proposal_id in ids]
            texts = await self._redis.mget(names) if names else []
        except RedisError as error:
            raise _unavailable(error) from error
        proposals = []
        for proposal_id, text in zip(ids, texts, strict=True):
            proposal = None if text is None else self._read(text, proposal_id)
            if proposal is not None:
                proposals.append(proposal)
        return proposals

    async def lock(self, proposal_id: str) -> str | None:
        """See ProposalStore."""
        ticket = secrets.token_hex(16)
        try:
            is_locked = await self._redis.set(
                self._lock_key(proposal_id), ticket, nx=True, ex=LOCK_SECONDS
            )
        except RedisError as error:
            raise _unavailable(error) from error
        return ticket if is_locked else None

    async def unlock(self, proposal_id: str, ticket: str) -> None:
        """See ProposalStore. Where Redis does not answer, the lock ends by itself."""
        try:
            await self._unlock(keys=[self._lock_key(proposal_id)], args=[ticket])
        except RedisError as error:
            _LOG.warning("proposal_not_unlocked", detail=type(error).__name__)

    def _lock_key(self, proposal_id: str) -> str:
        return f"{self._prefix}{proposal_id}:lock"

    def _write(self, proposal: Proposal) -> str:
        body = json.dumps(asdict(proposal), sort_keys=True)
        key_id = self._keys.signing
        return json.dumps({"key": key_id, "mac": self._mac(key_id, body), "body": body})

    def _read(self, text: bytes | str, proposal_id: str) -> Proposal | None:
        """Return the proposal.

        None, and a log line, where it is not what we signed as this one: somebody else wrote it.
        """
        try:
            signed = SignedProposal.model_validate_json(text)
            is_our_key = signed.key == self._keys.signing or (self._keys and signed.key != 0)
            if is_our_key and hmac.compare_digest(signed.mac, self._mac(signed.key, signed.body)):
                proposal = _PROPOSAL.validate_json(signed.body, strict=True)
                if proposal.proposal_id == proposal_id:
                    return proposal
        except (ValueError, TypeError, KeyError) as error:
            _LOG.error("proposal_unreadable", detail=type(error).__name__)
            return None
        _LOG.error("proposal_forged")
        return None

    def _mac(self, key_id: int, body: str) -> str:
        return self._keys.mac(key_id, b"proposal\0" + body.encode()).hex()


def _is_expired(proposal: Proposal, now: Micros) -> bool:
    return proposal.requested_at < now - KEPT_SECONDS * 1_000_000


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _unavailable(error: RedisError) -> Unavailable:
    return Unavailable(
        f"The store of proposals did not answer ({type(error).__name__}).",
        code="proposals.unavailable",
        fix="check Redis, then send the request again",
    )


def check_decidable(proposal: Proposal | None, *, by: str, now: Micros) -> Proposal:
    """Return the gateway's proposal, if this person may approve or reject it now.

    Raises Problem 403, 404 and 409.
    """
    if proposal is None:
        raise Problem(
            404,
            "There is no such proposal.",
            code="approval.unknown",
            fix="GET /v1/approvals lists those there are",
        )
    if proposal.state in ("approved", "rejected"):
        raise Problem(
            409,
            f"The proposal was {proposal.state} before.",
            code="approval.decided",
            fix="propose it again if it is still wanted",
        )
    if now > proposal.expires_at and proposal.state == "open":
        raise Problem(
            409, "The proposal has expired.", code="approval.expired", fix="propose it again"
        )
    if by == proposal.requested_by:
        raise Problem(
            403,
            "Whoever proposes something cannot approve or reject it: it takes a second person.",
            code="approval.own",
            fix="have somebody else with the role approver look at it",
        )
    return proposal


def both_persons(proposal: Proposal) -> str:
    """Return the source field of an approved proposal at the gateway: it names both persons.

    It is the source of the proposal's control or event.

    It is never cut: a subject has at most 200 characters, a source 512 bytes.
    """
    return f"{_requested(proposal)}{proposal.decided_by}"


def as_in_log(proposal: Proposal, *, source: str, recorded_at: Micros) -> Proposal:
    """Return the gateway's proposal with the approver and time that the log of controls names.

    The log keeps them when the store has forgotten.
    """
    return replace(
        proposal, decided_by=source.removeprefix(_requested(proposal)), decided_at=recorded_at
    )


def _requested(proposal: Proposal) -> str:
    return f"{proposal.requested_by}, approved by "


def being_decided(proposal: Proposal, *, by: str, now: Micros) -> Proposal:
    """Return the gateway's proposal marked as being decided, while its event is sent.

    A repetition keeps the first time, so that it sends the same event.
    """
    if proposal.state == "approving":
        return replace(proposal, tried_at=now)
    return replace(proposal, state="approving", decided_by=by, decided_at=now, tried_at=now)
