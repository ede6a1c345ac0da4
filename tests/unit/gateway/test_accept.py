"""From a request to one event: repetitions, crashes between, and what is looked at before anything
is sent.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.strategies import PURPOSE
from tests.unit.gateway.in_memory import DESK, POLICY, PRODUCER, START, InMemoryGateway

from consentry.domain.errors import Unavailable
from consentry.domain.events import FactKind
from consentry.domain.values import Micros
from consentry.domain.wording import iso_text
from consentry.gateway.idempotency import IN_FLIGHT_SECONDS, Attempt, InMemoryIdempotency

OPT_OUT = {"member_id": "m:1", "purpose": PURPOSE, "choice": "OPT_OUT"}
OPT_IN = {"member_id": "m:1", "purpose": PURPOSE, "choice": "OPT_IN"}
MOVE = {"member_id": "m:1", "jurisdiction": "DE"}


class NoStore(InMemoryIdempotency):
    """A store that does not answer."""

    async def claim(self, key: str, attempt: Attempt) -> Attempt | None:
        raise Unavailable("The store did not answer.", code="idempotency.unavailable", fix="again")


def test_an_accepted_event_carries_a_token_that_asks_for_it() -> None:
    """A page that shows "you are opted out" too early is believed by the member and by nobody
    else.
    """
    gateway = InMemoryGateway()
    gateway.publish()

    reply = gateway.call("POST", "/v1/consent-changes", OPT_OUT)

    assert reply.status == 202
    [event] = gateway.log.events
    assert event.event_id.hex() == reply.json["event_id"].replace("-", "")
    assert (
        gateway.decision(at_least=reply.json["token"])["reason"] == "OPTED_OUT"
        or not gateway.decision()["allowed"]
    )


def test_a_repetition_is_answered_as_the_first_and_sends_nothing() -> None:
    """A producer that retries would write one choice twice, the second of them after what the
    person chose since.
    """
    gateway = InMemoryGateway()
    first = gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1")
    gateway.now += 60_000_000

    again = gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1")

    assert (again.status, again.json) == (202, first.json)
    assert again.headers["idempotent-replayed"] == "true"
    assert len(gateway.log.messages) == 1


@pytest.mark.parametrize(
    ("path", "body", "more"),
    [
        ("/v1/consent-changes", OPT_OUT | {"member_id": "m:2"}, {}),
        ("/v1/consent-changes", OPT_OUT, {"if_match": '"3"'}),
        ("/v1/erasures", {"member_id": "m:1"}, {}),
    ],
)
def test_a_key_of_another_request_is_refused(path: str, body: object, more: dict[str, str]) -> None:
    """Answered as the first one, an event that was never sent would look accepted."""
    gateway = InMemoryGateway()
    gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1")

    reply = gateway.call("POST", path, body, idempotency_key="k1", **more)

    assert (reply.status, reply.code) == (422, "idempotency.reused")
    assert len(gateway.log.messages) == 1


def test_the_key_of_another_caller_is_another_key() -> None:
    """Two producers that both count 1, 2, 3 would lose each other's events."""
    gateway = InMemoryGateway()
    for who in (PRODUCER, "dev:mobile:producer"):
        assert (
            gateway.call("POST", "/v1/consent-changes", OPT_OUT, who, idempotency_key="1").status
            == 202
        )

    assert len({event.event_id for event in gateway.log.events}) == 2


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    """Cut or changed on the way, it would not be found again."""
    reply = InMemoryGateway().call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key=key)

    assert (reply.status, reply.code) == (400, "idempotency.key")


def test_nobody_knows_is_told_as_504_and_its_repetition_is_the_same_event() -> None:
    """A second identity for one choice would be two facts in the record."""
    gateway = InMemoryGateway()
    gateway.log.fails = "silent"
    first = gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1")
    assert (first.status, first.code) == (504, "kafka.unknown")
    gateway.log.fails = ""
    gateway.now += 1_000_000

    again = gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1")

    assert again.status == 202
    assert again.json["event_id"] == first.json["event_id"]
    record = gateway.log.record("m:1")
    assert record is not None
    assert [fact.kind for fact in record.facts] == [FactKind.OPTED_OUT]


def test_a_repetition_that_is_refused_keeps_the_identity_of_the_first() -> None:
    """504, then "queue full", then accepted: with the key freed in between, one choice would be two
    events.
    """
    gateway = InMemoryGateway()
    gateway.log.fails = "silent"
    first = gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1")
    gateway.log.fails = "full"
    assert gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1").status == 503
    gateway.log.fails = ""

    again = gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1")

    assert again.json["event_id"] == first.json["event_id"]
    assert len({event.event_id for event in gateway.log.events}) == 1


def test_a_request_that_sent_nothing_frees_its_key() -> None:
    """Else the corrected request, under the same key, would be refused for a day."""
    gateway = InMemoryGateway()
    gateway.log.fails = "refused"
    refused = gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1")
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    gateway.log.fails = ""

    assert (
        gateway.call("POST", "/v1/erasures", {"member_id": "m:1"}, idempotency_key="k1").status
        == 202
    )


def test_a_second_request_meets_the_first_while_that_is_answered_and_not_after() -> None:
    """A gateway that was killed in between would block the key; one that is still at it must not be
    overtaken.
    """
    gateway = InMemoryGateway()

    class Dies(InMemoryIdempotency):
        async def finish(self, key: str, attempt: Attempt) -> None:
            """As if the gateway had ended here."""

    gateway = InMemoryGateway(idempotency=Dies())
    first = gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1")
    busy = gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1")
    gateway.now += int(IN_FLIGHT_SECONDS * 1e6)
    again = gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1")

    assert (busy.status, busy.code, busy.headers["retry-after"]) == (
        409,
        "idempotency.in_flight",
        "1",
    )
    assert again.json["event_id"] == first.json["event_id"]
    record = gateway.log.record("m:1")
    assert record is not None
    assert record.version == 1


def test_without_the_store_what_excludes_is_taken_and_what_allows_is_not() -> None:
    """Redis being down must keep no opt-out waiting, and let no opt-in count twice."""
    gateway = InMemoryGateway(idempotency=NoStore())
    gateway.publish()
    gateway.settle()

    assert gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k1").status == 202
    assert (
        gateway.call("POST", "/v1/erasures", {"member_id": "m:9"}, idempotency_key="k2").status
        == 202
    )
    pause = {"pause": "hk", "jurisdictions": ["HK"]}
    assert gateway.call("POST", "/v1/pauses", pause, DESK, idempotency_key="k3").status == 202
    for path, body in (
        ("/v1/consent-changes", OPT_IN | {"observed_version": 9}),
        ("/v1/relocations", MOVE),
    ):
        reply = gateway.call("POST", path, body, idempotency_key="k4")
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert gateway.call("POST", "/v1/consent-changes", OPT_OUT).status == 202


def test_a_pause_or_policy_sent_again_is_answered_as_before() -> None:
    """ "Published already" in place of the token would look like a refusal to whoever repeats after
    a time-out.
    """
    gateway = InMemoryGateway()
    gateway.publish()
    narrowing = POLICY | {"version": "2", "terms": [POLICY["terms"][0] | {"regime": "OPT_IN"}]}
    for path, body in (
        ("/v1/policies", narrowing),
        ("/v1/pauses", {"pause": "hk", "jurisdictions": ["HK"]}),
    ):
        first = gateway.call("POST", path, body, DESK, idempotency_key=path)
        assert first.json["state"] == "accepted"

        assert gateway.call("POST", path, body, DESK, idempotency_key=path).json == first.json

    assert gateway.call("POST", "/v1/policies", narrowing, DESK).code == "input.policy_version"


def test_a_policy_of_which_nobody_knew_is_the_same_one_when_it_is_sent_again() -> None:
    """Checked against itself it would be refused, and whoever sent it would never get its token."""
    gateway = InMemoryGateway()
    gateway.publish()
    narrowing = POLICY | {"version": "2", "terms": [POLICY["terms"][0] | {"regime": "OPT_IN"}]}
    gateway.log.fails = "silent"
    first = gateway.call("POST", "/v1/policies", narrowing, DESK, idempotency_key="k")
    assert first.status == 504
    gateway.log.fails = ""

    again = gateway.call("POST", "/v1/policies", narrowing, DESK, idempotency_key="k")

    assert (again.status, again.json["event_id"]) == (202, first.json["event_id"])
    assert len(gateway.controls.controls.log) == 2


def test_a_proposal_sent_again_is_the_same_proposal_also_after_it_was_approved() -> None:
    """Two proposals of one lift would need two approvals, or end two versions of a pause."""
    gateway = InMemoryGateway()
    first = gateway.call("POST", "/v1/policies", POLICY, DESK, idempotency_key="k")
    second = gateway.call("POST", "/v1/policies", POLICY, DESK, idempotency_key="k")
    gateway.call(
        "POST", f"/v1/approvals/{first.json['approval_id']}/approve", who="dev:eva:approver"
    )

    third = gateway.call("POST", "/v1/policies", POLICY, DESK, idempotency_key="k")

    assert first.json == second.json == third.json
    assert len(gateway.call("GET", "/v1/approvals", who=DESK).json["approvals"]) == 1


def test_an_opt_in_has_to_say_what_the_person_saw() -> None:
    """Without it an opt-in would cancel an opt-out that the person had made since on another
    device.
    """
    gateway = InMemoryGateway()
    gateway.publish()
    gateway.settle()
    gateway.call("POST", "/v1/consent-changes", OPT_OUT)

    answers: dict[str, Any] = {
        "nothing": gateway.call("POST", "/v1/consent-changes", OPT_IN),
        "too old": gateway.call("POST", "/v1/consent-changes", OPT_IN, if_match='"1"'),
        "two of them": gateway.call(
            "POST", "/v1/consent-changes", OPT_IN | {"observed_version": 1}, if_match='"2"'
        ),
        "no version": gateway.call("POST", "/v1/consent-changes", OPT_IN, if_match="*"),
        "weak": gateway.call("POST", "/v1/consent-changes", OPT_IN, if_match='W/"2"'),
        "too large": gateway.call(
            "POST", "/v1/consent-changes", OPT_IN, if_match="9223372036854775808"
        ),
    }

    assert {name: reply.status for name, reply in answers.items()} == {
        "nothing": 428,
        "too old": 412,
        "two of them": 400,
        "no version": 400,
        "weak": 400,
        "too large": 400,
    }
    assert gateway.decision()["reason"] == "OPTED_OUT"
    assert gateway.call("POST", "/v1/consent-changes", OPT_IN, if_match='"2"').status == 202
    assert gateway.decision()["reason"] == "OPTED_IN"


def test_the_version_in_the_body_and_in_the_header_are_the_same_thing() -> None:
    """A client that sends both, agreeing, is right."""
    gateway = InMemoryGateway()
    gateway.publish()
    gateway.settle()

    reply = gateway.call(
        "POST", "/v1/consent-changes", OPT_IN | {"observed_version": 1}, if_match='"1"'
    )

    assert reply.status == 202
    assert getattr(gateway.log.events[-1], "observed_version", None) == 1


def test_a_purpose_that_no_policy_names_can_be_left_and_not_entered() -> None:
    """A mistyped purpose: the opt-in would promise nothing, the opt-out must be kept all the
    same.
    """
    gateway = InMemoryGateway()
    gateway.publish()

    opt_in = gateway.call(
        "POST", "/v1/consent-changes", OPT_IN | {"purpose": "genai", "observed_version": 0}
    )
    opt_out = gateway.call("POST", "/v1/consent-changes", OPT_OUT | {"purpose": "genai"})

    assert (opt_in.status, opt_in.code) == (422, "purpose.unknown")
    assert PURPOSE in opt_in.json["fix"]
    assert opt_out.status == 202
    assert opt_out.json["warnings"]


def test_an_id_needs_its_time_and_then_counts_once() -> None:
    """The same id with another time is taken for a forgery, and holds the member."""
    gateway = InMemoryGateway()
    named = OPT_OUT | {"event_id": "018f3a9e-1c5a-7cc0-9b1a-0c5fe0f3a111"}
    timed = named | {"effective_at": "2025-06-01T10:00:00+02:00"}

    assert gateway.call("POST", "/v1/consent-changes", named).code == "event.time_missing"
    for _ in range(2):
        assert gateway.call("POST", "/v1/consent-changes", timed).status == 202
        gateway.now += 5_000_000

    record = gateway.log.record("m:1")
    assert record is not None
    assert [fact.kind for fact in record.facts] == [FactKind.OPTED_OUT]


def test_a_full_queue_is_told_to_come_again() -> None:
    """Back-pressure that looked like a fault would be retried at once, by everybody."""
    gateway = InMemoryGateway()
    gateway.log.fails = "full"

    reply = gateway.call("POST", "/v1/consent-changes", OPT_OUT)

    assert (reply.status, reply.code, reply.headers["retry-after"]) == (
        503,
        "kafka.queue_full",
        "1",
    )


def test_a_host_that_is_none_changes_nothing() -> None:
    """The address of a request is built from what the caller says; it must not be needed for
    anything.
    """
    gateway = InMemoryGateway()

    for host in ("[::1", "a b", "", "x" * 5000):
        assert (
            gateway.call(
                "POST", "/v1/consent-changes", OPT_OUT, host=host, idempotency_key="k"
            ).status
            == 202
        )


class AskedTwice(InMemoryIdempotency):
    """A store whose client repeats a command that is answered late, as redis-py does, and tells the
    second answer.
    """

    async def claim(self, key: str, attempt: Attempt) -> Attempt | None:
        await super().claim(key, attempt)
        return await super().claim(key, attempt)


def test_a_request_that_meets_its_own_attempt_is_the_first() -> None:
    """Told that another one is being answered, a member's opt-out would be kept out by nobody at
    all.
    """
    gateway = InMemoryGateway(idempotency=AskedTwice())

    first = gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k")
    again = gateway.call("POST", "/v1/consent-changes", OPT_OUT, idempotency_key="k")

    assert (first.status, again.status) == (202, 202)
    assert "idempotent-replayed" not in first.headers
    assert first.json == again.json
    assert len(gateway.log.messages) == 1


EXCLUDING = [
    ("/v1/consent-changes", OPT_OUT),
    ("/v1/consent-changes", OPT_OUT | {"choice": "UNKNOWN"}),
    ("/v1/erasures", {"member_id": "m:1"}),
]


@pytest.mark.parametrize(("path", "body"), EXCLUDING)
def test_what_excludes_binds_at_once_unless_it_is_announced(
    path: str, body: dict[str, Any]
) -> None:
    """A wrong time zone would leave a person in training for hours after they were told that they
    are out.
    """
    for seconds, status, effective in (
        (2.1, 422, None),
        (2, 202, START),
        (0, 202, START),
        (-5, 202, START - 5_000_000),
    ):
        gateway = InMemoryGateway()
        at = iso_text(Micros(START + int(seconds * 1e6)))

        reply = gateway.call("POST", path, body | {"effective_at": at})

        assert reply.status == status
        assert [event.fact().effective_at for event in gateway.log.events] == (
            [] if effective is None else [effective]
        )
        if effective is None:
            assert (reply.code, reply.json["field"]) == ("event.ahead", "effective_at")
            assert "announced" in reply.json["fix"]


@pytest.mark.parametrize(("path", "body"), EXCLUDING)
def test_what_is_announced_binds_when_it_says(path: str, body: dict[str, Any]) -> None:
    """An account that closes at the end of the month is in use until then."""
    gateway = InMemoryGateway()
    later = Micros(START + 86_400_000_000)

    reply = gateway.call("POST", path, body | {"effective_at": iso_text(later), "announced": True})

    assert reply.status == 202
    assert gateway.log.events[0].fact().effective_at == later
    assert (
        gateway.call(
            "POST", path, body | {"effective_at": iso_text(later), "announced": "yes"}
        ).code
        == "input.field"
    )


def test_a_repetition_by_id_after_its_time_came_is_the_same_event() -> None:
    """Clamped the first time and not the second, it would be taken for a forgery."""
    gateway = InMemoryGateway()
    body = OPT_OUT | {
        "event_id": "018f3a9e-1c5a-7cc0-9b1a-0c5fe0f3a111",
        "effective_at": iso_text(Micros(START + 1_500_000)),
    }
    for _ in range(3):
        assert gateway.call("POST", "/v1/consent-changes", body).status == 202
        gateway.now += 1_000_000

    record = gateway.log.record("m:1")
    assert record is not None
    assert [fact.kind for fact in record.facts] == [FactKind.OPTED_OUT]


def test_a_pause_for_later_says_so() -> None:
    """Whoever thinks that it binds stops looking."""
    gateway = InMemoryGateway()
    pause = {"pause": "hk", "jurisdictions": ["HK"]}

    now = gateway.call("POST", "/v1/pauses", pause, DESK)
    later = gateway.call(
        "POST", "/v1/pauses", pause | {"pause": "de", "effective": "2030-01-01T00:00:00Z"}, DESK
    )

    assert now.json["warnings"] == []
    assert "does not bind before 2030-01-01T00:00:00Z" in later.json["warnings"][0]
