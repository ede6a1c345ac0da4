"""The events of the agent: nothing is missed unsaid, by whoever reads slowly, comes back, or comes
late.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any

import pytest
from tests.strategies import PURPOSE, chose, day, erased, lift, moved, pause, policy, terms

from consentry.domain.controls import OptIns, Scope
from consentry.domain.orders import PurgeOrder, PurgeReason
from consentry.domain.values import Choice, MemberId, Micros
from consentry.domain.wording import iso_text
from consentry.trainer.agent.feed import Feed
from consentry.trainer.hooks import Exclusion, ExclusionCause

OUT = chose(Choice.OPT_OUT, 9, on=9)


class Reader:
    """One who follows the events, as a client of any language does."""

    def __init__(self, agent: Any, path: str = "/v1/events", **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=20)
        self.connection.request("GET", path, headers=headers)
        self.answer = self.connection.getresponse()

    def __enter__(self) -> Reader:
        assert self.answer.status == 200, self.answer.read()
        assert self.answer.headers["content-type"].startswith("text/event-stream")
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()
        self.connection.close()

    def next(self) -> tuple[str, str, Any]:
        """Identity, kind and data of the next event."""
        fields: dict[str, str] = {}
        while True:
            line = self.answer.readline().decode().rstrip("\n")
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "event" in fields:
                return fields["id"], fields["event"], json.loads(fields["data"])

    def until(self, kind: str) -> tuple[str, Any]:
        """Identity and data of the next event of this kind."""
        while True:
            identity, found, data = self.next()
            if found == kind:
                return identity, data


class TestStream:
    def test_what_happens_is_told_as_it_happens(self, agent: Any) -> None:
        """A trainer that asks once a minute trains a minute on who opted out."""
        follower = agent.follower
        with Reader(agent) as reader:
            _, kind, data = reader.next()
            assert (kind, data["fresh"], data["snapshot"]) == ("status", True, follower.snapshot_id)

            follower.record("anna", moved("US", 1, on=1), OUT)
            _, told = reader.until("exclusion")
            assert (told["members"], told["reason"], told["cause"]) == (
                ["anna"],
                "OPTED_OUT",
                "RECORD",
            )
            assert told["purpose"] == PURPOSE

            follower.snapshot.apply_control(pause(21, "HK", on=31))
            follower.snapshot.apply_control(lift(22, on=32, opt_ins=OptIns.VOID))
            follower.snapshot.apply_control(policy(23, terms("*"), on=33))
            follower.hooks.note_controls()
            _, paused = reader.until("pause")
            assert (paused["pause"], paused["jurisdictions"]) == ("pause-1", ["HK"])
            assert paused["effective_at"] == "2024-02-01T00:00:00Z"
            assert reader.next()[1] == "lift"
            assert reader.next()[1] == "policy"

            follower.stale_detail = "the least fresh partition is 7 s old"
            assert reader.until("freshness")[1]["fresh"] is False
            follower.stale_detail = ""
            assert reader.until("freshness")[1]["fresh"] is True

    def test_who_comes_back_goes_on_where_they_were(self, agent: Any) -> None:
        """What was told while a connection was broken is what matters most."""
        follower = agent.follower
        with Reader(agent) as reader:
            identity = reader.next()[0]
        follower.record("anna", moved("US", 1, on=1), OUT)
        with Reader(agent) as late:
            assert late.next()[1] == "status"
        with Reader(agent, **{"Last-Event-ID": identity}) as reader:
            assert reader.next()[1] == "status"
            assert reader.until("exclusion")[1]["members"] == ["anna"]

    @pytest.mark.parametrize(
        "identity", ["", "1", "abcd-1", "abcd-x", "{life}-999999", "{life}--1", "{life}-\u00b2"]
    )
    def test_who_comes_back_from_where_nobody_knows_is_told_that_events_are_lost(
        self, agent: Any, identity: str
    ) -> None:
        """After a restart of the agent numbers begin anew: the same number is another event."""
        given = identity.replace("{life}", agent.agent.feed.life)
        with Reader(
            agent, **{"Last-Event-ID": given.encode("latin-1", "replace").decode("latin-1")}
        ) as reader:
            assert reader.next()[1] == "status"
            _, kind, data = reader.next()
            assert kind == "lost"
            assert "ask again" in data["detail"]

    def test_a_purpose_that_is_not_told_of_is_refused(self, agent: Any) -> None:
        """Its reader would wait for ever, and believe that nobody opts out."""
        answer = agent.call("GET", "/v1/events?purpose=ads")
        assert (answer.status, answer.data["code"]) == (422, "agent.purpose")

    def test_who_asks_for_one_purpose_hears_of_that_one(self, start: Any) -> None:
        """Two trainers share a sidecar."""
        agent = start(purposes=["ads", PURPOSE])
        agent.follower.hooks.begin()
        agent.follower.snapshot.apply_control(
            policy(24, terms("*", purpose="ads"), terms("*"), on=1)
        )
        with Reader(agent, "/v1/events?purpose=ads") as reader:
            reader.next()
            agent.follower.record("anna", moved("US", 1, on=1), OUT)
            agent.follower.record(
                "anna", moved("US", 1, on=1), OUT, chose(Choice.OPT_OUT, 10, on=10, purpose="ads")
            )
            assert reader.until("exclusion")[1]["purpose"] == "ads"


class Follower:
    """Reads a feed on a loop of its own, one event at a time."""

    def __init__(self, feed: Feed, last_id: str | None = None) -> None:
        self.stream = feed.read(last_id, purposes=[PURPOSE], greeting=dict, heartbeat_seconds=0.05)

    async def next(self) -> str:
        """The next piece, as text."""
        return (await anext(self.stream)).decode()


class TestFeed:
    def test_a_reader_who_is_too_slow_is_told_so_and_goes_on_with_what_is_new(self) -> None:
        """Keeping everything for one who sleeps would end the agent; dropping it unsaid, somebody's
        trust.
        """

        async def read() -> list[str]:
            feed = Feed(events_max=3)
            feed.attach()
            reader = Follower(feed)
            found = [await reader.next()]
            for number in range(10):
                feed.add("exclusion", {"number": number}, purpose=PURPOSE)
            found.append(await reader.next())
            feed.add("exclusion", {"number": 10}, purpose=PURPOSE)
            found.append(await reader.next())
            await reader.stream.aclose()  # type: ignore[attr-defined]
            return found

        _, lost, new = asyncio.run(read())
        assert "event: lost" in lost
        assert '"number":10' in new

    def test_what_is_kept_is_bounded_by_its_size_too(self) -> None:
        """Ten thousand events of a thousand members each would be gigabytes."""
        feed = Feed(bytes_max=1000)
        for _ in range(100):
            feed.add("exclusion", {"members": ["m"] * 50})
        assert len(feed._events) <= 4
        assert feed.number_of(feed.identity(1)) is None
        assert feed.number_of(feed.identity(100)) == 100

    def test_silence_is_broken_so_that_a_dead_connection_is_noticed(self) -> None:
        """A reader behind a dead connection believes for hours that nobody opts out."""

        async def read() -> str:
            reader = Follower(Feed())
            await reader.next()
            return await reader.next()

        assert asyncio.run(read()) == ": heartbeat\n\n"

    def test_events_are_told_to_every_reader_in_order_from_any_thread(self) -> None:
        """Hooks run on threads of their own."""

        async def read() -> list[list[str]]:
            feed = Feed()
            feed.attach()
            readers = [Follower(feed) for _ in range(3)]
            for reader in readers:
                await reader.next()
            adding = asyncio.gather(
                *(asyncio.to_thread(feed.add, "pause", {"number": number}) for number in range(20))
            )
            found = [[await reader.next() for _ in range(20)] for reader in readers]
            await adding
            return found

        first, second, third = asyncio.run(read())
        assert first == second == third
        numbers = [int(line.split("\n")[0].rpartition("-")[2]) for line in first]
        assert numbers == list(range(1, 21))

    def test_a_long_list_of_members_becomes_several_events(self) -> None:
        """A reader has a bound on a line."""
        feed = Feed()
        members = tuple(MemberId(f"m{number}") for number in range(2_500))
        feed.add_exclusion(
            Exclusion(purpose=PURPOSE, cause=ExclusionCause.RECORD, at=day(1), members=members)
        )
        told = [json.loads(event.text)["members"] for event in feed._events]
        assert [len(part) for part in told] == [1000, 1000, 500]
        assert [member for part in told for member in part] == list(members)

    def test_more_than_could_be_told_is_told_as_lost(self) -> None:
        """It is no list of members: whoever takes it for one keeps the others."""
        feed = Feed()
        feed.add_exclusion(Exclusion(purpose=PURPOSE, cause=ExclusionCause.MANY, at=day(1)))
        assert [event.kind for event in feed._events] == ["lost"]

    def test_a_purge_order_says_whom_or_what_and_until_when(self) -> None:
        """Whoever stores data in another language deletes by it."""
        feed = Feed()
        of_pause = PurgeOrder(
            order_id="pause:hk:1",
            because=PurgeReason.PAUSE,
            recorded_at=day(1),
            due_at=day(31),
            pause="hk",
            scope=Scope(jurisdictions=("HK",), categories=("posts",)),
        )
        of_member = PurgeOrder(
            order_id="erasure:1",
            because=PurgeReason.ERASURE,
            recorded_at=day(1),
            due_at=day(31),
            member=MemberId("anna"),
        )
        feed.add_order(of_pause)
        feed.add_order(of_member)
        first, second = (json.loads(event.text) for event in feed._events)
        assert (first["pause"], first["jurisdictions"], first["categories"]) == (
            "hk",
            ["HK"],
            ["posts"],
        )
        assert (second["member"], second["due_at"], second["because"]) == (
            "anna",
            "2024-02-01T00:00:00Z",
            "ERASURE",
        )

    @pytest.mark.parametrize(
        ("instant", "text"),
        [(1 << 62, "9999-12-31T23:59:59Z"), (-(1 << 62), "0001-01-01T00:00:00Z")],
    )
    def test_a_time_that_no_calendar_has_ends_nothing(self, instant: int, text: str) -> None:
        """A control with such a time must still be told."""
        assert iso_text(Micros(instant)) == text


def test_an_erasure_is_told(agent: Any) -> None:
    """It latches: whoever misses it never hears of it again."""
    with Reader(agent) as reader:
        reader.next()
        agent.follower.record("anna", moved("US", 1, on=1), erased(7, on=7))
        assert reader.until("exclusion")[1]["reason"] == "ERASED"
