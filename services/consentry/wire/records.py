"""Records from and to bytes: the Avro bytes of ConsentRecord, written and read by hand because
every event passes here.

Layout (ConsentRecord.avsc): frame, version (8 bytes), facts newest first as one Avro block, two
horizons, CRC-32 over the member id and everything before it. tests/unit/wire hold it to fastavro,
byte for byte.
"""

from __future__ import annotations

import hashlib
from binascii import crc32
from typing import Final

from consentry.domain.errors import ConsentryError
from consentry.domain.events import Fact, FactKind
from consentry.domain.records import FACTS_MAX, Record
from consentry.domain.values import MemberId, Micros
from consentry.wire.frames import FRAME_LENGTH

_FACTS_AT: Final = FRAME_LENGTH + 8
_TAIL: Final = b"\x00\x00\x00"
"""End of the facts and two empty horizons: how every record ends whose facts were never folded."""
_BLOCK_MAX: Final = 63
"""With up to 63 facts the block's count is one byte."""
_ERASED_BYTE: Final = FactKind.ERASED << 1
_CONTINUATION: Final = 0x8080808080808080
_EIGHT_BYTES: Final = 0x0080808080808080
"""Seven bytes that go on and an eighth that ends, read as a little-endian number."""
_KINDS: Final = {kind << 1: kind for kind in FactKind}


class DamagedRecord(ConsentryError):
    """The bytes of a record do not carry their checksum, or are not a record: its member is
    quarantined.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"A stored record is damaged: {detail}.",
            code="record.damaged",
            fix="run `consentry table rebuild`",
        )


def long_bytes(value: int) -> bytes:
    """An Avro int or long: zig-zag, seven bits a byte, least significant first."""
    zigzag = (value << 1) ^ (value >> 63)
    if zigzag < 0x80:
        return bytes((zigzag,))
    out = bytearray()
    while zigzag >= 0x80:
        out.append((zigzag & 0x7F) | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def read_long(data: bytes, position: int) -> tuple[int, int]:
    """The Avro long at `position`, and the position after it. IndexError where the bytes end."""
    shift = zigzag = 0
    while True:
        byte = data[position]
        position += 1
        zigzag |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (zigzag >> 1) ^ -(zigzag & 1), position
        shift += 7
        if shift > 63:
            raise IndexError("varint longer than ten bytes")


_LONGS: Final = [long_bytes(value) for value in range(64)]
"""The longs that take one byte."""


def fact_body(fact: Fact) -> bytes:
    """The bytes of a fact after its version."""
    name = fact.name.encode()
    observed = (
        b"\x00" if fact.observed_version is None else b"\x02" + long_bytes(fact.observed_version)
    )
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
    """The fact behind `fact_body`'s bytes, with version 0."""
    return _read_fact(b"\x00" + body, 0)[0]


def write_record(record: Record, record_frame: bytes) -> bytes:
    """The framed bytes of a record, ending in its checksum."""
    count = len(record.facts)
    newest_first = b"".join(
        long_bytes(fact.version) + fact_body(fact) for fact in reversed(record.facts)
    )
    block = long_bytes(count) + newest_first if count else b""
    head = record_frame + record.version.to_bytes(8, "big") + block + b"\x00"
    head += long_bytes(record.folded_effective_at) + long_bytes(record.folded_recorded_at)
    return head + crc32(head, crc32(record.member.encode())).to_bytes(4, "big")


def read_record(raw: bytes, member: bytes) -> Record:
    """The record behind framed bytes. Raises DamagedRecord if the checksum or the form is wrong."""
    check_sum(raw, member)
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
    if position != len(raw) - 4:
        raise DamagedRecord("bytes follow its content")
    facts.reverse()
    return Record(
        member=MemberId(member.decode()),
        version=int.from_bytes(raw[FRAME_LENGTH:_FACTS_AT], "big"),
        facts=tuple(facts),
        folded_effective_at=Micros(folded_effective_at),
        folded_recorded_at=Micros(folded_recorded_at),
    )


def check_sum(raw: bytes, member: bytes) -> None:
    """Raise DamagedRecord unless the bytes end in the checksum of this member's record."""
    if len(raw) < _FACTS_AT + 7 or crc32(raw[:-4], crc32(member)) != int.from_bytes(
        raw[-4:], "big"
    ):
        raise DamagedRecord("its checksum does not match")


def version_of(raw: bytes) -> int:
    """The version of a framed record, without reading the rest."""
    return int.from_bytes(raw[FRAME_LENGTH:_FACTS_AT], "big")


def newest_fact(raw: bytes) -> Fact | None:
    """The last fact folded, without reading the rest; None where there is none."""
    count, position = read_long(raw, _FACTS_AT)
    return _read_fact(raw, position)[0] if count > 0 else None


def came_from(newer: bytes, older: bytes) -> bool:
    """Whether `newer` holds the last fact of `older`: it continues it.

    Otherwise one of the two lost an event.

    A record that folded the fact away says no too; that holds a member rather than miss a loss.
    """
    last = newest_fact(older)
    return last is None or last.tag in newer[_FACTS_AT:]


def _read_instant(data: bytes, position: int) -> tuple[int, int]:
    """An Avro long that usually takes eight bytes (an instant of 1979 to 3111): its seven-bit
    groups joined at once.
    """
    raw = int.from_bytes(data[position : position + 8], "little")
    if raw & _CONTINUATION != _EIGHT_BYTES:
        return read_long(data, position)
    raw &= 0x7F7F7F7F7F7F7F7F
    raw = (raw & 0x007F007F007F007F) | ((raw & 0x7F007F007F007F00) >> 1)
    raw = (raw & 0x00003FFF00003FFF) | ((raw & 0x3FFF00003FFF0000) >> 2)
    raw = (raw & 0x000000000FFFFFFF) | ((raw & 0x0FFFFFFF00000000) >> 4)
    return (raw >> 1) ^ -(raw & 1), position + 8


def _read_fact(data: bytes, position: int) -> tuple[Fact, int]:
    version, position = read_long(data, position)
    kind = _KINDS[data[position]]
    effective_at, position = _read_instant(data, position + 1)
    recorded_at, position = _read_instant(data, position)
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


DIGEST_BITS: Final = 128


def record_digest(member: bytes, raw: bytes) -> int:
    """What one record adds to a digest: sums of these modulo 2^128 compare table, log and followers
    in any order.
    """
    return int.from_bytes(
        hashlib.blake2b(raw, digest_size=DIGEST_BITS // 8, key=member).digest(), "big"
    )


def first_record(member: bytes, body: bytes, record_frame: bytes) -> bytes:
    """The framed bytes of a new member's record with one fact."""
    head = b"%b\x00\x00\x00\x00\x00\x00\x00\x01\x02\x02%b\x00\x00\x00" % (record_frame, body)
    return head + crc32(head, crc32(member)).to_bytes(4, "big")


def appended(raw: bytes, member: bytes, body: bytes, tag: bytes) -> bytes | None:
    """The record after one more fact, by prepending its bytes;

    None where only reading the record will do.

    None: the member may be erased, the event may be a repetition, the block is full, or facts were
    folded. Raises DamagedRecord. Equal to reading, `fold_fact` and writing whenever it is not None
    (property test).
    """
    seed = crc32(member)
    if len(raw) < _FACTS_AT + 7 or crc32(raw[:-4], seed) != int.from_bytes(raw[-4:], "big"):
        raise DamagedRecord("its checksum does not match")
    count = raw[_FACTS_AT]
    if count & 1 or count >= _BLOCK_MAX << 1 or count == 0 or raw[-7:-4] != _TAIL:
        return None
    facts = raw[_FACTS_AT + 1 : -7]
    position = 0
    while facts[position] >= 0x80:
        position += 1
    if facts[position + 1] == _ERASED_BYTE or tag in facts:
        return None
    version = int.from_bytes(raw[FRAME_LENGTH:_FACTS_AT], "big") + 1
    head = b"".join(
        (
            raw[:FRAME_LENGTH],
            version.to_bytes(8, "big"),
            _LONGS[(count >> 1) + 1],
            _LONGS[version] if version < 64 else long_bytes(version),
            body,
            facts,
            _TAIL,
        )
    )
    return head + crc32(head, seed).to_bytes(4, "big")


assert (
    FACTS_MAX == _BLOCK_MAX + 1
)  # one more than fits the short form: the generic path writes full records
