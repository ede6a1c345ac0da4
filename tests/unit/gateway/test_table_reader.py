"""What the gateway believes of the table and the controls: all of one moment, and by nobody's clock
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tests.strategies import PURPOSE
from tests.unit.gateway.in_memory import DESK, PARTITIONS, InMemoryGateway

from consentry.domain.values import Micros
from consentry.table.memory import InMemoryTable
from consentry.table.protocol import Meta, Reading
from consentry.wire.partitions import partition_of
from consentry.wire.tokens import Token, write_token

SECOND = 1_000_000
HOME = partition_of(b"m:1", PARTITIONS)
FOREIGN = (HOME + 1) % PARTITIONS
OPT_OUT = {"member_id": "m:1", "purpose": PURPOSE, "choice": "OPT_OUT"}


class EmptiedAfter(InMemoryTable):
    """Is emptied after so many calls that read it, as by `consentry table rebuild`."""

    calls_left = -1

    def meta(self, partition: int) -> Meta:
        found = super().meta(partition)
        self._count()
        return found

    def load(self, wanted: Mapping[int, Sequence[bytes]]) -> dict[int, list[bytes | None]]:
        found = super().load(wanted)
        self._count()
        return found

    def read(self, member: bytes, partitions: Sequence[int]) -> dict[int, Reading]:
        found = {
            one: Reading(
                InMemoryTable.meta(self, one), InMemoryTable.load(self, {one: [member]})[one][0]
            )
            for one in partitions
        }
        self._count()
        return found

    def _count(self) -> None:
        self.calls_left -= 1
        if self.calls_left == 0:
            for partition in range(PARTITIONS):
                epoch = InMemoryTable.meta(self, partition).epoch
                assert epoch is not None
                self.clear(partition, epoch=epoch)


def settled(gateway: InMemoryGateway) -> InMemoryGateway:
    """A grown-up lives in Germany, where everything is allowed, and has not chosen."""
    gateway.publish()
    gateway.settle("m:1", "DE")
    gateway.now += 10 * SECOND
    return gateway


def asked(gateway: InMemoryGateway, **more: str) -> Any:
    """The answer by what is fresh by now, without a heartbeat at the reader's own time."""
    gateway.is_fresh = False
    return gateway.decision(**more)


@pytest.mark.parametrize("calls", [1, 2, 3, 4])
def test_a_table_that_is_emptied_between_two_looks_allows_nothing(
    calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The erasure is gone, the row names a country, and what a moment ago was forbidden for ever is
    allowed.
    """
    monkeypatch.setattr("tests.unit.gateway.in_memory.InMemoryTable", EmptiedAfter)
    gateway = settled(InMemoryGateway())
    assert gateway.call("POST", "/v1/erasures", {"member_id": "m:1"}).status == 202
    gateway.log.beat(Micros(gateway.now))
    assert isinstance(gateway.table, EmptiedAfter)

    gateway.table.calls_left = calls
    reasons = [asked(gateway, jurisdiction="DE")["reason"] for _ in range(5)]

    assert set(reasons) == {"ERASED", "STALE"}


def test_a_foreign_partition_that_is_not_built_allows_nothing() -> None:
    """What says that the member's events came on it, and have no order, is what is missing."""
    gateway = settled(InMemoryGateway())
    gateway.log.beat(Micros(gateway.now))
    assert asked(gateway)["allowed"]
    epoch = gateway.table.meta(FOREIGN).epoch
    assert epoch is not None

    gateway.table.clear(FOREIGN, epoch=epoch)

    assert (asked(gateway)["reason"], asked(gateway)["because"]) == (
        "STALE",
        [f"freshness is not proven: partition {FOREIGN} of the table is not built"],
    )


@pytest.mark.parametrize("way", ["frontier", "token"])
@pytest.mark.parametrize(
    ("path", "body", "who", "reason"),
    [
        ("/v1/consent-changes", OPT_OUT, "dev:billing:producer", "OPTED_OUT"),
        ("/v1/erasures", {"member_id": "m:1"}, "dev:billing:producer", "ERASED"),
        ("/v1/pauses", {"pause": "all", "jurisdictions": ["*"]}, DESK, "PAUSED"),
    ],
)
def test_what_a_clock_ahead_recorded_counts_where_the_own_clock_is_behind(
    path: str, body: object, who: str, reason: str, way: str
) -> None:
    """For the second that two gateways' clocks differ, an opt-out in the table would be taken as
    not yet said.
    """
    gateway = settled(InMemoryGateway())
    gateway.now += 900_000
    token = gateway.call("POST", path, body, who).json["token"]
    gateway.log.beat(Micros(gateway.now if way == "frontier" else gateway.now - 900_000))
    gateway.now -= 900_000

    found = asked(gateway, **({"at_least": token} if way == "token" else {}))

    assert found["reason"] == reason


def test_a_token_from_the_future_is_stale_and_brings_no_terms_forward() -> None:
    """An unsigned token could name any time, and have next year's policy allow what is not allowed
    now.
    """
    gateway = InMemoryGateway()
    gateway.publish(
        {
            "version": "next",
            "effective": "2026-01-01T00:00:00Z",
            "terms": [{"jurisdictions": ["*"], "purpose": PURPOSE, "regime": "DEFAULT_ON"}],
        }
    )
    gateway.settle("m:1", "DE")
    gateway.log.beat(Micros(gateway.now))
    token = Token(b"thislog.", {}, 0, Micros(gateway.now + 365 * 86_400 * SECOND))

    found = asked(gateway, at_least=write_token(token, gateway.token_keys))

    assert found["reason"] == "STALE"
    assert "ahead of this machine's clock" in found["because"][0]
    assert asked(gateway)["reason"] == "NO_TERMS"


def test_the_times_that_are_told_are_those_of_the_answer() -> None:
    """An officer who reads that an opt-out of a later second counted cannot make sense of the
    answer.
    """
    gateway = settled(InMemoryGateway())
    gateway.now += 900_000
    gateway.call("POST", "/v1/consent-changes", OPT_OUT)
    recorded_at = gateway.log.events[-1].recorded_at
    gateway.now -= 900_000
    gateway.log.beat(Micros(recorded_at))
    gateway.is_fresh = False

    found = gateway.call(
        "GET", f"/v1/members/m:1/explain?purpose={PURPOSE}&wait=0", who="dev:adam:auditor"
    ).json

    assert found["reason"] == "OPTED_OUT"
    assert found["at"] == found["known_at"] == found["facts"][-1]["recorded_at"]


def test_times_that_were_asked_for_are_kept() -> None:
    """Whoever reconstructs an old answer would get today's."""
    gateway = settled(InMemoryGateway())
    before = "2025-06-15T15:06:45+00:00"
    gateway.call("POST", "/v1/consent-changes", OPT_OUT)

    query = f"purpose={PURPOSE}&wait=0&at={before}&known_at={before}".replace("+", "%2B")
    found = gateway.call("GET", f"/v1/members/m:1/explain?{query}", who="dev:adam:auditor").json

    assert (found["at"], found["known_at"], found["reason"]) == (before, before, "DEFAULT_ON")
