"""B-24 to B-29 on the real path: events that can be read well, and must not be believed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.faults.inputs.scene import Scene
from tests.stack import (
    PARTITIONS,
    SHARED,
    World,
    allowed,
    chose,
    erased,
    lift,
    lives_in,
    now,
    opted_in,
    opted_out,
    pause,
    reason,
    wait_for,
)

from consentry.domain.controls import OptIns
from consentry.domain.events import MemberReleased
from consentry.domain.values import Choice, MemberId
from consentry.kafka.clients import send
from consentry.local.stack import LocalStack
from consentry.wire.events import write_event
from consentry.wire.partitions import partition_of
from consentry.wire.schemas import CONTROLS

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def scene(shared: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A world that runs; every test has members of its own in it."""
    SHARED.mend()
    world = World(shared, tmp_path_factory.mktemp("meaning"))
    try:
        scene = Scene(world)
        yield scene
        scene.close()
    finally:
        world.close()


def arrived(scene: Scene, *members: str) -> None:
    """Members who live somewhere, and are allowed."""
    scene.world.produce(*(lives_in(member) for member in members))
    wait_for(lambda: all(allowed(scene.client, member) for member in members), "allowed before")


def sent(scene: Scene, event: Any, **headers: bytes) -> tuple[bytes, int]:
    """Send one event; its bytes and offset.

    A good event of another member in the same partition follows.
    """
    key = event.member.encode()
    value = write_event(event, scene.world.catalog)
    partition = partition_of(key, PARTITIONS)
    offset = scene.send(key, value, partition, list(headers.items()))
    behind = next(
        name
        for name in (f"behind-{uuid.uuid4().hex[:8]}" for _ in range(1000))
        if partition_of(name.encode(), PARTITIONS) == partition
    )
    scene.world.produce(lives_in(behind))
    wait_for(lambda: allowed(scene.client, behind), "the next event of the partition")
    return value, offset


def kept_classes(scene: Scene, member: str) -> list[tuple[str, bytes]]:
    """Error class and bytes of what is in quarantine for a member."""
    return [
        (one.fields["error_class"], one.fields["value"])
        for one in scene.quarantine(again=True)
        if one.fields["key"] == member.encode()
    ]


def test_b24_an_event_id_with_other_content_holds_the_member_is_kept_and_counted(
    scene: Scene,
) -> None:
    """Somebody who knows the id of an opt-out could send an opt-in in its name, and a retry filter
    would take it.
    """
    member = "b24-reused"
    arrived(scene, member)
    first = opted_out(member)
    scene.world.produce(first)
    wait_for(lambda: scene.reason(member) == "OPTED_OUT", "opted out")
    forged = replace(first, choice=Choice.OPT_IN)
    value, _ = sent(scene, forged)
    assert scene.reason(member) == "QUARANTINED"
    assert kept_classes(scene, member) == [("event_id_reused", value)]
    assert scene.worker.metric("consentry_quarantined_total", error_class="event_id_reused") == 1
    # The same event again is a retry, and a retry is nothing.
    sent(scene, first)
    assert kept_classes(scene, member) == [("event_id_reused", value)]


def test_b25_headers_that_look_like_a_sequence_change_nothing(scene: Scene) -> None:
    """A producer's counter that jumped, or went back, must neither revive what was said before nor
    stop what comes.
    """
    member = "b25-sequence"
    arrived(scene, member)
    sent(scene, opted_in(member), sequence=b"7")
    assert scene.reason(member) == "OPTED_IN"
    late = opted_out(member)
    sent(scene, late, sequence=b"%d" % (7 + 2**40))
    assert scene.reason(member) == "OPTED_OUT"
    sent(scene, opted_in(member), sequence=b"3")
    assert scene.reason(member) == "OPTED_OUT", (
        "the log's order is the order, and nothing shows that it had been seen"
    )
    sent(scene, late, sequence=b"8")
    assert scene.reason(member) == "OPTED_OUT"
    assert kept_classes(scene, member) == []


def test_b26_an_opt_in_from_the_future_is_held_and_an_opt_out_from_the_future_binds_at_once(
    scene: Scene,
) -> None:
    """A fast clock must not let an opt-in outlive a lift, nor put an opt-out off by an hour."""
    eager, fast = "b26-opt-in", "b26-opt-out"
    arrived(scene, eager, fast)
    ahead: dict[str, Any] = {"recorded_at": now(seconds=3600), "effective_at": now(seconds=3600)}
    clamped = scene.worker.metric("consentry_events_total", outcome="clamped")
    value, _ = sent(scene, replace(opted_in(eager), **ahead))
    assert scene.reason(eager) == "QUARANTINED"
    assert kept_classes(scene, eager) == [("opt_in_from_future", value)]
    sent(scene, replace(opted_out(fast), **ahead))
    assert scene.reason(fast) == "OPTED_OUT"
    assert kept_classes(scene, fast) == []
    assert scene.worker.metric("consentry_events_total", outcome="clamped") == clamped + 1


def test_b27_what_refers_to_nothing_known_allows_nobody(scene: Scene) -> None:
    """An opt-in for a use that no policy names, a country that does not exist, an opt-in without
    proof.
    """
    elsewhere, nowhere, unseen = "b27-purpose", "b27-country", "b27-without-proof"
    arrived(scene, elsewhere, nowhere, unseen)
    sent(scene, chose(elsewhere, Choice.OPT_IN, purpose="ads_training"))
    answer = scene.client.decide(elsewhere, purpose="ads_training")
    assert (answer.allowed, answer.reason.value) == (False, "NO_TERMS")
    value, _ = sent(scene, lives_in(nowhere, "XX"))
    assert scene.reason(nowhere) == "QUARANTINED"
    assert kept_classes(scene, nowhere) == [("jurisdiction", value)]
    sent(scene, opted_out(unseen))
    sent(scene, opted_in(unseen))
    assert scene.reason(unseen) == "OPTED_OUT"
    sent(scene, opted_in(unseen, observed=1_000_000))
    assert scene.reason(unseen) == "OPTED_OUT", (
        "a version that did not exist yet was seen by nobody"
    )


def test_b28_a_control_that_is_not_understood_pauses_everything_and_none_ever_loosens(
    world: World,
) -> None:
    """A lift that names no pause, another version, or comes twice must end no stop; and an unknown
    place is every.
    """
    worker = world.processor().wait_ready()
    world.open_policy()
    client = world.client()
    world.produce(lives_in("anna"), lives_in("bert", "HK"))
    wait_for(lambda: allowed(client, "anna") and allowed(client, "bert"), "allowed before")
    world.control(pause("hk", "HK"))
    wait_for(lambda: reason(client, "bert") == "PAUSED", "paused")
    # The lift of a pause that nobody imposed, of an older version, and a second pause of the same
    # id and version.
    world.control(
        lift("never-imposed", OptIns.KEEP),
        replace(lift("hk", OptIns.KEEP), version=0),
        pause("hk", "DE"),
    )
    world.control(pause("de", "DE"))
    world.produce(lives_in("carl", "DE"))
    wait_for(lambda: reason(client, "carl") == "PAUSED", "the pause behind them")
    assert reason(client, "bert") == "PAUSED"
    assert allowed(client, "anna")
    # A scope that nobody knows is every scope.
    world.control(pause("nowhere", "ATLANTIS"))
    wait_for(lambda: reason(client, "anna") == "PAUSED", "everything is paused")
    world.control(lift("nowhere", OptIns.KEEP))
    wait_for(lambda: allowed(client, "anna"), "lifted")
    # So are bytes that are no control.
    send(world.producer, world.topic(CONTROLS), [(b"bad", b"\x00\x00\x00\x00\x01\xff\xff")])
    wait_for(lambda: reason(client, "anna") == "PAUSED", "everything is paused again")
    assert worker.is_running


def test_b29_nothing_said_after_an_erasure_brings_anybody_back(scene: Scene) -> None:
    """A producer that replays an old export would enrol people who asked to be forgotten."""
    member = "b29-erased"
    arrived(scene, member)
    sent(scene, erased(member))
    assert scene.reason(member) == "ERASED"
    record = scene.client.snapshot.records[member.encode()]
    for event in (opted_in(member), opted_in(member, observed=100), lives_in(member)):
        sent(scene, event)
        assert scene.reason(member) == "ERASED"
    assert scene.client.snapshot.records[member.encode()] == record, "not a byte of it is kept"


def test_a_release_ends_only_the_holds_that_had_been_looked_at(scene: Scene) -> None:
    """Between an operator's look and the release a second message became unreadable: perhaps the
    opt-out.
    """
    member = "released-too-early"
    arrived(scene, member)
    home = partition_of(member.encode(), PARTITIONS)
    scene.send(member.encode(), b"?", home)
    wait_for(lambda: scene.reason(member) == "QUARANTINED", "quarantined")
    scene.send(member.encode(), b"??", home)
    release = MemberReleased(
        event_id=uuid.uuid4().bytes,
        member=MemberId(member),
        effective_at=now(),
        recorded_at=now(),
        observed_version=2,
    )
    sent(scene, release)
    assert scene.reason(member) == "QUARANTINED"
    sent(
        scene, replace(release, event_id=uuid.uuid4().bytes, recorded_at=now(), observed_version=4)
    )
    wait_for(lambda: allowed(scene.client, member), "released")


def test_events_with_the_headers_of_our_own_producers_are_applied(scene: Scene) -> None:
    """The limit is there for monsters; six or thirty-two headers are none."""
    member = "with-headers"
    arrived(scene, member)
    sent(scene, opted_out(member), **{f"ce_{number}": b"x" * 40 for number in range(32)})
    assert scene.reason(member) == "OPTED_OUT"
    assert kept_classes(scene, member) == []
