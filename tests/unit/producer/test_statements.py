"""What a service states becomes exactly one event, and its parts are told apart."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from confluent_kafka import KafkaError
from tests.strategies import new_catalog

from consentry.domain.errors import InvalidInput
from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated, SentEvent
from consentry.domain.values import AgeBand, Choice, Micros
from consentry.kafka.sender import Undelivered
from consentry.producer.acceptance import Acceptance, EventUndelivered, Signer
from consentry.producer.outbox import Outbox, _waves
from consentry.producer.statements import Statements
from consentry.wire.events import read_event
from consentry.wire.tokens import TokenKeys, read_token

NOW = Micros(1_760_000_000_000_000)
ID = uuid.UUID("12345678-1234-4678-9234-567812345678")


class Kept(Statements[SentEvent]):
    """Hands out the event itself."""

    def _take(self, event: SentEvent, traceparent: str | None) -> SentEvent:
        return event


STATE = Kept(source="settings-web", clock=lambda: NOW)


def test_each_statement_says_what_its_name_says() -> None:
    """Two that are mixed up are a decision that the member never made."""
    out = STATE.opt_out(
        "anna", "genai_training", legal_basis="OTHER", notice_version="n", evidence="e"
    )
    assert isinstance(out, ConsentChanged)
    assert (out.choice, out.observed_version, out.legal_basis) == (Choice.OPT_OUT, None, "OTHER")
    assert (out.member, out.purpose, out.notice_version, out.evidence) == (
        "anna",
        "genai_training",
        "n",
        "e",
    )
    back = STATE.opt_in("anna", "genai_training", observed_version=7)
    assert isinstance(back, ConsentChanged)
    assert (back.choice, back.observed_version) == (Choice.OPT_IN, 7)
    unknown = STATE.clear_choice("anna", "genai_training")
    assert isinstance(unknown, ConsentChanged)
    assert unknown.choice is Choice.UNKNOWN
    moved = STATE.relocate("anna", "HK", age_band="MINOR")  # type: ignore[arg-type] # as text it is understood too
    assert isinstance(moved, MemberRelocated)
    assert (moved.jurisdiction, moved.age_band) == ("HK", AgeBand.MINOR)
    assert isinstance(STATE.erase("anna"), MemberErased)
    for event in (out, back, unknown, moved):
        assert (event.source, event.effective_at, event.recorded_at) == ("settings-web", NOW, NOW)


def test_an_opt_in_cannot_leave_out_what_the_person_had_seen() -> None:
    """Guessed for them it would cancel an opt-out that they do not know of."""
    with pytest.raises(TypeError, match="observed_version"):
        STATE.opt_in("anna", "genai_training")  # type: ignore[call-arg] # what is refused


def test_two_statements_have_two_ids() -> None:
    """One id for two would hold the member."""
    assert len({STATE.erase("anna").event_id for _ in range(100)}) == 100


def test_a_repetition_has_the_same_id_and_the_same_time() -> None:
    """Another time under the same id is another content, which holds the member."""
    moment = datetime(2024, 10, 11, 8, 30, 0, 123456, tzinfo=UTC)
    elsewhere = moment.astimezone(timezone(timedelta(hours=8)))
    first, second = (
        STATE.erase("anna", event_id=ID, effective_at=given) for given in (moment, elsewhere)
    )
    assert first == second
    assert first.event_id == ID.bytes
    assert first.effective_at == 1_728_635_400_123_456
    assert STATE.erase("anna", event_id=ID, effective_at=first.effective_at) == first
    with pytest.raises(InvalidInput, match=r"producer\.id_without_time"):
        STATE.erase("anna", event_id=ID)


def test_a_time_without_an_offset_is_refused() -> None:
    """It is another instant on each machine."""
    with pytest.raises(InvalidInput, match=r"producer\.naive_time"):
        STATE.erase("anna", effective_at=datetime(2024, 10, 11))  # noqa: DTZ001 - what is refused


def test_the_token_of_an_acceptance_demands_the_next_offset_and_no_repr_names_the_keys() -> None:
    """One offset too few, and a reader that has not read the event counts as fresh."""
    signer = Signer(b"12345678", TokenKeys({3: b"secret-secret-secret-secret-secret"}))
    acceptance = Acceptance(ID.bytes, 5, 41, NOW, signer)
    token = read_token(acceptance.token, signer.keys)
    assert (token.log, token.offsets, token.controls) == (b"12345678", {5: 42}, 0)
    assert acceptance.event_id == ID
    assert "secret" not in repr(acceptance) + repr(signer)


def test_an_outbox_row_holds_the_very_bytes_that_a_producer_sends() -> None:
    """Debezium copies them; whatever differs is unreadable, and holds the member."""
    catalog = new_catalog()
    outbox = Outbox(source="settings-web", catalog=catalog, clock=lambda: NOW)
    row = outbox.opt_out("anna", "genai_training", event_id=ID, effective_at=NOW)
    assert row[:4] == (ID, "member-events", "anna", "consentry.ConsentChanged")
    event = read_event(row.payload, b"anna", catalog)
    assert event == STATE.opt_out("anna", "genai_training", event_id=ID, effective_at=NOW)
    assert outbox.row_for(event) == row


@pytest.mark.parametrize(
    ("members", "waves"),
    [
        ("", []),
        ("abc", ["abc"]),
        ("aab", ["ab", "a"]),
        ("abacaba", ["abc", "ab", "a", "a"]),
    ],
)
def test_no_member_is_twice_on_its_way_and_none_out_of_order(
    members: str, waves: list[str]
) -> None:
    """Of two on their way the first may have to be sent again, and then stands after the second."""
    rows: list[Any] = [(position, None, member, b"") for position, member in enumerate(members)]
    found = _waves(rows)
    assert ["".join(row[2] for row in wave) for wave in found] == waves
    for member in set(members):
        positions = [row[0] for wave in found for row in wave if row[2] == member]
        assert positions == sorted(positions)


def test_an_undelivered_event_tells_which_and_what_to_do_and_names_nobody() -> None:
    """A caller who makes a new event instead counts the choice twice."""
    event = STATE.erase("anna")
    timed_out = Undelivered("t", KafkaError(KafkaError._MSG_TIMED_OUT))
    error = EventUndelivered(timed_out, [event], is_unknown=timed_out.is_unknown)
    assert error.event is event
    assert error.is_unknown
    assert "producer.send(error.event)" in error.fix
    assert "anna" not in str(error)
    refused = Undelivered("t", KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    assert not refused.is_unknown
