"""What widens use waits for somebody else than who asked for it; what narrows it does not wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.strategies import NAMESPACE, PURPOSE
from tests.table import store_partition
from tests.unit.gateway.in_memory import (
    APPROVER,
    CATALOG,
    DESK,
    PARTITIONS,
    POLICY,
    InMemoryGateway,
)

from consentry.domain.controls import PauseImposed, PauseLifted, PolicyPublished, Regime, Terms
from consentry.domain.errors import Unavailable
from consentry.domain.events import EventUnreadable
from consentry.domain.records import Record, fold
from consentry.domain.values import DAY_MICROS, MemberId, Micros
from consentry.domain.wording import iso_text
from consentry.gateway import table_reader as reading
from consentry.gateway.idempotency import IN_FLIGHT_SECONDS, Attempt, InMemoryIdempotency
from consentry.gateway.proposals import LOCK_SECONDS, InMemoryProposals, Proposal
from consentry.gateway.quarantine import QuarantinedMessages
from consentry.kafka.clients import DELIVERY_TIMEOUT_MS
from consentry.wire.partitions import partition_of
from consentry.wire.quarantine import QuarantineEntry, unreadable_event_id
from consentry.wire.records import write_record

PAUSE = {"pause": "hk-2024", "jurisdictions": ["HK"], "purposes": [PURPOSE]}
BOTH = "dev:dora:desk+approver"


@pytest.fixture
def gateway() -> InMemoryGateway:
    """A gateway with a policy that allows, a member in Hong Kong, and a pause there."""
    gateway = InMemoryGateway()
    gateway.publish()
    gateway.settle("m:1", "HK")
    assert gateway.decision()["allowed"]
    assert gateway.call("POST", "/v1/pauses", PAUSE, DESK).status == 202
    return gateway


def approve(
    gateway: InMemoryGateway, approval: str, who: str = APPROVER, act: str = "approve"
) -> tuple[int, str]:
    """Status, and the code of a problem or the state of the proposal."""
    reply = gateway.call("POST", f"/v1/approvals/{approval}/{act}", who=who)
    return reply.status, str(reply.json.get("code", reply.json.get("state")))


def test_a_pause_binds_at_once(gateway: InMemoryGateway) -> None:
    """A regulator's order that waited for a second person would be broken meanwhile."""
    assert gateway.decision()["reason"] == "PAUSED"


def test_a_lift_takes_effect_when_somebody_else_approves(gateway: InMemoryGateway) -> None:
    """One person, or one stolen credential, could end a regulator's pause."""
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {"opt_ins": "KEEP"})
    assert gateway.decision()["reason"] == "PAUSED"
    gateway.now += 60_000_000

    reply = gateway.call("POST", f"/v1/approvals/{approval}/approve", who=APPROVER)

    assert (reply.status, reply.json["state"]) == (200, "approved")
    lift = gateway.controls.controls.log[-1]
    assert isinstance(lift, PauseLifted)
    assert lift.source == "dora, approved by eva"
    assert (lift.recorded_at, lift.effective_at) == (gateway.now, gateway.now)
    assert gateway.decision(at_least=reply.json["result"]["token"])["reason"] == "DEFAULT_ON"


def test_nobody_approves_or_rejects_what_they_proposed(gateway: InMemoryGateway) -> None:
    """With both roles one person would be two."""
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {}, BOTH)

    assert approve(gateway, approval, BOTH) == (403, "approval.own")
    assert approve(gateway, approval, BOTH, "reject") == (403, "approval.own")
    assert approve(gateway, approval, "dev:dora:approver") == (403, "approval.own")
    assert gateway.decision()["reason"] == "PAUSED"


def test_what_was_decided_is_not_decided_again(gateway: InMemoryGateway) -> None:
    """A rejected lift that could be approved later was never rejected."""
    lifted = gateway.propose("/v1/pauses/hk-2024/lift", {})
    assert approve(gateway, lifted) == (200, "approved")
    assert approve(gateway, lifted) == (409, "approval.decided")
    assert approve(gateway, lifted, act="reject") == (409, "approval.decided")
    gateway.call("POST", "/v1/pauses", PAUSE | {"version": 2}, DESK)
    rejected = gateway.propose("/v1/pauses/hk-2024/lift", {"version": 2})
    assert approve(gateway, rejected, act="reject") == (200, "rejected")

    assert approve(gateway, rejected) == (409, "approval.decided")
    assert gateway.decision()["reason"] == "PAUSED"


def test_a_proposal_expires(gateway: InMemoryGateway) -> None:
    """A lift that somebody asked for last year must not be a click away for ever."""
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {})
    gateway.now += 7 * DAY_MICROS + 1

    assert approve(gateway, approval) == (409, "approval.expired")
    assert gateway.decision()["reason"] == "PAUSED"


def test_an_approval_that_nobody_knows_of_is_repeated_as_the_same_control(
    gateway: InMemoryGateway,
) -> None:
    """Two lifts of one approval would void opt-ins twice, the second time some that people gave
    since.
    """
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {})
    before, approved_at = len(gateway.log.controls), gateway.now
    gateway.log.fails = "lost"
    assert approve(gateway, approval) == (504, "kafka.unknown")
    gateway.log.fails = ""
    gateway.now += 30_000_000

    assert approve(gateway, approval, act="reject") == (409, "approval.decided")
    assert approve(gateway, approval, "dev:fay:approver") == (200, "approved")

    [lift] = gateway.log.controls[before:]
    assert (lift.recorded_at, lift.source) == (approved_at, "dora, approved by eva")


def test_what_the_log_has_is_answered_and_not_sent_again(gateway: InMemoryGateway) -> None:
    """A second message of one approval, at another time, is a lift that nobody approved then."""
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {})
    before = len(gateway.log.controls)
    gateway.log.fails = "silent"
    assert approve(gateway, approval) == (504, "kafka.unknown")
    gateway.log.fails = ""
    gateway.now += 60_000_000

    assert approve(gateway, approval, act="reject") == (409, "approval.decided")
    assert approve(gateway, approval, "dev:fay:approver") == (200, "approved")

    assert len(gateway.log.controls) == before + 1


def test_a_store_that_went_back_lets_nobody_approve_or_reject_what_has_taken_effect(
    gateway: InMemoryGateway,
) -> None:
    """Redis restored from an hour ago shows it open: approved anew it would name the wrong person
    and time.
    """
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {})
    found = gateway.proposals
    assert isinstance(found, InMemoryProposals)
    kept, approved_at = found._proposals[approval], gateway.now
    assert approve(gateway, approval) == (200, "approved")
    before = len(gateway.log.controls)
    found._proposals[approval] = kept
    gateway.now += 3_600_000_000

    assert approve(gateway, approval, "dev:fay:approver", "reject") == (409, "approval.decided")
    reply = gateway.call("POST", f"/v1/approvals/{approval}/approve", who="dev:fay:approver")

    assert (reply.status, reply.json["decided_by"]) == (200, "eva")
    assert found._proposals[approval].decided_at == approved_at
    assert len(gateway.log.controls) == before


class SingleEntry(QuarantinedMessages):
    """A quarantine with one message."""

    entry: QuarantineEntry

    def find(self, partition: int, offset: int) -> QuarantineEntry | None:
        return self.entry

    def open_before(self, entry: QuarantineEntry, record: Record | None) -> list[QuarantineEntry]:
        return []


def test_a_store_that_went_back_has_no_release_sent_twice(gateway: InMemoryGateway) -> None:
    """Under another time it would be another event of the same identity, which holds the member for
    ever.
    """
    messages = SingleEntry(
        {}, namespace=NAMESPACE, catalog=CATALOG, submitter=gateway.context.submitter
    )
    messages.entry = quarantine(gateway, "m:2")
    object.__setattr__(gateway.context, "quarantine", messages)
    gateway.settle("m:2", "US")
    approval = gateway.propose(
        f"/v1/quarantine/{messages.entry.name}/release", {"reason": "cut short"}
    )
    found = gateway.proposals
    assert isinstance(found, InMemoryProposals)
    kept = found._proposals[approval]
    assert approve(gateway, approval) == (200, "approved")
    assert gateway.decision("m:2")["allowed"]
    before = len(gateway.log.messages)
    found._proposals[approval] = kept
    gateway.now += 1_000_000

    reply = gateway.call("POST", f"/v1/approvals/{approval}/approve", who="dev:fay:approver")

    assert (reply.status, reply.json["state"], len(gateway.log.messages)) == (
        200,
        "approved",
        before,
    )
    assert gateway.decision("m:2", at_least=reply.json["result"]["token"])["allowed"]
    messages.close()


def quarantine(gateway: InMemoryGateway, member: str) -> QuarantineEntry:
    """A message of the member that could not be read."""
    key, place = member.encode(), partition_of(member.encode(), PARTITIONS)
    entry = QuarantineEntry(
        partition=place,
        offset=0,
        appended_at=Micros(gateway.now),
        error_class="X",
        schema_id=None,
        key=key,
        value=b"",
    )
    event_id = unreadable_event_id(place, 0)
    held = fold(
        None,
        EventUnreadable(
            event_id=event_id, member=MemberId(member), recorded_at=Micros(gateway.now)
        ),
    )
    next_offset = gateway.table.meta(place).next_offset or 0
    store_partition(
        gateway.table,
        place,
        {key: write_record(held, CATALOG.frame_of("ConsentRecord"))},
        epoch=gateway.log._epochs[place],
        expected_offset=next_offset,
        next_offset=next_offset + 1,
    )
    return entry


def test_an_approval_that_surely_came_to_nothing_can_be_rejected(gateway: InMemoryGateway) -> None:
    """It could be neither approved, as terms have changed, nor rejected, and would be a click away
    for a month.
    """
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {})
    gateway.log.fails = "lost"
    assert approve(gateway, approval) == (504, "kafka.unknown")
    gateway.log.fails = ""
    gateway.now += 2 * DELIVERY_TIMEOUT_MS * 1000 - 1
    assert approve(gateway, approval, act="reject") == (409, "approval.decided")
    gateway.now += 1

    assert approve(gateway, approval, act="reject") == (200, "rejected")
    assert gateway.decision()["reason"] == "PAUSED"


def test_an_approval_that_was_not_sent_can_be_given_or_refused_later(
    gateway: InMemoryGateway,
) -> None:
    """Kafka being full for a second must not use up the approval, nor leave it half given."""
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {})
    for fails in ("full", "refused"):
        gateway.log.fails = fails
        status, _ = approve(gateway, approval)
        assert status == 503
    gateway.log.fails = ""

    assert approve(gateway, approval, act="reject") == (200, "rejected")


def test_a_repeated_approval_that_finds_the_queue_full_stays_the_same_control(
    gateway: InMemoryGateway,
) -> None:
    """After 504 the lift may come to the log yet: under a new time it would be another one."""
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {})
    before, approved_at = len(gateway.log.controls), gateway.now
    for fails in ("lost", "full"):
        gateway.log.fails = fails
        approve(gateway, approval)
        gateway.now += 1_000_000
    gateway.log.fails = ""

    assert approve(gateway, approval) == (200, "approved")
    assert [lift.recorded_at for lift in gateway.log.controls[before:]] == [approved_at]


def test_only_one_decides_at_a_time(gateway: InMemoryGateway) -> None:
    """Two who click at once would both see it succeed, one of them with a rejection."""
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {})

    class Taken(InMemoryProposals):
        async def lock(self, proposal_id: str) -> str | None:
            return None

    taken = Taken()
    taken.__dict__.update(gateway.proposals.__dict__)
    busy = InMemoryGateway(proposals=taken)
    assert approve(busy, approval) == (409, "approval.busy")
    assert LOCK_SECONDS <= IN_FLIGHT_SECONDS * 2


def test_a_proposal_that_would_open_more_than_it_showed_is_not_carried_out(
    gateway: InMemoryGateway,
) -> None:
    """The lift of version 3 showed that it ends versions 1 and 3; a new order, version 2, would end
    with it unseen.
    """
    gateway.call("POST", "/v1/pauses", PAUSE | {"version": 3}, DESK)
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {"version": 3, "opt_ins": "KEEP"})
    gateway.call("POST", "/v1/pauses", PAUSE | {"version": 2, "jurisdictions": ["HK", "US"]}, DESK)

    assert approve(gateway, approval) == (409, "approval.changed")
    assert gateway.decision()["reason"] == "PAUSED"
    assert approve(gateway, approval, act="reject") == (200, "rejected")


def test_a_lift_of_a_version_that_nobody_imposed_is_refused(gateway: InMemoryGateway) -> None:
    """A lift that comes first still lifts: the authority's next order would never bind, and nobody
    had seen it.
    """
    reply = gateway.call("POST", "/v1/pauses/hk-2024/lift", {"version": 2}, DESK)

    assert (reply.status, reply.code) == (409, "input.pause_version")


def test_an_approval_waits_for_the_controls_that_others_have_just_sent(
    gateway: InMemoryGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four seconds old are fresh for a decision; meanwhile another gateway may have taken a new
    order.
    """
    monkeypatch.setattr(reading, "CONTROLS_SECONDS_MAX", 0.05)
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {})
    before = len(gateway.log.messages)
    gateway.is_fresh = False
    gateway.now += 4_000_000

    assert approve(gateway, approval) == (503, "controls.stale")
    assert len(gateway.log.messages) == before


def test_what_was_narrowed_since_the_proposal_is_shown_again_though_the_words_are_the_same(
    gateway: InMemoryGateway,
) -> None:
    """The second person read that more categories are used, of terms that are not the ones in force
    any more.
    """
    entry = POLICY["terms"][0]
    assert (
        gateway.call(
            "POST", "/v1/policies", _version("2", entry | {"categories": ["a", "b"]}), DESK
        ).status
        == 202
    )
    approval = gateway.propose("/v1/policies", _version("3", entry))
    gateway.now += 1
    assert (
        gateway.call(
            "POST", "/v1/policies", _version("4", entry | {"categories": ["a"]}), DESK
        ).status
        == 202
    )

    assert approve(gateway, approval) == (409, "approval.changed")


def test_a_proposal_names_every_place(gateway: InMemoryGateway) -> None:
    """Behind "and 3 more" stands the country that would not have been signed."""
    codes = [
        "AT",
        "BE",
        "BR",
        "CA",
        "CH",
        "CL",
        "CO",
        "CY",
        "DE",
        "DK",
        "EG",
        "ES",
        "FI",
        "FR",
        "GB",
    ]
    entry = POLICY["terms"][0] | {"jurisdictions": codes, "purpose": "ads"}

    [opens] = gateway.call("POST", "/v1/policies", _version("2", entry), DESK).json["opens"]

    assert all(code in opens for code in codes)


def test_a_policy_that_would_open_by_the_time_it_is_sent_is_not_sent(
    gateway: InMemoryGateway,
) -> None:
    """Redis was slow for two seconds, in which a colleague closed Hong Kong: this policy would open
    it again.
    """

    class Slow(InMemoryIdempotency):
        async def claim(self, key: str, attempt: Attempt) -> Attempt | None:
            closed = Terms(jurisdictions=("HK",), purpose=PURPOSE, regime=Regime.NOT_OFFERED)
            now = Micros(gateway.now)
            narrowing = PolicyPublished(
                event_id=b"N" * 16,
                version="narrow",
                terms=(closed,),
                effective_at=now,
                recorded_at=now,
            )
            gateway.controls.follow(narrowing)
            return await super().claim(key, attempt)

    object.__setattr__(gateway.context, "idempotency", Slow())
    before = len(gateway.log.messages)

    reply = gateway.call(
        "POST", "/v1/policies", POLICY | {"version": "2"}, DESK, idempotency_key="k"
    )

    assert (reply.status, reply.code) == (409, "approval.changed")
    assert len(gateway.log.messages) == before
    again = gateway.call(
        "POST", "/v1/policies", POLICY | {"version": "2"}, DESK, idempotency_key="k"
    )
    assert again.json["state"] == "awaiting_approval"


@pytest.mark.parametrize("days", [-2, 2])
def test_a_policy_that_offers_at_another_time_than_now_waits(
    gateway: InMemoryGateway, days: int
) -> None:
    """It opens nothing today; what is narrowed until then it would open again, and nobody would be
    asked.
    """
    effective = iso_text(Micros(gateway.now + days * DAY_MICROS))

    reply = gateway.call(
        "POST", "/v1/policies", POLICY | {"version": "2", "effective": effective}, DESK
    )

    assert reply.json["state"] == "awaiting_approval"
    assert reply.json["opens"][0].startswith("takes effect ")
    assert approve(gateway, reply.json["approval_id"]) == (200, "approved")


def _version(version: str, *entries: dict[str, Any]) -> dict[str, Any]:
    return {"version": version, "terms": list(entries)}


def test_a_policy_that_opens_waits_and_one_that_closes_does_not(gateway: InMemoryGateway) -> None:
    """Waiting with what closes would use data against the new policy; not waiting with what opens
    needs no words.
    """
    closing = POLICY | {"version": "2", "terms": [POLICY["terms"][0] | {"regime": "OPT_IN"}]}
    opening = POLICY | {"version": "3"}
    gateway.settle("m:2", "US")

    assert gateway.call("POST", "/v1/policies", closing, DESK).json["state"] == "accepted"
    assert gateway.decision("m:2")["reason"] == "OPT_IN_REQUIRED"
    reply = gateway.call("POST", "/v1/policies", opening, DESK)
    assert reply.json["state"] == "awaiting_approval"
    assert reply.json["opens"]
    assert gateway.decision("m:2")["reason"] == "OPT_IN_REQUIRED"
    assert approve(gateway, reply.json["approval_id"]) == (200, "approved")
    assert gateway.decision("m:2")["reason"] == "DEFAULT_ON"
    policy = gateway.controls.controls.log[-1]
    assert isinstance(policy, PolicyPublished)
    assert policy.source == "dora, approved by eva"


def test_against_old_controls_no_policy_is_judged_and_nothing_approved(
    gateway: InMemoryGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What undoes a colleague's policy of a moment ago opens something, which old controls do not
    show.
    """
    monkeypatch.setattr(reading, "CONTROLS_SECONDS_MAX", 0.05)
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {})
    before = len(gateway.log.messages)
    gateway.is_fresh = False
    gateway.now += 1
    narrowing = POLICY | {"version": "2", "terms": [POLICY["terms"][0] | {"regime": "OPT_IN"}]}

    judged = gateway.call("POST", "/v1/policies", narrowing, DESK)
    assert (judged.status, judged.code) == (503, "controls.stale")
    gateway.now += 6_000_000
    assert approve(gateway, approval) == (503, "controls.stale")
    assert len(gateway.log.messages) == before
    assert gateway.call("POST", "/v1/pauses", PAUSE | {"version": 9}, DESK).status == 202, (
        "a pause does not wait"
    )
    gateway.is_fresh = True
    assert approve(gateway, approval) == (200, "approved")


def test_what_cannot_do_what_it_says_is_refused_when_it_is_proposed(
    gateway: InMemoryGateway,
) -> None:
    """A lift of a mistyped pause would be approved, and change nothing."""
    for path, body, code in (
        ("/v1/pauses/hk-2023/lift", {}, "input.pause_unknown"),
        ("/v1/pauses/hk-2024/lift", {"effective": "2020-01-01"}, "input.dates_inverted"),
        ("/v1/policies", POLICY, "input.policy_version"),
        ("/v1/pauses", PAUSE | {"jurisdictions": ["US"]}, "input.pause_version"),
    ):
        reply = gateway.call("POST", path, body, DESK)
        assert (reply.status, reply.code) == (409, code)


def test_both_persons_are_named_whole_in_the_log(gateway: InMemoryGateway) -> None:
    """A name that is cut off names nobody; a name at an issuer may have 200 characters."""
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {}, f"dev:{'a' * 64}:desk")
    found = gateway.proposals
    assert isinstance(found, InMemoryProposals)
    one = found._proposals[approval]
    found._proposals[approval] = replace(one, requested_by="r" * 200)

    approve(gateway, approval, f"dev:{'b' * 64}:approver")

    assert gateway.controls.controls.log[-1].source == f"{'r' * 200}, approved by {'b' * 64}"


def test_the_list_tells_who_asked_for_what_and_what_became_of_it(gateway: InMemoryGateway) -> None:
    """The auditor's question is who let this happen."""
    gateway.now += 1
    approval = gateway.propose("/v1/pauses/hk-2024/lift", {"opt_ins": "KEEP"})
    approve(gateway, approval)

    newest = gateway.call("GET", "/v1/approvals", who="dev:adam:auditor").json["approvals"][0]
    one = gateway.call("GET", f"/v1/approvals/{approval}", who="dev:adam:auditor").json

    assert newest == one
    assert (one["requested_by"], one["decided_by"], one["state"], one["kind"]) == (
        "dora",
        "eva",
        "approved",
        "lift",
    )
    assert one["asks_for"] == {"opt_ins": "KEEP", "pause": "hk-2024"}
    assert "hk-2024 version 1" in one["opens"][0]


def test_an_unknown_proposal_is_404(gateway: InMemoryGateway) -> None:
    """A link from yesterday's mail needs an answer, not a fault."""
    assert approve(gateway, "00" * 16) == (404, "approval.unknown")
    assert gateway.call("GET", f"/v1/approvals/{'00' * 16}", who=DESK).code == "approval.unknown"


def test_without_the_store_nothing_is_approved(gateway: InMemoryGateway) -> None:
    """What nobody can read, nobody has agreed to."""

    class Gone(InMemoryProposals):
        async def lock(self, proposal_id: str) -> str | None:
            raise Unavailable("gone", code="proposals.unavailable")

        async def put(self, proposal: Proposal) -> None:
            raise Unavailable("gone", code="proposals.unavailable")

    down = InMemoryGateway(proposals=Gone())

    assert approve(down, "00" * 16) == (503, "proposals.unavailable")
    assert down.call("POST", "/v1/policies", POLICY, DESK).status == 503
    assert down.log.messages == []


def test_a_pause_names_who_imposed_it(gateway: InMemoryGateway) -> None:
    """Who asks why training stopped has to find a person."""
    pause = gateway.controls.controls.log[-1]

    assert isinstance(pause, PauseImposed)
    assert pause.source == "dora"


def test_a_lift_that_was_proposed_twice_takes_effect_once(gateway: InMemoryGateway) -> None:
    """The second one, approved a week later, would make void what members have opted in to
    since.
    """
    first, second = (gateway.propose("/v1/pauses/hk-2024/lift", {}) for _ in range(2))
    assert approve(gateway, first) == (200, "approved")
    before = len(gateway.log.messages)

    assert approve(gateway, second) == (409, "approval.changed")
    assert len(gateway.log.messages) == before
    gateway.now += 1
    again = gateway.call("POST", "/v1/pauses/hk-2024/lift", {}, DESK).json["opens"]
    assert again[0].startswith(
        "repeats an earlier lift of the pause hk-2024 version 1: the opt-ins since then"
    )
    kept = gateway.call("POST", "/v1/pauses/hk-2024/lift", {"opt_ins": "KEEP"}, DESK).json["opens"]
    assert kept[0] == "repeats an earlier lift of the pause hk-2024 version 1"
