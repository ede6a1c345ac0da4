"""Messages that must never be heeded, byte by byte: one entry for each thing that docs call a bad
input.

Each is an opt-out of its member but for what is wrong with it: whoever skipped it, or read it
otherwise, would go on using the data of somebody who had said no.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.stack import PARTITIONS, now

from consentry.wire.avro_bytes import long_bytes
from consentry.wire.catalog import Catalog
from consentry.wire.frames import frame
from consentry.wire.headers import Header
from consentry.wire.partitions import partition_of

TAINTED: Final = 7
"""The partition that messages without a readable key are sent to; no other member of these tests
lives in it.
"""

# The parts of a good ConsentChanged, so that a reader sees what each attack changes.
OPT_OUT, OPT_IN, UNKNOWN = b"\x00", b"\x02", b"\x04"
CONSENT = b"\x00"
THE_INSTANT: Final = 1_704_067_200_000_000
INSTANT = b"\x80\x80\x89\x82\xe2\xf5\x86\x06"
NOISE: Final = Random(7).randbytes(1_048_000)
"""As large as a message can be, and no compression makes it smaller: quarantine has to take more
than that.
"""
YEAR_200000: Final = long_bytes(6_249_000_000_000_000_000)
PURPOSE = b"\x1cgenai_training"
NOTHING_SAID = b"\x00"
NULL = b"\x00"

assert long_bytes(THE_INSTANT) == INSTANT, "1 January 2024"

Value = Callable[[Catalog, bytes], bytes | None]


def text(key: bytes) -> bytes:
    """An Avro string: its length, then its bytes."""
    return long_bytes(len(key)) + key


def choice_of(head: bytes, key: bytes, /, **changed: bytes) -> bytes:
    """The bytes of an opt-out, part by part, with some parts replaced."""
    parts = {
        "head": head,
        "event_id": uuid.uuid4().bytes,
        "choice": OPT_OUT,
        "basis": CONSENT,
        "effective_at": INSTANT,
        "recorded_at": INSTANT,
        "purpose": PURPOSE,
        "notice": NOTHING_SAID,
        "source": NOTHING_SAID,
        "observed": NULL,
        "evidence": NULL,
        "member": text(key),
        "trailing": b"",
    }
    return b"".join((parts | changed).values())


def opt_out(**changed: bytes) -> Value:
    """An opt-out with some of its parts replaced."""
    return lambda catalog, key: choice_of(catalog.frame_of("ConsentChanged"), key, **changed)


def raw(value: bytes | None) -> Value:
    """Exactly these bytes, whoever is asked about."""
    return lambda _catalog, _key: value


def under_id_of(name: str) -> Value:
    """A good opt-out under the schema id of another of our records."""
    return lambda catalog, key: choice_of(catalog.frame_of(name), key)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One bad message: its row, what it is, how it is made, and the error class it is refused with.

    `key` None is a message of a member of its own; else the message is sent with that key (b"" for
    none) to the partition TAINTED. `headers` are sent with it.
    """

    row: str
    what: str
    value: Value
    error_class: str
    key: bytes | None = None
    partition_offset: int = 0
    headers: tuple[Header, ...] = field(default=())

    @property
    def taints(self) -> bool:
        """Whether nobody can tell whose message it is."""
        return self.key is not None

    @property
    def member(self) -> str:
        """The member whom the message is about; never one of the partition that will be tainted."""
        words = re.sub("[^A-Za-z0-9]+", "-", self.what)
        names = (f"{self.row}-{words}-{number}" for number in range(100))
        return next(name for name in names if partition_of(name.encode(), PARTITIONS) != TAINTED)

    @property
    def after(self) -> str:
        """Another member in the same partition, whose good event comes next."""
        home = TAINTED if self.taints else self.partition
        names = (f"after-{self.member[:40]}-{number}" for number in range(1000))
        return next(name for name in names if partition_of(name.encode(), PARTITIONS) == home)

    @property
    def partition(self) -> int:
        """Where the message is sent."""
        if self.taints:
            return TAINTED
        # Never to the partition that will be tainted, and to the wrong one only if told so.
        home = partition_of(self.member.encode(), PARTITIONS)
        return (home + self.partition_offset) % TAINTED if self.partition_offset else home


ATTACKS: Final = (
    # ---- frame, schema id, bytes
    Attack(row="B-01", what="no value", value=raw(None), error_class="empty"),
    Attack(row="B-01", what="empty value", value=raw(b""), error_class="empty"),
    Attack(row="B-02", what="one byte", value=raw(b"\x00"), error_class="short"),
    Attack(row="B-02", what="five bytes", value=raw(b"\x00\x00\x00\x00\x01"), error_class="short"),
    Attack(
        row="B-02",
        what="magic byte 1",
        value=opt_out(head=b"\x01\x00\x00\x00\x01"),
        error_class="magic",
    ),
    Attack(row="B-02", what="JSON", value=raw(b'{"choice": "OPT_OUT"}'), error_class="magic"),
    Attack(
        row="B-03",
        what="unknown schema id",
        value=opt_out(head=frame(999_999)),
        error_class="schema_id",
    ),
    Attack(
        row="B-03",
        what="negative schema id",
        value=opt_out(head=b"\x00\xff\xff\xff\xff"),
        error_class="schema_id",
    ),
    Attack(
        row="B-04",
        what="id of another type",
        value=under_id_of("Receipt"),
        error_class="wrong_type",
    ),
    Attack(
        row="B-04", what="id of the erasure", value=under_id_of("MemberErased"), error_class="avro"
    ),
    Attack(
        row="B-05", what="enum index -1", value=opt_out(choice=b"\x01"), error_class="not_canonical"
    ),
    Attack(
        row="B-05", what="enum index -2", value=opt_out(choice=b"\x03"), error_class="not_canonical"
    ),
    Attack(row="B-06", what="enum index 9", value=opt_out(choice=b"\x12"), error_class="avro"),
    Attack(row="B-06", what="union index 5", value=opt_out(observed=b"\x0a"), error_class="avro"),
    Attack(
        row="B-07",
        what="union index -1",
        value=opt_out(observed=b"\x01\x00"),
        error_class="not_canonical",
    ),
    Attack(
        row="B-08", what="trailing byte", value=opt_out(trailing=b"\x00"), error_class="trailing"
    ),
    Attack(
        row="B-08",
        what="two events in one",
        value=lambda catalog, key: choice_of(
            catalog.frame_of("ConsentChanged"), key, trailing=choice_of(b"", key)
        ),
        error_class="trailing",
    ),
    Attack(
        row="B-09",
        what="over-long varint",
        value=opt_out(effective_at=INSTANT[:-1] + b"\x86\x00"),
        error_class="not_canonical",
    ),
    Attack(
        row="B-09",
        what="over-long enum",
        value=opt_out(choice=b"\x80\x00"),
        error_class="not_canonical",
    ),
    Attack(
        row="B-09",
        what="observed version below 0",
        value=opt_out(observed=b"\x02\x01"),
        error_class="observed_version",
    ),
    Attack(row="B-10", what="truncated varint", value=opt_out(member=b"\xff"), error_class="avro"),
    Attack(
        row="B-10",
        what="varint without end",
        value=opt_out(effective_at=b"\xff" * 8, recorded_at=b"\xff" * 8),
        error_class="avro",
    ),
    Attack(
        row="B-11",
        what="string of 2^62 bytes",
        value=opt_out(purpose=long_bytes(2**62)),
        error_class="avro",
    ),
    Attack(
        row="B-11",
        what="string of 2 GiB",
        value=opt_out(purpose=long_bytes(2**31)),
        error_class="avro",
    ),
    Attack(
        row="B-11", what="string of -1 bytes", value=opt_out(purpose=b"\x01"), error_class="avro"
    ),
    Attack(row="B-12", what="bad UTF-8", value=opt_out(source=b"\x04\xff\xfe"), error_class="avro"),
    Attack(row="B-12", what="NUL", value=opt_out(source=b"\x02\x00"), error_class="text"),
    Attack(
        row="B-12",
        what="lone surrogate",
        value=opt_out(source=b"\x06\xed\xa0\x80"),
        error_class="avro",
    ),
    Attack(
        row="B-12",
        what="right-to-left mark",
        value=opt_out(notice=b"\x06\xe2\x80\x8f"),
        error_class="text",
    ),
    Attack(
        row="B-12",
        what="line break in purpose",
        value=opt_out(purpose=b"\x06a\nb"),
        error_class="purpose",
    ),
    Attack(
        row="B-12",
        what="label in purpose",
        value=opt_out(purpose=b'\x1c{__name__="a"}'),
        error_class="purpose",
    ),
    Attack(
        row="B-12",
        what="513 bytes of text",
        value=opt_out(source=long_bytes(513) + b"x" * 513),
        error_class="text",
    ),
    Attack(
        row="B-12",
        what="1 MB of text",
        value=opt_out(source=long_bytes(len(NOISE)) + NOISE),
        error_class="too_large",
    ),
    Attack(row="B-13", what="boolean byte 7", value=opt_out(evidence=b"\x07"), error_class="avro"),
    Attack(
        row="B-14",
        what="year 200000",
        value=opt_out(effective_at=YEAR_200000),
        error_class="time_window",
    ),
    Attack(
        row="B-14",
        what="negative time",
        value=opt_out(effective_at=b"\x01"),
        error_class="time_window",
    ),
    Attack(
        row="B-14",
        what="recorded in year 200000",
        value=opt_out(recorded_at=YEAR_200000),
        error_class="time_window",
    ),
    # ---- sizes, keys, places
    Attack(
        row="B-21",
        what="value over 16 KiB",
        value=opt_out(source=long_bytes(16_384) + b"x" * 16_384),
        error_class="too_large",
    ),
    Attack(
        row="B-21",
        what="33 headers",
        value=opt_out(),
        error_class="headers",
        headers=tuple((f"header-{number}", b"x") for number in range(33)),
    ),
    Attack(
        row="B-21",
        what="10000 headers",
        value=opt_out(),
        error_class="headers",
        headers=tuple((f"header-{number}", b"x") for number in range(10_000)),
    ),
    Attack(row="B-21", what="key of 1 MB", value=opt_out(), error_class="key", key=b"k" * 900_000),
    Attack(row="B-22", what="no key", value=opt_out(), error_class="key", key=b""),
    Attack(
        row="B-22",
        what="key that is no member id",
        value=opt_out(),
        error_class="key",
        key=b"a person@example.org",
    ),
    Attack(
        row="B-22",
        what="another member inside",
        value=opt_out(member=b"\x1asomebody-else"),
        error_class="key_mismatch",
    ),
    Attack(
        row="B-23",
        what="event of another topic",
        value=under_id_of("PauseLifted"),
        error_class="wrong_type",
    ),
    Attack(
        row="B-23",
        what="another partition",
        value=opt_out(),
        error_class="wrong_partition",
        partition_offset=1,
    ),
)


def of_row(row: str) -> tuple[Attack, ...]:
    """The attacks of one row."""
    found = tuple(attack for attack in ATTACKS if attack.row == row)
    assert found, row
    return found


assert now() > THE_INSTANT
