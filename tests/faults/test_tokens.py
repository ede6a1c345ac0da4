"""Asked with the token of an opt-out, nobody who is behind says allowed.

The new-enemy problem, ten thousand times.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import Message
from tests.sizes import size
from tests.stack import PURPOSE, Running, World, allowed, lives_in, opted_out, reason, wait_for

from consentry.domain.errors import Unavailable
from consentry.domain.values import Micros
from consentry.kafka.clients import log_identity
from consentry.trainer.client import Client
from consentry.wire.schemas import MEMBER_EVENTS
from consentry.wire.tokens import Token, TokenKeys, write_token

pytestmark = pytest.mark.stack

TRIES = size(small=2_000, full=10_000)
CALLERS = 8
LAG_SECONDS = 1.0


def held_back(client: Client) -> None:
    """Let everything reach this client late, but not so late that it would know."""
    follower = client._follower
    apply = follower._apply

    def later(messages: Sequence[Message]) -> None:
        time.sleep(LAG_SECONDS)
        apply(messages)

    follower._apply = later  # type: ignore[method-assign]


def address_of(gateway: Running) -> str:
    """HOST:PORT of a gateway."""
    lines = wait_for(lambda: gateway.lines("gateway"), "the gateway", seconds=40)
    return str(lines[0]["url"]).removeprefix("http://")


@pytest.mark.sized
def test_a_trainer_that_is_held_back_never_allows_what_the_token_forbids(world: World) -> None:
    """A member opts out, is told so, and the next batch trains on them: what tokens are there to
    prevent.

    Without the token the same trainer does allow: this test would notice tokens that do nothing.
    """
    world.processor().wait_ready()
    world.open_policy()
    gateway = world.start("gateway", "--dev", "--port", "0", GATEWAY_RATE="1000000")
    address = address_of(gateway)
    members = [f"m:{number}" for number in range(TRIES)]
    world.produce(*(lives_in(member) for member in members))
    client = world.client()
    wait_for(
        lambda: allowed(client, members[-1]) and len(client.snapshot.records) == TRIES,
        "everybody allowed",
    )
    held_back(client)
    outcomes: dict[str, Counter[str]] = {"with": Counter(), "without": Counter()}
    lock = threading.Lock()

    def opt_out_and_ask(share: list[str]) -> None:
        connection = http.client.HTTPConnection(address, timeout=30)
        for member in share:
            body = json.dumps({"member_id": member, "purpose": PURPOSE, "choice": "OPT_OUT"})
            headers = {
                "Authorization": "Bearer dev:web:producer",
                "Content-Type": "application/json",
            }
            connection.request("POST", "/v1/consent-changes", body, headers)
            answer = connection.getresponse()
            token = json.load(answer)["token"]
            assert answer.status == 202
            asked = client.decide(member, purpose=PURPOSE, at_least=token, wait_seconds=0)
            unasked = client.decide(member, purpose=PURPOSE)
            with lock:
                outcomes["with"][asked.reason.value] += 1
                outcomes["without"][unasked.reason.value] += 1
        connection.close()

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(opt_out_and_ask, [members[start::CALLERS] for start in range(CALLERS)]))

    assert outcomes["with"].total() == TRIES
    assert outcomes["with"]["DEFAULT_ON"] == 0, outcomes
    assert set(outcomes["with"]) <= {"STALE", "OPTED_OUT"}
    assert outcomes["without"]["DEFAULT_ON"] > TRIES // 2, outcomes
    wait_for(
        lambda: all(not allowed(client, member) for member in members[-50:]),
        "everybody excluded in the end",
    )


def test_a_trainer_waits_for_what_the_token_asks_and_then_knows(world: World) -> None:
    """Waiting a second beats answering STALE to every batch."""
    world.processor().wait_ready()
    world.open_policy()
    client = world.client()
    world.produce(lives_in("anna"))
    wait_for(lambda: allowed(client, "anna"), "allowed")
    [(partition, offset)] = world.produce(opted_out("anna"))
    log = log_identity(world.kafka, world.topic(MEMBER_EVENTS))
    token = write_token(Token(log, {partition: offset + 1}, 1, Micros(0)), TokenKeys())
    decision = client.decide("anna", purpose=PURPOSE, at_least=token, wait_seconds=10)
    assert decision.reason.value == "OPTED_OUT"
    client.wait_for(token, 0)
    ahead = write_token(Token(log, {partition: offset + 2}, 1, Micros(0)), TokenKeys())
    assert (
        client.decide("anna", purpose=PURPOSE, at_least=ahead, wait_seconds=0.2).reason.value
        == "STALE"
    )
    with pytest.raises(Unavailable, match="asks for"):
        client.wait_for(ahead, 0.2)


def test_a_token_of_another_log_or_of_controls_to_come_is_stale(world: World) -> None:
    """After a topic was made anew its small offsets are all reached: they must not count for the
    old ones.
    """
    world.processor().wait_ready()
    world.open_policy()
    client = world.client()
    world.produce(lives_in("anna"))
    wait_for(lambda: allowed(client, "anna"), "allowed")
    log = log_identity(world.kafka, world.topic(MEMBER_EVENTS))
    for token in (
        Token(b"another.", {0: 1}, 0, Micros(0)),
        Token(log, {}, 99, Micros(0)),
        Token(log, {99: 1}, 0, Micros(0)),
    ):
        text = write_token(token, TokenKeys())
        assert (
            client.decide("anna", purpose=PURPOSE, at_least=text, wait_seconds=0.1).reason.value
            == "STALE"
        )
    harmless = write_token(Token(log, {0: 0}, 1, Micros(0)), TokenKeys())
    assert (
        client.decide("anna", purpose=PURPOSE, at_least=harmless, wait_seconds=3).reason.value
        == "DEFAULT_ON"
    )
    assert reason(client, "anna") == "DEFAULT_ON"
