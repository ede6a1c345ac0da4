"""Members' records from and to Avro bytes (ConsentRecord), by hand as each event passes here.

A record is its frame, its version (8 bytes, big-endian), the facts as one Avro block, newest first,
two horizons, and a CRC-32 over the member id and everything before it. The checksum covers the id
so that one member's record never passes for another's. tests/unit/wire compare all of it with
fastavro, byte for byte.

The record of `anna` who opted out of `ai` on 18 September 2024, 51 bytes:

    00 00 00 00 0c             the Confluent frame: magic byte 0, schema id 12
    00 00 00 00 00 00 00 01    version 1
    02                         the block has 1 fact (a long: 1 is 02, see avro_bytes.py)
      02                       the version that this fact made: 1
      04                       its kind: OPTED_OUT is number 2 of the enum
      80 80 b0 cb af 96 91 06  effective_at, 1,726,617,600,000,000 µs: 2024-09-18 00:00 UTC
      a0 c2 ce cb af 96 91 06  recorded_at, a quarter of a second later
      08 08 08 08 08 08 08 18  the tag: the two halves of the event id, one XOR the other
      00                       observed_version: branch 0 of the union, null
      04 61 69                 the name, here the purpose: 2 bytes, "ai"
    00                         the end of the facts: a block of none
    00 00                      both horizons 0: no fact was folded away
    f5 7c 15 b0                the checksum

As the newest fact stands first, one more fact is put in front of the others' bytes without reading
them (`append_fact`), and the newest is read without the rest (`newest_fact`).
"""

from __future__ import annotations

import hashlib
from binascii import crc32
from typing import Final

from consentry.domain.errors import ConsentryError
from consentry.domain.events import Fact, FactKind
from consentry.domain.records import FACTS_MAX, Record
from consentry.domain.values import MemberId, Micros
from consentry.wire.avro_bytes import LONGS, long_bytes, read_instant, read_long
from consentry.wire.frames import FRAME_LENGTH

_FACTS_AT: Final = FRAME_LENGTH + 8
_CHECKSUM_LENGTH: Final = 4
_TAIL: Final = b"\x00\x00\x00"
"""The end of the facts and two empty horizons: the end of every record without folded facts."""
_BLOCK_MAX: Final = 63
"""With up to 63 facts the block's count is one byte."""
_LENGTH_MIN: Final = _FACTS_AT + len(_TAIL) + _CHECKSUM_LENGTH
_ERASED_BYTE: Final = FactKind.ERASED << 1
_KINDS: Final = {kind << 1: kind for kind in FactKind}
"""By its byte, an enum's number as a long, the kind of a fact."""
DIGEST_BITS: Final = 128


class DamagedRecord(ConsentryError):
    """Raised when bytes are not a member's record, or do not carry their checksum.

    The member is quarantined then.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"A stored record is damaged: {detail}.",
            code="record.damaged",
            fix="run `consentry table rebuild`",
        )


def fact_body(fact: Fact) -> bytes:
    """Return the Avro bytes of a fact without its version, which stands before them."""
    name = fact.name.encode()
    if fact.observed_version is None:
        observed = b"\x00"
    else:
        observed = b"\x02" + long_bytes(fact.observed_version)
    return b"".join(
        (
            bytes((fact.kind << 1,)),
            long_bytes(fact.effective_at),
            long_bytes(fact.recorded_at),
            fact.tag,
            observed,
            long_bytes(len(name)),
            name,
        )
    )


def body_fact(body: bytes) -> Fact:
    """Return the fact decoded from the bytes of `fact_body`, with version 0."""
    fact, _ = _read_fact(b"\x00" + body, 0)
    return fact


def write_record(record: Record, record_frame: bytes) -> bytes:
    """Return the framed Avro bytes of a member's record, with its checksum."""
    count = len(record.facts)
    newest_first = b"".join(
        long_bytes(fact.version) + fact_body(fact) for fact in reversed(record.facts)
    )
    block = long_bytes(count) + newest_first if count else b""
    head = record_frame + record.version.to_bytes(8, "big") + block + b"\x00"
    head += long_bytes(record.folded_effective_at) + long_bytes(record.folded_recorded_at)
    return head + crc32(head, crc32(record.member.encode())).to_bytes(4, "big")


def read_record(raw: bytes, member: bytes) -> Record:
    """Decode a member's record from framed bytes. Raises DamagedRecord if they are not sound.

    That is for a wrong checksum or form.
    """
    verify_checksum(raw, member)
    try:
        count, position = read_long(raw, _FACTS_AT)
        facts: list[Fact] = []
        if count:
            for _ in range(count):
                fact, position = _read_fact(raw, position)
                facts.append(fact)
            end, position = read_long(raw, position)
            if end != 0:
                raise DamagedRecord("its facts are not one block")
        folded_effective_at, position = read_long(raw, position)
        folded_recorded_at, position = read_long(raw, position)
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise DamagedRecord(f"its bytes are not a record ({type(error).__name__})") from error
    if position != len(raw) - _CHECKSUM_LENGTH:
        raise DamagedRecord("bytes follow its content")
    facts.reverse()
    return Record(
        member=MemberId(member.decode()),
        version=int.from_bytes(raw[FRAME_LENGTH:_FACTS_AT], "big"),
        facts=tuple(facts),
        folded_effective_at=Micros(folded_effective_at),
        folded_recorded_at=Micros(folded_recorded_at),
    )


def verify_checksum(raw: bytes, member: bytes) -> None:
    """Raise DamagedRecord unless bytes end in the checksum of this member's record."""
    if len(raw) < _LENGTH_MIN or crc32(raw[:-4], crc32(member)) != int.from_bytes(raw[-4:], "big"):
        raise DamagedRecord("its checksum does not match")


def version_of(raw: bytes) -> int:
    """Return the version in the bytes of a member's record, without decoding the rest."""
    return int.from_bytes(raw[FRAME_LENGTH:_FACTS_AT], "big")


def newest_fact(raw: bytes) -> Fact | None:
    """Return the newest fact in a record's bytes without decoding the rest; None if none."""
    count, position = read_long(raw, _FACTS_AT)
    if count <= 0:
        return None
    fact, _ = _read_fact(raw, position)
    return fact


def is_ancestor(older: bytes, newer: bytes) -> bool:
    """Say whether the record bytes `newer` continue `older`: they still hold its last fact.

    Otherwise one of the two lost an event. A record that folded this fact away says no too; that
    quarantines a member rather than miss a loss.
    """
    last = newest_fact(older)
    return last is None or last.tag in newer[_FACTS_AT:]


def _read_fact(data: bytes, position: int) -> tuple[Fact, int]:
    """Return the fact at `position`, and the position after it. Raises IndexError, KeyError."""
    version, position = read_long(data, position)
    kind = _KINDS[data[position]]
    effective_at, position = read_instant(data, position + 1)
    recorded_at, position = read_instant(data, position)
    tag = data[position : position + 8]
    position += 8
    branch, position = data[position], position + 1
    observed = None
    if branch == 2:
        observed, position = read_long(data, position)
    elif branch != 0:
        raise IndexError("no such branch")
    length, position = read_long(data, position)
    end = position + length
    if length < 0 or end > len(data):
        raise IndexError("name beyond the end")
    name = data[position:end].decode("ascii")
    return Fact(kind, Micros(effective_at), Micros(recorded_at), tag, observed, name, version), end


def record_digest(member: bytes, raw: bytes) -> int:
    """Return the number that the bytes of one member's record add to a digest.

    Sums of these modulo 2^128 compare table, log and followers in any order.
    """
    return int.from_bytes(
        hashlib.blake2b(raw, digest_size=DIGEST_BITS // 8, key=member).digest(), "big"
    )


def first_record(member: bytes, body: bytes, record_frame: bytes) -> bytes:
    """Return the framed Avro bytes of a new member's record with one fact."""
    head = b"%b\x00\x00\x00\x00\x00\x00\x00\x01\x02\x02%b\x00\x00\x00" % (record_frame, body)
    return head + crc32(head, crc32(member)).to_bytes(4, "big")


def append_fact(raw: bytes, member: bytes, body: bytes, tag: bytes) -> bytes | None:
    """Return a record's bytes with one more fact, put before the bytes of the others.

    None where the record has to be read: the member may be erased, the event may be a repetition,
    the block is full, or facts were folded. Otherwise it equals reading, `fold_fact` and writing
    (property test). Raises DamagedRecord.
    """
    seed = crc32(member)
    # As verify_checksum, written out: this is once per event, and the seed is needed again.
    if len(raw) < _LENGTH_MIN or crc32(raw[:-4], seed) != int.from_bytes(raw[-4:], "big"):
        raise DamagedRecord("its checksum does not match")
    count_byte = raw[_FACTS_AT]
    has_short_count = count_byte & 1 == 0 and 0 < count_byte < _BLOCK_MAX << 1
    if not has_short_count or raw[-7:-4] != _TAIL:
        return None
    facts = raw[_FACTS_AT + 1 : -7]
    last_of_version = 0
    while facts[last_of_version] >= 0x80:
        last_of_version += 1
    # The tag is searched in all bytes: one that is found by chance only costs the slow way.
    if facts[last_of_version + 1] == _ERASED_BYTE or tag in facts:
        return None
    version = int.from_bytes(raw[FRAME_LENGTH:_FACTS_AT], "big") + 1
    head = b"".join(
        (
            raw[:FRAME_LENGTH],
            version.to_bytes(8, "big"),
            LONGS[(count_byte >> 1) + 1],
            LONGS[version] if version < len(LONGS) else long_bytes(version),
            body,
            facts,
            _TAIL,
        )
    )
    return head + crc32(head, seed).to_bytes(4, "big")


# One more than fits the short form: the generic path writes full records.
assert FACTS_MAX == _BLOCK_MAX + 1
