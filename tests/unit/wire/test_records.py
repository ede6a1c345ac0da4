"""Records on the wire: the hand-written codec is held to fastavro, and no damage passes
unnoticed.
"""

from __future__ import annotations

import io
from binascii import crc32
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import MEMBER, chose, erased, facts, folded, member_ids, moved

from consentry.domain.events import Fact, FactKind
from consentry.domain.records import FACTS_MAX, Record, fold_fact
from consentry.domain.values import Choice, MemberId, Micros
from consentry.wire.avro_bytes import long_bytes, read_long
from consentry.wire.frames import FRAME_LENGTH, frame
from consentry.wire.records import (
    DIGEST_BITS,
    DamagedRecord,
    append_fact,
    body_fact,
    fact_body,
    first_record,
    newest_fact,
    read_record,
    record_digest,
    verify_checksum,
    version_of,
    write_record,
)
from consentry.wire.schemas import schema

FRAME = frame(7)
KEY = MEMBER.encode()
LONGS = st.integers(-(2**63), 2**63 - 1)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Any record that could be written, also ones that folding would not make."""
    kept = draw(st.lists(facts(), max_size=FACTS_MAX + 2))
    first = draw(st.integers(1, 2**20))
    return Record(
        member=draw(member_ids),
        version=first + len(kept),
        facts=tuple(fact._replace(version=first + place) for place, fact in enumerate(kept)),
        folded_effective_at=Micros(draw(st.just(0) | st.integers(1 << 48, 1 << 55))),
        folded_recorded_at=Micros(draw(st.just(0) | st.integers(1 << 48, 1 << 55))),
    )


def by_fastavro(record: Record) -> bytes:
    """The framed bytes that the schema itself gives."""
    fields: dict[str, Any] = {
        "version": record.version.to_bytes(8, "big"),
        "facts": [
            {
                "version": fact.version,
                "kind": fact.kind.name,
                "effective_at": fact.effective_at,
                "recorded_at": fact.recorded_at,
                "event_tag": fact.tag,
                "observed_version": fact.observed_version,
                "name": fact.name,
            }
            for fact in reversed(record.facts)
        ],
        "folded_effective_at": record.folded_effective_at,
        "folded_recorded_at": record.folded_recorded_at,
        "checksum": bytes(4),
    }
    head = FRAME + schema("ConsentRecord").encode(fields)[:-4]
    fields["checksum"] = crc32(record.member.encode() + head).to_bytes(4, "big")
    return FRAME + schema("ConsentRecord").encode(fields)


class TestLongs:
    @given(LONGS)
    def test_a_long_is_written_as_avro_writes_it_and_read_back(self, value: int) -> None:
        """One wrong bit in a time moves an opt-out by years."""
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, "long", value)

        assert long_bytes(value) == buffer.getvalue()
        assert read_long(long_bytes(value), 0) == (value, len(buffer.getvalue()))

    def test_a_long_that_never_ends_is_refused(self) -> None:
        """A worker that reads on into the next member's bytes would mix two people."""
        with pytest.raises(IndexError):
            read_long(b"\x80" * 11, 0)


class TestCodec:
    @given(records())
    def test_a_record_is_byte_for_byte_what_its_schema_says(self, record: Record) -> None:
        """Trainers in other languages read these bytes with the schema alone."""
        assert write_record(record, FRAME) == by_fastavro(record)

    @given(records())
    def test_what_was_written_is_read_back(self, record: Record) -> None:
        """The table gives back what the worker knew, or a restart forgets."""
        raw = write_record(record, FRAME)

        assert read_record(raw, record.member.encode()) == record
        assert version_of(raw) == record.version
        assert newest_fact(raw) == (record.facts[-1] if record.facts else None)

    @given(facts())
    def test_a_fact_is_read_back_from_its_own_bytes(self, fact: Fact) -> None:
        """The fast path carries facts as bytes only."""
        assert body_fact(fact_body(fact)) == fact

    @given(facts())
    def test_a_first_record_is_the_one_that_folding_gives(self, fact: Fact) -> None:
        """Most members have exactly one event; that shortcut must not be another rule."""
        expected = write_record(fold_fact(None, MEMBER, fact), FRAME)

        assert first_record(KEY, fact_body(fact), FRAME) == expected

    @given(st.lists(facts(), min_size=1, max_size=8), facts(), st.booleans())
    def test_prepending_a_fact_equals_reading_folding_and_writing(
        self, before: list[Fact], fact: Fact, repeats: bool
    ) -> None:
        """Two ways to fold would let the busy hour and the quiet one disagree about a member."""
        record: Record | None = None
        for one in before:
            record = fold_fact(record, MEMBER, one)
        assert record is not None
        fact = before[0] if repeats else fact

        found = append_fact(write_record(record, FRAME), KEY, fact_body(fact), fact.tag)

        assert found in (None, write_record(fold_fact(record, MEMBER, fact), FRAME))

    def test_the_shortcut_is_taken_where_nothing_speaks_against_it(self) -> None:
        """A shortcut that always stands aside passes every test of equality."""
        raw = write_record(folded(moved("US", 1, on=1)), FRAME)  # type: ignore[arg-type]
        fact = chose(Choice.OPT_OUT, 2, on=2).fact()

        assert append_fact(raw, KEY, fact_body(fact), fact.tag) is not None

    def test_the_shortcut_leaves_full_folded_and_erased_records_alone(self) -> None:
        """Nothing may be added to an erased member, and no record may outgrow its bound."""
        full = folded(*(moved("US", number, on=number) for number in range(1, FACTS_MAX)))
        over = folded(*(moved("US", number, on=number) for number in range(1, FACTS_MAX + 2)))
        gone = folded(erased(1, on=1))
        fact = chose(Choice.OPT_OUT, 1000, on=2).fact()

        for record in (full, over, gone):
            assert record is not None
            assert append_fact(write_record(record, FRAME), KEY, fact_body(fact), fact.tag) is None


class TestDamage:
    def test_every_single_flipped_bit_is_noticed(self) -> None:
        """One flipped bit turns OPTED_OUT into another kind, and the rest still decodes."""
        record = folded(moved("US", 1, on=1), chose(Choice.OPT_OUT, 2, on=2))
        assert record is not None
        raw = write_record(record, FRAME)

        for bit in range(len(raw) * 8):
            damaged = bytearray(raw)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(DamagedRecord):
                read_record(bytes(damaged), KEY)
            with pytest.raises(DamagedRecord):
                append_fact(bytes(damaged), KEY, b"", b"12345678")

    def test_without_the_checksum_a_flipped_bit_would_read_as_another_choice(self) -> None:
        """Hurt when this breaks: whoever trusts that the checksum is needed."""
        record = folded(chose(Choice.OPT_OUT, 1, on=1))
        assert record is not None
        raw = bytearray(write_record(record, FRAME))
        kind_at = FRAME_LENGTH + 8 + 2
        assert raw[kind_at] == FactKind.OPTED_OUT << 1

        raw[kind_at] ^= (FactKind.OPTED_OUT << 1) ^ (FactKind.OPTED_IN << 1)

        read: Any = fastavro.schemaless_reader(
            io.BytesIO(bytes(raw[FRAME_LENGTH:])), schema("ConsentRecord").parsed, None
        )
        assert read["facts"][0]["kind"] == "OPTED_IN"
        with pytest.raises(DamagedRecord):
            read_record(bytes(raw), KEY)

    @given(records(), member_ids)
    def test_a_record_under_another_members_id_is_noticed(
        self, record: Record, other: MemberId
    ) -> None:
        """A mixed-up answer of the server must not give one member the consent of another."""
        raw = write_record(record, FRAME)

        if other != record.member:
            with pytest.raises(DamagedRecord):
                verify_checksum(raw, other.encode())

    @given(st.binary(max_size=60), st.booleans())
    def test_any_bytes_are_a_record_or_damaged_also_with_a_right_checksum(
        self, content: bytes, signed: bool
    ) -> None:
        """Whatever lies in the table, the worker goes on and the member is quarantined."""
        raw = FRAME + content
        if signed:
            raw += crc32(raw, crc32(KEY)).to_bytes(4, "big")

        try:
            record = read_record(raw, KEY)
        except DamagedRecord as error:
            assert error.code == "record.damaged"  # noqa: PT017 - either outcome is right, and each has its own promise
        else:
            assert record.member == MEMBER

    @given(records(), records())
    def test_digests_differ_where_records_do(self, one: Record, other: Record) -> None:
        """`verify` compares sums of these; two wrongs must not make a right."""
        digests = {
            record_digest(record.member.encode(), write_record(record, FRAME))
            for record in (one, other)
        }

        assert len(digests) == (1 if one == other else 2)
        assert all(0 <= digest < 1 << DIGEST_BITS for digest in digests)
