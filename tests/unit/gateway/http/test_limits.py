"""How much one caller, and all of them together, may ask."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.unit.gateway.in_memory import AUDITOR, PARTITIONS, PRODUCER, START, InMemoryGateway

from consentry.gateway.http import limits
from consentry.gateway.http.concurrency import ConcurrencyLimit
from consentry.gateway.http.limits import RateLimit, WaitingLimit
from consentry.ops.http.problems import Problem
from consentry.wire.tokens import Token, write_token

OPT_OUT = {"member_id": "m:1", "purpose": "p", "choice": "OPT_OUT"}


class Time:
    """A clock in seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(limit: RateLimit, caller: str = "a", cost: float = 1.0) -> int | None:
    """The seconds of Retry-After; None where it was taken."""
    try:
        limit.take(caller, cost)
    except Problem as problem:
        return int(problem.headers["Retry-After"]) if problem.status == 429 else -1
    return None


def test_a_burst_is_taken_and_then_the_rate_holds() -> None:
    """A nightly import must not be refused for coming at once, and must not keep all the others
    waiting.
    """
    time = Time()
    limit = RateLimit(per_second=10, burst=20, clock=time)

    assert [refused(limit) for _ in range(20)] == [None] * 20
    assert refused(limit) == 1
    time.now += 0.5
    assert [refused(limit) for _ in range(5)] == [None] * 5
    assert refused(limit) is not None
    time.now += 1000
    assert [refused(limit) for _ in range(20)] == [None] * 20
    assert refused(limit) is not None


def test_who_waits_as_told_is_taken() -> None:
    """Told too short a time, a polite client asks in vain again and again."""
    time = Time()
    limit = RateLimit(per_second=0.3, burst=1, clock=time)
    limit.take("a")

    for _ in range(5):
        wait = refused(limit)
        assert wait is not None
        time.now += wait
        assert refused(limit) is None


def test_a_request_larger_than_the_burst_is_taken_when_the_bucket_is_full_and_paid_later() -> None:
    """Ten thousand lines under a limit of five thousand a second would never be taken; nor may they
    be free.
    """
    time = Time()
    limit = RateLimit(per_second=10, burst=20, clock=time)

    assert refused(limit, cost=100) is None
    assert refused(limit) == 9
    time.now += 9
    assert refused(limit) is None
    assert refused(limit, cost=100) is not None


def test_one_caller_does_not_use_up_what_another_has() -> None:
    """One runaway job must not keep another producer's opt-outs waiting."""
    limit = RateLimit(per_second=1, burst=1, clock=Time())
    limit.take("a")

    assert refused(limit, "a") is not None
    assert refused(limit, "b") is None


def test_the_callers_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tokens of an issuer there is no end of subjects."""
    monkeypatch.setattr(limits, "CALLERS_MAX", 10)
    limit = RateLimit(per_second=1, burst=1, clock=Time())
    for number in range(100):
        limit.take(f"caller-{number}")

    assert len(limit._buckets) == 10
    assert refused(limit, "caller-99") is not None


def test_the_limit_is_told_over_http_and_binds_the_lines_of_a_bulk() -> None:
    """A client needs the seconds; and whoever is refused single events must not send them as
    lines.
    """
    gateway = InMemoryGateway(rate=10, burst=20)
    lines = b'{"member_id":"m:1","purpose":"p","choice":"OPT_OUT"}\n' * 30

    first = gateway.call("POST", "/v1/bulk", lines, content_type="application/x-ndjson")
    reply = gateway.call("POST", "/v1/consent-changes", OPT_OUT)

    assert reply.status == 429
    assert int(reply.headers["retry-after"]) >= 1
    assert first.status in (200, 429)
    assert gateway.call("POST", "/v1/consent-changes", OPT_OUT, "dev:other:producer").status == 202


def test_whoever_is_refused_has_not_used_up_an_idempotency_key() -> None:
    """Else the repetition after Retry-After would be told that its first request is still being
    answered.
    """
    gateway = InMemoryGateway(rate=1, burst=1)
    assert gateway.call("POST", "/v1/consent-changes", OPT_OUT).status == 202
    assert gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k").status == 429
    gateway.now += 2_000_000

    assert gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k").status == 202


def test_more_requests_than_places_are_told_to_come_again_and_places_come_free() -> None:
    """Without a bound a stalled broker would fill the memory with requests that wait for it."""
    started, released = 0, asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal started
        started += 1
        await released.wait()
        if scope["path"] == "/fails":
            raise RuntimeError("of ours")

    limit = ConcurrencyLimit(app, most=3)
    told: list[Any] = []

    async def send(message: Any) -> None:
        told.append(message)

    async def story() -> None:
        scope: dict[str, Any] = {"type": "http", "path": "/fails"}
        waiting = [asyncio.create_task(limit(scope, None, None)) for _ in range(3)]  # type: ignore[arg-type] # never used
        await asyncio.sleep(0)
        await limit({"type": "http", "path": "/"}, None, send)  # type: ignore[arg-type] # never read
        released.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        await limit({"type": "http", "path": "/"}, None, send)  # type: ignore[arg-type] # never read

    asyncio.run(story())

    assert started == 4
    assert told[0]["status"] == 503
    assert (b"retry-after", b"1") in told[0]["headers"]


def test_a_gateway_that_is_full_says_so_as_a_problem() -> None:
    """A bare 503 would be taken for the proxy's."""
    reply = InMemoryGateway(concurrency=0).call("POST", "/v1/consent-changes", OPT_OUT, PRODUCER)

    assert (reply.status, reply.code, reply.headers["retry-after"]) == (
        503,
        "limit.concurrency",
        "1",
    )


def test_places_to_wait_in_are_counted_by_caller_and_in_all_and_come_free() -> None:
    """One caller that asks with a token of nowhere would hold every other one's questions up."""
    limit = WaitingLimit(most=3, most_of_one=2)

    def told(caller: str) -> int:
        try:
            with limit.slot(caller):
                return 0
        except Problem as problem:
            return (
                problem.status
                if problem.code == "limit.waiting" and problem.headers["Retry-After"] == "1"
                else -1
            )

    with limit.slot("a"), limit.slot("a"):
        assert (told("a"), told("b")) == (429, 0)
        with limit.slot("b"):
            assert (told("a"), told("b"), told("c")) == (429, 503, 503)
        assert told("c") == 0
    assert told("a") == 0
    assert not limit._waiting


def test_questions_that_wait_keep_no_opt_out_waiting() -> None:
    """Twenty lines of script would have kept everybody's objections out for as long as it ran."""
    gateway = InMemoryGateway(concurrency=4)
    token = write_token(
        Token(b"thislog.", dict.fromkeys(range(PARTITIONS), 10**6), 0, START), gateway.token_keys
    )
    question = f"/v1/members/m:1/decision?purpose=p&wait=0.3&at_least={token}"
    gateway.log.beat(START)

    async def story() -> tuple[list[int], int, int]:
        asked = {"authorization": f"Bearer {AUDITOR}"}
        waiting = [
            asyncio.create_task(gateway.ask("GET", question, [b""], asked)) for _ in range(4)
        ]
        await asyncio.sleep(0.05)
        fifth = await gateway.ask("GET", question, [b""], asked)
        named = {"authorization": f"Bearer {PRODUCER}", "content-type": "application/json"}
        opt_out = await gateway.ask(
            "POST", "/v1/consent-changes", [json.dumps(OPT_OUT).encode()], named
        )
        return [one.status for one in await asyncio.gather(*waiting)], fifth.status, opt_out.status

    assert asyncio.run(story()) == ([200] * 4, 503, 202)


@pytest.mark.parametrize("path", ["decision", "explain"])
def test_a_caller_without_a_place_to_wait_in_still_gets_what_is_fresh(path: str) -> None:
    """The limit is for those who wait; a service that asks much and gets answers at once must not
    meet it.
    """
    gateway = InMemoryGateway()
    gateway.app._app._app._app.state.waiting = WaitingLimit(most=0)  # type: ignore[attr-defined] # inside its layers
    token = write_token(
        Token(b"thislog.", dict.fromkeys(range(PARTITIONS), 10**6), 0, START), gateway.token_keys
    )
    asked = f"/v1/members/m:1/{path}?purpose=p&wait=2"

    assert gateway.call("GET", asked, who=AUDITOR).status == 200
    assert gateway.call("GET", f"{asked}&at_least={token}", who=AUDITOR).code == "limit.waiting"
    assert (
        gateway.call(
            "GET", f"{asked}&at_least={token}".replace("wait=2", "wait=0"), who=AUDITOR
        ).status
        == 200
    )
