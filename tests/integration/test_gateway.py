"""The gateway over the real stack: what it accepts is durable, counts once, is readable at once,
and takes two.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis
from tests.gateway import AUDITOR, DESK, PRODUCER, Gateway, Reply, frozen_broker
from tests.stack import PARTITIONS, PURPOSE, SHARED, World, lives_in, now, wait_for

from consentry.domain.controls import PauseLifted
from consentry.domain.events import ConsentChanged
from consentry.domain.values import Choice, MemberId
from consentry.gateway.idempotency import Attempt, RedisIdempotency, left_open, store_key
from consentry.gateway.quarantine import QuarantinedMessages
from consentry.local.stack import LocalStack
from consentry.wire.controls import read_control
from consentry.wire.events import CLOCK_TOLERANCE, read_event, write_event
from consentry.wire.partitions import partition_of
from consentry.wire.quarantine import QuarantineEntry
from consentry.wire.schemas import CONTROLS

pytestmark = pytest.mark.stack

NDJSON = "application/x-ndjson"


@pytest.fixture(scope="module")
def world(shared: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One namespace for all of these stories, each with members of its own; a processor runs on
    it.
    """
    SHARED.mend()
    world = World(shared, tmp_path_factory.mktemp("gateway"))
    try:
        processor = world.processor()
        world.open_policy()
        processor.wait_ready()
        yield world
    finally:
        world.close()
        SHARED.mend()


@pytest.fixture(scope="module")
def gateway(world: World) -> Gateway:
    return Gateway(world)


def events_of(world: World, member: str) -> list[Any]:
    """The member's events in the log."""
    return [
        read_event(one.value, one.key or b"", world.catalog)
        for one in world.log()
        if one.key == member.encode()
    ]


def lifts_of(world: World, pause: str) -> list[PauseLifted]:
    """The lifts of a pause in the log, repetitions among them."""
    found = [read_control(one.value, world.catalog) for one in world.log(CONTROLS)]
    return [one for one in found if isinstance(one, PauseLifted) and one.pause == pause]


def version_of(world: World, gateway: Gateway, member: str, token: str = "") -> int:
    """How many facts the member's record ever had."""
    found = gateway.decision(member, token)
    assert found["version"] is not None, found
    return int(found["version"])


def wait_fresh(world: World, gateway: Gateway) -> None:
    """Return once the table is followed again; a processor that ended meanwhile is started again,
    as it would be.
    """

    def look() -> bool:
        if not any(one.is_running for one in world._running if "processor" in one.log.name):
            world.processor()
        return bool(gateway.call("GET", "/v1/status", who=DESK).json["ok"])

    try:
        wait_for(look, "the table is fresh", seconds=90, every=0.5)
    except AssertionError:
        print([one.text()[-3000:] for one in world._running if "processor" in one.log.name])
        raise


def lift_in_two_steps(gateway: Gateway, pause: str, *places: str) -> str:
    """Impose a pause, and propose its lift; the approval."""
    imposed = gateway.accept("/v1/pauses", {"pause": pause, "jurisdictions": places}, DESK)
    wait_for(
        lambda: gateway.call("GET", "/v1/controls", who=DESK).json["position"] > imposed["offset"],
        f"{pause} is read",
    )
    return str(gateway.accept(f"/v1/pauses/{pause}/lift", {"opt_ins": "KEEP"}, DESK)["approval_id"])


def test_what_is_accepted_stands_in_the_log_and_is_heeded_at_once(
    world: World, gateway: Gateway
) -> None:
    """The page that says "you are opted out" would lie until some later moment."""
    gateway.settle("seen:1")

    answer = gateway.choose("seen:1", "OPT_OUT")

    event = events_of(world, "seen:1")[-1]
    assert event.event_id.hex() == answer["event_id"].replace("-", "")
    assert event.source == "billing"
    assert gateway.decision("seen:1", answer["token"])["reason"] == "OPTED_OUT"
    place = (answer["partition"], answer["offset"])
    assert (partition_of(b"seen:1", PARTITIONS), place) in [
        (one.partition, (one.partition, one.offset)) for one in world.log() if one.key == b"seen:1"
    ]


def test_an_opt_in_follows_the_etag_of_what_the_person_saw(gateway: Gateway) -> None:
    """A person cancels only the opt-out that they had seen."""
    gateway.settle("etag:1")
    token = gateway.choose("etag:1", "OPT_OUT")["token"]
    path = f"/v1/members/etag:1/decision?purpose={PURPOSE}&at_least={token}&wait=5"
    etag = gateway.call("GET", path).headers["etag"]
    body = {"member_id": "etag:1", "purpose": PURPOSE, "choice": "OPT_IN"}

    assert gateway.call("POST", "/v1/consent-changes", body).status == 428
    assert gateway.call("POST", "/v1/consent-changes", body, If_Match='"1"').status == 412
    accepted = gateway.accept("/v1/consent-changes", body, If_Match=etag)
    assert gateway.decision("etag:1", accepted["token"])["reason"] == "OPTED_IN"


def test_a_repeated_request_is_one_event(world: World, gateway: Gateway) -> None:
    """Each repetition after a broken connection would be another choice in the member's history."""
    body = {"member_id": "once:1", "purpose": PURPOSE, "choice": "OPT_OUT"}
    with ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(
                lambda _: gateway.call("POST", "/v1/consent-changes", body, Idempotency_Key="k"),
                range(16),
            )
        )
    again = gateway.call("POST", "/v1/consent-changes", body, Idempotency_Key="k")
    other = gateway.call(
        "POST", "/v1/consent-changes", body | {"choice": "UNKNOWN"}, Idempotency_Key="k"
    )

    assert {reply.status for reply in replies} <= {202, 409}
    assert len({reply.body for reply in (*replies, again) if reply.status == 202}) == 1
    assert (other.status, other.code) == (422, "idempotency.reused")
    assert len(events_of(world, "once:1")) == 1
    assert (
        gateway.call(
            "POST", "/v1/consent-changes", body, "dev:b:producer", Idempotency_Key="k"
        ).status
        == 202
    )


def test_an_event_with_an_id_of_its_own_counts_once(world: World, gateway: Gateway) -> None:
    """A client without our header, that names its events itself, repeats them too."""
    named = {
        "event_id": "018f3a9e-1c5a-7cc0-9b1a-0c5fe0f3a111",
        "effective_at": "2024-06-01T10:00:00Z",
    }

    answers = [gateway.choose("named:1", "OPT_OUT", **named) for _ in range(2)]

    assert len(events_of(world, "named:1")) == 2
    assert version_of(world, gateway, "named:1", answers[-1]["token"]) == 1
    assert gateway.decision("named:1")["reason"] != "QUARANTINED"


def test_ten_thousand_lines_keep_their_order_and_count_once(world: World, gateway: Gateway) -> None:
    """An import of a day's choices: one lost, swapped or doubled is a person whose last word is not
    the last.
    """
    lines: list[dict[str, str]] = []
    for number in range(500):
        lines.append({"member_id": f"bulk:{number}", "kind": "relocation", "jurisdiction": "US"})
    for number in range(500, 10_000):
        choice = "OPT_OUT" if (number // 500) % 2 else "UNKNOWN"
        lines.append({"member_id": f"bulk:{number % 500}", "purpose": PURPOSE, "choice": choice})
    lines[7] = {"member_id": "no good", "purpose": PURPOSE, "choice": "OPT_OUT"}
    lines[8] = {"member_id": "bulk:8", "kind": "nothing"}
    body = b"\n".join(json.dumps(line).encode() for line in lines)

    first = gateway.call("POST", "/v1/bulk", body, Content_Type=NDJSON, Idempotency_Key="import")
    second = gateway.call("POST", "/v1/bulk", body, Content_Type=NDJSON, Idempotency_Key="import")

    told, summary = results(first)
    assert [one["line"] for one in told] == list(range(1, 10_001))
    assert summary["summary"] == {"accepted": 9_998, "invalid": 2, "refused": 0, "unknown": 0}
    assert [one["line"] for one in told if one["status"] == "invalid"] == [8, 9]
    assert {one["code"] for one in told if one["status"] == "invalid"} == {"input.field"}
    assert [one.get("event_id") for one in told] == [
        one.get("event_id") for one in results(second)[0]
    ]
    for number in (0, 1, 9, 499):
        found = gateway.decision(f"bulk:{number}", results(second)[1]["token"], wait=10)
        assert (found["version"], found["reason"]) == (20, "OPTED_OUT"), number
    ids = [event.event_id.hex() for event in events_of(world, "bulk:3")][:20]
    assert ids == [told[3 + 500 * turn]["event_id"].replace("-", "") for turn in range(20)]


def test_one_line_too_many_sends_nothing(world: World, gateway: Gateway) -> None:
    """A part of a file that is taken without a word about the rest is a file half imported."""
    line = json.dumps({"member_id": "many:1", "purpose": PURPOSE, "choice": "OPT_OUT"}).encode()

    reply = gateway.call("POST", "/v1/bulk", b"\n".join([line] * 10_001), Content_Type=NDJSON)

    assert (reply.status, reply.code) == (413, "input.too_many_lines")
    assert events_of(world, "many:1") == []


def results(reply: Reply) -> tuple[list[Any], Any]:
    """The results of the lines, and the summary."""
    assert reply.status == 200, reply
    assert reply.headers["content-type"] == NDJSON
    *told, summary = map(json.loads, reply.body.splitlines())
    return told, summary


def test_a_token_makes_a_lagging_table_say_so(world: World, gateway: Gateway) -> None:
    """The worst failure: an opt-out is accepted, and the next question is answered from before
    it.
    """
    gateway.settle("lag:1")
    token = gateway.settle("lag:2")
    wait_for(lambda: gateway.decision("lag:1", token)["allowed"], "the table is fresh")
    processor = next(one for one in world._running if "processor" in one.log.name)
    processor.freeze()
    try:
        token = gateway.choose("lag:1", "OPT_OUT")["token"]

        assert gateway.decision("lag:1", token, wait=0.5)["reason"] == "STALE"
        wait_for(
            lambda: gateway.decision("lag:1", wait=0)["reason"] == "STALE",
            "stale without a token too",
        )
        status = gateway.call("GET", "/v1/status", who=AUDITOR).json
        assert (status["ok"], any(one["fresh"] for one in status["partitions"])) == (False, False)
    finally:
        processor.thaw()
    # It had not answered for longer than its lease; whoever owns the partitions then goes on from
    # the log.
    wait_for(
        lambda: gateway.decision("lag:1", token)["reason"] == "OPTED_OUT",
        "heeded again",
        seconds=60,
    )


def test_a_lift_takes_effect_when_a_second_person_approves(world: World, gateway: Gateway) -> None:
    """One stolen credential could end a regulator's pause."""
    gateway.settle("lift:1", "HK")
    approval = lift_in_two_steps(gateway, "hk-lift", "HK")
    assert gateway.decision("lift:1")["reason"] == "PAUSED"
    assert gateway.decide(approval, who="dev:dora:desk+approver").status == 403
    assert lifts_of(world, "hk-lift") == []

    result = gateway.approve(approval)

    assert gateway.decision("lift:1", result["token"])["reason"] == "DEFAULT_ON"
    assert gateway.decide(approval).status == 409
    [lift] = lifts_of(world, "hk-lift")
    assert lift.source == "dora, approved by eva"


def test_a_policy_that_opens_takes_effect_when_a_second_person_approves(
    world: World, gateway: Gateway
) -> None:
    """A typing error in a policy would have people trained on who were never asked."""
    gateway.settle("open:1", "CH")
    terms = {"jurisdictions": ["CH"], "purpose": "search", "regime": "OPT_IN"}
    closed = gateway.accept("/v1/policies", {"version": "ch-1", "terms": [terms]}, DESK)
    if (
        closed["state"] == "awaiting_approval"
    ):  # terms where there were none may let an opt-in count
        closed = gateway.approve(closed["approval_id"])
    asked = f"/v1/members/open:1/decision?purpose=search&wait=5&at_least={closed['token']}"
    assert gateway.call("GET", asked, who=AUDITOR).json["reason"] == "OPT_IN_REQUIRED"
    opened = gateway.accept(
        "/v1/policies", {"version": "ch-2", "terms": [terms | {"regime": "DEFAULT_ON"}]}, DESK
    )
    assert (opened["state"], gateway.call("GET", asked, who=AUDITOR).json["allowed"]) == (
        "awaiting_approval",
        False,
    )

    gateway.approve(opened["approval_id"])

    wait_for(
        lambda: gateway.call("GET", asked, who=AUDITOR).json["allowed"], "the policy is heeded"
    )


def held(gateway: Gateway, world: World, member: str, value: bytes = b"\0\0\0\0\1garbage") -> str:
    """A message of the member that cannot be read; its entry, once the member is quarantined."""
    world.produce_raw(member.encode(), value)

    def look() -> str:
        entries = gateway.call("GET", "/v1/quarantine", who=DESK).json["entries"]
        return next(
            (
                str(one["entry"])
                for one in entries
                if (one["member"], one["state"]) == (member, "quarantined")
            ),
            "",
        )

    return wait_for(look, f"{member} is held")


def state_of(gateway: Gateway, entry: str) -> str:
    """held, released, tainted or unknown."""
    return str(gateway.call("GET", f"/v1/quarantine/{entry}", who=DESK).json["state"])


def test_a_release_takes_two_and_ends_the_hold(world: World, gateway: Gateway) -> None:
    """What could not be read may have been an opt-out: nobody alone decides that it was none."""
    gateway.settle("held:1")
    entry = held(gateway, world, "held:1")
    shown = gateway.call("GET", f"/v1/quarantine/{entry}", who=AUDITOR).json
    assert bytes.fromhex(shown["value_hex"]) == b"\0\0\0\0\1garbage"
    assert shown["why_not_replayed"]
    replay = gateway.call("POST", f"/v1/quarantine/{entry}/replay", {"reason": "x"}, DESK)
    assert (replay.status, replay.code) == (409, "quarantine.not_replayable")
    body = {"reason": "asked the member"}
    proposed = gateway.accept(f"/v1/quarantine/{entry}/release", body, DESK, Idempotency_Key="r1")
    assert gateway.decision("held:1")["reason"] == "QUARANTINED"

    result = gateway.approve(proposed["approval_id"])

    assert gateway.decision("held:1", result["token"])["reason"] == "DEFAULT_ON"
    assert state_of(gateway, entry) == "released"
    assert events_of_kind(world, "held:1")[-1] == ("MemberReleased", "dora, approved by eva")
    assert (
        gateway.accept(f"/v1/quarantine/{entry}/release", body, DESK, Idempotency_Key="r1")
        == proposed
    )
    assert (
        gateway.call("POST", f"/v1/quarantine/{entry}/release", body, DESK).code
        == "quarantine.not_quarantined"
    )


def events_of_kind(world: World, member: str) -> list[tuple[str, str]]:
    """Kind and source of each readable event of a member."""
    found = []
    for one in world.log():
        if one.key == member.encode() and one.value != b"\0\0\0\0\1garbage":
            event = read_event(one.value, one.key, world.catalog)
            found.append((type(event).__name__, str(getattr(event, "source", ""))))
    return found


def test_a_hold_that_came_after_the_proposal_stays(world: World, gateway: Gateway) -> None:
    """The operator looked at one message; the next one, which nobody looked at, may be the
    opt-out.
    """
    gateway.settle("held:2")
    entry = held(gateway, world, "held:2")
    proposed = gateway.accept(f"/v1/quarantine/{entry}/release", {"reason": "x"}, DESK)
    world.produce_raw(b"held:2", b"\0\0\0\0\2garbage")
    wait_for(lambda: version_of(world, gateway, "held:2") == 3, "the second hold")

    reply = gateway.decide(proposed["approval_id"])

    assert reply.status in (200, 409)
    token = reply.json["result"]["token"] if reply.status == 200 else ""
    assert gateway.decision("held:2", token)["reason"] == "QUARANTINED"


def test_a_message_is_sent_again_in_its_turn_when_two_agree(world: World, gateway: Gateway) -> None:
    """What a member said must not stay lost because a producer's clock was wrong that day."""
    gateway.settle("held:3")
    entry = held(
        gateway, world, "held:3", write_event(ahead_of_the_broker("held:3"), world.catalog)
    )
    path = f"/v1/quarantine/{entry}"
    wait_for(
        lambda: gateway.call("GET", path, who=DESK).json["why_not_replayed"] is None,
        "its time has come",
    )

    proposed = gateway.accept(f"{path}/replay", {"reason": "clock"}, DESK)
    assert any("OPT_IN" in line and PURPOSE in line for line in proposed["opens"]), (
        "the second person sees what comes"
    )
    result = gateway.approve(proposed["approval_id"])

    assert gateway.decision("held:3", result["token"])["reason"] == "OPTED_IN"
    assert state_of(gateway, entry) == "released"


def test_the_oldest_comes_first_and_an_opt_in_not_after_what_nobody_could_read(
    world: World, gateway: Gateway
) -> None:
    """The unreadable message after it may be the one that took it back."""
    gateway.settle("held:4")
    entry = held(
        gateway, world, "held:4", write_event(ahead_of_the_broker("held:4"), world.catalog)
    )
    later = held_later(gateway, world, "held:4", entry)
    early = gateway.call("POST", f"/v1/quarantine/{later}/replay", {"reason": "x"}, DESK)
    assert (early.status, early.code) == (409, "quarantine.order")
    refused = gateway.call("POST", f"/v1/quarantine/{entry}/replay", {"reason": "x"}, DESK)
    assert (refused.status, refused.code) == (409, "quarantine.not_replayable")
    gateway.approve(
        gateway.accept(f"/v1/quarantine/{entry}/release", {"reason": "x"}, DESK)["approval_id"]
    )
    assert (state_of(gateway, entry), state_of(gateway, later)) == ("released", "quarantined")
    last = gateway.approve(
        gateway.accept(f"/v1/quarantine/{later}/release", {"reason": "x"}, DESK)["approval_id"]
    )
    assert gateway.decision("held:4", last["token"])["reason"] == "DEFAULT_ON"


def ahead_of_the_broker(member: str) -> ConsentChanged:
    """An opt-in stamped by a clock that was ahead: it cannot be read, until its time has come."""
    return ConsentChanged(
        event_id=member.encode().ljust(16, b"."),
        member=MemberId(member),
        purpose=PURPOSE,
        choice=Choice.OPT_IN,
        effective_at=now(),
        recorded_at=now(seconds=CLOCK_TOLERANCE / 1e6 + 5),
        observed_version=9,
        source="test",
    )


def held_later(gateway: Gateway, world: World, member: str, entry: str) -> str:
    """A second message of the member that cannot be read; its entry, once it is held too."""
    world.produce_raw(member.encode(), b"\0\0\0\0\1garbage")

    def look() -> str:
        entries = gateway.call("GET", "/v1/quarantine", who=DESK).json["entries"]
        found = [
            str(one["entry"])
            for one in entries
            if (one["member"], one["state"]) == (member, "quarantined")
        ]
        return next((one for one in found if one != entry), "")

    return wait_for(look, f"{member} is held twice")


def test_only_another_move_overtakes_a_relocation(world: World, gateway: Gateway) -> None:
    """Sent again after a newer one, it would move the member back, perhaps out from under a
    pause.
    """
    move = lives_in("moved:1", "HK")
    raw = write_event(move, world.catalog)
    [(partition, offset)] = world.produce(lives_in("moved:1", "US"))
    entry = QuarantineEntry(
        partition=partition,
        offset=offset,
        appended_at=now(),
        error_class="x",
        schema_id=1,
        key=b"moved:1",
        value=raw,
    )
    quarantine = QuarantinedMessages(
        world.kafka,
        namespace=world.namespace,
        catalog=world.catalog,
        submitter=None,  # type: ignore[arg-type] # nothing is sent
    )

    assert quarantine.why_not_replayed(entry, now()) == ""
    gateway.choose("moved:1", "OPT_OUT")
    world.produce(move)  # the replay itself, of which nobody heard that it was sent
    assert quarantine.why_not_replayed(entry, now()) == ""
    gateway.settle("moved:1", "DE")
    assert "relocated again" in quarantine.why_not_replayed(entry, now())
    assert quarantine.why_not_replayed(replace(entry, value=b"\0\0\0\0\1x"), now()).startswith(
        "it still cannot be read"
    )


def test_a_broker_that_stands_still_loses_and_doubles_nothing(
    world: World, gateway: Gateway
) -> None:
    """Nobody knows yet whether it counts: told so, and repeated, it counts once; also when the
    gateway dies.
    """
    doomed = Gateway(world)
    gateway.settle("slow:1", "HK")
    approval = lift_in_two_steps(gateway, "hk-slow", "HK")
    other = lift_in_two_steps(gateway, "us-slow", "US-CA")
    body = {"member_id": "slow:1", "purpose": PURPOSE, "choice": "OPT_OUT"}
    dead = body | {"member_id": "slow:2"}
    with frozen_broker(world), ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        slow = pool.submit(
            gateway.call, "POST", "/v1/consent-changes", body, Idempotency_Key="slow"
        )
        lift = pool.submit(gateway.decide, approval)
        lost = pool.submit(doomed.call, "POST", "/v1/consent-changes", dead, Idempotency_Key="dead")
        cut = pool.submit(doomed.decide, other)
        wait_for(
            lambda: (
                gateway.call("GET", f"/v1/approvals/{other}", who=DESK).json["state"] == "approving"
            ),
            "approving",
        )
        time.sleep(1)  # what the doomed one sends is on its way to the broker
        assert gateway.decide(other, "approve").code == "approval.busy"
        doomed.running.kill()
        first = slow.result()
        unsent = lift.result()
        assert (unsent.status, unsent.code) == (503, "controls.stale"), (
            "who cannot know what it opens sends nothing"
        )
        assert 9 < time.monotonic() - began < 15
        assert isinstance(lost.exception(), ConnectionError)
        assert isinstance(cut.exception(), ConnectionError)
        assert gateway.decision("slow:1", wait=0)["allowed"] is False
    assert (first.status, first.code) == (504, "kafka.unknown")

    again = wait_for(
        lambda: accepted(gateway.call("POST", "/v1/consent-changes", body, Idempotency_Key="slow")),
        "the repetition",
    )
    assert again["event_id"] == first.json["event_id"]
    busy = gateway.call("POST", "/v1/consent-changes", dead, Idempotency_Key="dead")
    assert (busy.status, busy.code) == (409, "idempotency.in_flight")
    wait_fresh(world, gateway)
    pass_time(world, "dead", other)
    gateway.accept("/v1/consent-changes", dead, Idempotency_Key="dead")
    assert gateway.approve(approval)["event_id"]
    assert gateway.approve(other)["event_id"]

    assert len({event.event_id for event in events_of(world, "slow:2")}) == 1
    assert version_of(world, gateway, "slow:2", again["token"]) == 1
    assert version_of(world, gateway, "slow:1", again["token"]) == 2
    for pause in ("hk-slow", "us-slow"):
        found = lifts_of(world, pause)
        assert len(set(found)) == 1, found
        assert found[0].source == "dora, approved by eva"


def accepted(reply: Reply) -> Any:
    """The answer, where it is accepted."""
    return reply.json if reply.status == 202 else None


def pass_time(world: World, key: str, approval: str) -> None:
    """What a minute does: the request that was under way, and the lock of who decided, are over."""

    async def story() -> None:
        connection = Redis.from_url(world.stack.addresses.redis_url)
        store = RedisIdempotency(connection, namespace=world.namespace)
        name = store_key(PRODUCER.split(":")[1], key) or ""
        first = await store.claim(name, Attempt("", "", now(), now()))
        assert first is not None
        await store.finish(name, left_open(first))
        assert await connection.delete(f"{world.namespace}:proposal:{approval}:lock") == 1
        await connection.aclose()

    asyncio.run(story())


def test_without_redis_what_excludes_is_taken(world: World, gateway: Gateway) -> None:
    """The table's server being down must keep nobody's opt-out waiting, and allow nobody."""
    gateway.settle("down:1")
    world.stack.stop_service("redis")
    try:
        body = {"member_id": "down:1", "purpose": PURPOSE, "choice": "OPT_OUT"}
        answer = gateway.call("POST", "/v1/consent-changes", body, Idempotency_Key="down")
        opt_in = body | {"choice": "OPT_IN", "observed_version": 3}
        refused = gateway.call("POST", "/v1/consent-changes", opt_in, Idempotency_Key="down-2")
        asked = gateway.decision("down:1", wait=0)
        proposals = gateway.call("GET", "/v1/approvals", who=DESK)
        status = gateway.call("GET", "/v1/status", who=DESK)
    finally:
        world.stack.start_service("redis")
    assert answer.status == 202
    assert (refused.status, refused.code, refused.headers["retry-after"]) == (
        503,
        "idempotency.unavailable",
        "1",
    )
    assert (asked["allowed"], asked["reason"]) == (False, "STALE")
    assert (proposals.status, proposals.code) == (503, "proposals.unavailable")
    assert (status.status, status.json["ok"]) == (200, False)
    wait_fresh(world, gateway)
    assert gateway.decision("down:1", answer.json["token"])["reason"] == "OPTED_OUT"


def test_no_member_is_named_in_logs_or_metrics(gateway: Gateway) -> None:
    """Logs and metrics go to more people than may know who opted out.

    Runs last: it reads what the others left.
    """
    text = gateway.running.text() + gateway.running.page("/metrics")[1]

    for name in ("seen:1", "etag:1", "once:1", "bulk:1", "held:1", "slow:1", "down:1"):
        assert name not in text
    assert "Traceback" not in text
    assert gateway.running.metric("consentry_gateway_requests_total", status="500") == 0
