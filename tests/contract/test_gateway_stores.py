"""The gateway's stores keep one contract: in memory, and in a real Redis or Valkey."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import asdict, replace
from typing import Any

import pytest
import redis
from redis.asyncio import Redis
from structlog.testing import capture_logs
from tests.contract.gateway_store_contract import (
    KEY,
    IdempotencyStoreContract,
    ProposalStoreContract,
    attempt,
    proposal,
)

from consentry.domain.errors import Unavailable
from consentry.gateway.idempotency import (
    KEPT_SECONDS,
    Attempt,
    IdempotencyStore,
    InMemoryIdempotency,
    RedisIdempotency,
)
from consentry.gateway.proposals import (
    LOCK_SECONDS,
    InMemoryProposals,
    Proposal,
    ProposalStore,
    RedisProposals,
)
from consentry.local.ports import free_ports
from consentry.local.stack import LocalStack
from consentry.wire.tokens import TokenKeys

OLD_KEY, NEW_KEY = {1: b"a" * 32}, {2: b"b" * 32}


class TestInMemoryIdempotency(IdempotencyStoreContract):
    @pytest.fixture
    def store(self) -> IdempotencyStore:
        return InMemoryIdempotency()


class TestInMemoryProposals(ProposalStoreContract):
    @pytest.fixture
    def store(self) -> ProposalStore:
        return InMemoryProposals()


class Shared:
    """A real server: each call has a connection of its own, as each test has an event loop of its
    own.
    """

    def __init__(self, url: str, keys: TokenKeys | None = None) -> None:
        self.url = url
        self.keys = TokenKeys(OLD_KEY) if keys is None else keys

    async def with_redis(self, act: Callable[[Redis], Coroutine[Any, Any, Any]]) -> Any:
        connection = Redis.from_url(self.url, protocol=3, socket_timeout=2)
        try:
            return await act(connection)
        finally:
            await connection.aclose()


class SharedIdempotency(Shared):
    """RedisIdempotency, call by call."""

    async def claim(self, key: str, attempt: Attempt) -> Attempt | None:
        found: Attempt | None = await self.with_redis(lambda one: self._on(one).claim(key, attempt))
        return found

    async def finish(self, key: str, attempt: Attempt) -> None:
        await self.with_redis(lambda one: self._on(one).finish(key, attempt))

    async def forget(self, key: str) -> None:
        await self.with_redis(lambda one: self._on(one).forget(key))

    def _on(self, connection: Redis) -> RedisIdempotency:
        return RedisIdempotency(connection, namespace="contract")


class SharedProposals(Shared):
    """RedisProposals, call by call."""

    async def put(self, proposal: Proposal) -> None:
        await self.with_redis(lambda one: self._on(one).put(proposal))

    async def get(self, proposal_id: str) -> Proposal | None:
        found: Proposal | None = await self.with_redis(lambda one: self._on(one).get(proposal_id))
        return found

    async def newest(self) -> list[Proposal]:
        found: list[Proposal] = await self.with_redis(lambda one: self._on(one).newest())
        return found

    async def lock(self, proposal_id: str) -> str | None:
        found: str | None = await self.with_redis(lambda one: self._on(one).lock(proposal_id))
        return found

    async def unlock(self, proposal_id: str, ticket: str) -> None:
        await self.with_redis(lambda one: self._on(one).unlock(proposal_id, ticket))

    def _on(self, connection: Redis) -> RedisProposals:
        return RedisProposals(connection, namespace="contract", keys=self.keys)


@pytest.fixture
def server(shared: LocalStack) -> redis.Redis:
    """The stack's server, with nothing of ours in it."""
    connection = redis.Redis.from_url(shared.addresses.redis_url, decode_responses=True)
    for key in connection.scan_iter("contract:*"):
        connection.delete(key)
    return connection


@pytest.mark.stack
class TestRedisIdempotency(IdempotencyStoreContract):
    @pytest.fixture
    def store(self, shared: LocalStack, server: redis.Redis) -> IdempotencyStore:
        return SharedIdempotency(shared.addresses.redis_url)

    def test_a_key_is_kept_for_a_day_and_no_longer(
        self, store: IdempotencyStore, server: redis.Redis
    ) -> None:
        """Kept for ever, keys would fill the memory that the consent table lives in, which evicts
        nothing.
        """
        asyncio.run(store.claim(KEY, attempt()))
        assert KEPT_SECONDS - 60 < int(server.ttl(f"contract:idempotency:{KEY}")) <= KEPT_SECONDS

        asyncio.run(store.finish(KEY, attempt()))
        assert KEPT_SECONDS - 60 < int(server.ttl(f"contract:idempotency:{KEY}")) <= KEPT_SECONDS

    def test_each_of_many_requests_gets_the_answer_to_its_own(
        self, shared: LocalStack, server: redis.Redis
    ) -> None:
        """They share their round trips: one caller's answer told to another would be another
        caller's token.
        """

        async def story() -> None:
            connection = Redis.from_url(shared.addresses.redis_url, protocol=3, socket_timeout=2)
            store = RedisIdempotency(connection, namespace="contract")
            names = [f"{number % 50:040x}" for number in range(500)]

            found = await asyncio.gather(
                *(store.claim(name, attempt(int(name, 16))) for name in names)
            )
            later = await asyncio.gather(*(store.claim(name, attempt(999)) for name in names))

            assert found.count(None) == 50
            assert all(
                one in (None, attempt(int(name, 16)))
                for name, one in zip(names, found, strict=True)
            )
            assert later == [attempt(int(name, 16)) for name in names]
            await connection.aclose()

        asyncio.run(story())

    def test_a_fault_in_between_is_told_to_each_and_the_next_are_answered(
        self, shared: LocalStack, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Cancelled in place of told, a request would end without an answer of ours."""

        async def story() -> None:
            connection = Redis.from_url(shared.addresses.redis_url, protocol=3, socket_timeout=2)
            store = RedisIdempotency(connection, namespace="contract")
            with monkeypatch.context() as patched:
                patched.setattr(redis.asyncio.client.Pipeline, "execute", fails)
                told = await asyncio.gather(
                    *(store.claim(KEY, attempt()) for _ in range(5)), return_exceptions=True
                )
            assert [type(one) for one in told] == [OSError] * 5
            assert await store.claim(KEY, attempt()) is None
            await connection.aclose()

        async def fails(*_: object, **__: object) -> None:
            raise OSError("broken")

        asyncio.run(story())


@pytest.mark.stack
class TestRedisProposals(ProposalStoreContract):
    @pytest.fixture
    def store(self, shared: LocalStack, server: redis.Redis) -> ProposalStore:
        return SharedProposals(shared.addresses.redis_url)

    def test_a_lock_ends_with_its_gateway(self, store: ProposalStore, server: redis.Redis) -> None:
        """A gateway that was killed while it decided would leave a proposal that nobody can
        decide.
        """
        one = proposal()
        asyncio.run(store.lock(one.proposal_id))

        assert 0 < int(server.ttl(f"contract:proposal:{one.proposal_id}:lock")) <= LOCK_SECONDS

    @pytest.mark.parametrize("field", ["form", "requested_by", "expires_at", "state"])
    def test_a_proposal_that_was_altered_in_redis_is_not_read(
        self, store: ProposalStore, server: redis.Redis, field: str
    ) -> None:
        """Whoever can write to Redis could have the second person approve another lift, or approve
        their own.
        """
        one = proposal()
        asyncio.run(store.put(one))
        name = f"contract:proposal:{one.proposal_id}"
        kept = json.loads(str(server.get(name)))
        changes: dict[str, Any] = {
            "form": {"pause": "*"},
            "requested_by": "eva",
            "expires_at": 1,
            "state": "open",
        }
        forged = replace(one, **{field: changes[field]})
        server.set(
            name,
            json.dumps(kept | {"body": json.dumps(asdict(forged) | {"opens": []}, sort_keys=True)}),
        )

        with capture_logs() as logged:
            assert asyncio.run(store.get(one.proposal_id)) is None
            assert asyncio.run(store.newest()) == []

        assert {line["event"] for line in logged} == {"proposal_forged"}

    def test_a_proposal_under_the_name_of_another_is_not_read(
        self, store: ProposalStore, server: redis.Redis
    ) -> None:
        """A signed proposal, copied over another one, would be approved by somebody who meant the
        other.
        """
        harmless, wide = proposal(1), proposal(2)
        asyncio.run(store.put(harmless))
        asyncio.run(store.put(wide))
        server.set(
            f"contract:proposal:{harmless.proposal_id}",
            str(server.get(f"contract:proposal:{wide.proposal_id}")),
        )

        assert asyncio.run(store.get(harmless.proposal_id)) is None

    @pytest.mark.parametrize("key_id", [0, 9, "1", None])
    def test_a_proposal_signed_with_no_key_of_ours_is_not_read(
        self, store: ProposalStore, server: redis.Redis, key_id: object
    ) -> None:
        """The checksum that stands in for a signature where there are no keys can be written by
        anybody.
        """
        one = proposal()
        body = json.dumps(asdict(one), sort_keys=True)
        mac = TokenKeys().mac(0, b"proposal\0" + body.encode()).hex()
        server.set(
            f"contract:proposal:{one.proposal_id}",
            json.dumps({"key": key_id, "mac": mac, "body": body}),
        )

        assert asyncio.run(store.get(one.proposal_id)) is None

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"key":1,"mac":"é","body":"{}"}', '"x"', "null"]
    )
    def test_what_is_no_proposal_is_none(
        self, store: ProposalStore, server: redis.Redis, text: str
    ) -> None:
        """A fault in one entry must not take the whole list, and with it every lift, away from the
        desk.
        """
        one = proposal(2)
        asyncio.run(store.put(one))
        server.set("contract:proposal:" + "00" * 16, text)
        server.zadd("contract:proposals", {"00" * 16: 1.8e15})

        assert asyncio.run(store.get("00" * 16)) is None
        assert asyncio.run(store.newest()) == [one]

    def test_a_new_key_reads_what_an_older_one_signed_until_that_is_taken_away(
        self, shared: LocalStack, server: redis.Redis
    ) -> None:
        """A rotation must not lose the proposals that wait, and must end what a stolen key could
        sign.
        """
        one, url = proposal(), shared.addresses.redis_url
        asyncio.run(SharedProposals(url, TokenKeys(OLD_KEY)).put(one))

        assert (
            asyncio.run(SharedProposals(url, TokenKeys(OLD_KEY | NEW_KEY)).get(one.proposal_id))
            == one
        )
        assert asyncio.run(SharedProposals(url, TokenKeys(NEW_KEY)).get(one.proposal_id)) is None
        assert asyncio.run(SharedProposals(url, TokenKeys()).get(one.proposal_id)) is None

    def test_a_rewritten_proposal_is_signed_with_the_newest_key(
        self, shared: LocalStack, server: redis.Redis
    ) -> None:
        """Else the old key could never be taken away."""
        one, url = proposal(), shared.addresses.redis_url
        asyncio.run(SharedProposals(url, TokenKeys(OLD_KEY)).put(one))
        asyncio.run(SharedProposals(url, TokenKeys(OLD_KEY | NEW_KEY)).put(one))

        assert asyncio.run(SharedProposals(url, TokenKeys(NEW_KEY)).get(one.proposal_id)) == one


class TestWithoutRedis:
    """Nothing listens there: as after a crash of Redis."""

    @pytest.fixture
    def url(self) -> str:
        return f"redis://127.0.0.1:{free_ports(1)[0]}/0"

    def test_every_call_says_that_it_may_be_repeated(self, url: str) -> None:
        """Any other error would be answered 500, and a repetition would not be known to be safe."""
        keys, proposals = SharedIdempotency(url), SharedProposals(url)
        calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: keys.claim(KEY, attempt()),
            lambda: keys.finish(KEY, attempt()),
            lambda: keys.forget(KEY),
            lambda: proposals.put(proposal()),
            lambda: proposals.get("00" * 16),
            proposals.newest,
            lambda: proposals.lock("00" * 16),
        ]

        for call in calls:
            with pytest.raises(Unavailable):
                asyncio.run(call())

    def test_unlocking_does_not_hide_what_became_of_the_approval(self, url: str) -> None:
        """The control stands in the log; an error about the lock would be told in place of that."""
        with capture_logs() as logged:
            asyncio.run(SharedProposals(url).unlock("00" * 16, "ticket"))

        assert [line["event"] for line in logged] == ["proposal_not_unlocked"]
