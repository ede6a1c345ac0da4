"""Member events: exactly one well-formed event, or refused; and the fast path refuses whatever the
strict one does.
"""

from __future__ import annotations

import io
from dataclasses import replace
from random import Random
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import (
    MEMBER,
    chose,
    day,
    erased,
    identity,
    member_events_on_the_wire,
    moved,
    new_catalog,
    texts,
)

from consentry.domain.errors import UndecodableEvent
from consentry.domain.events import (
    ConsentChanged,
    MemberErased,
    MemberReleased,
    MemberRelocated,
    SentEvent,
)
from consentry.domain.values import Choice, Micros
from consentry.wire.avro_bytes import long_bytes
from consentry.wire.catalog import Catalog, InMemoryRegistry
from consentry.wire.event_batches import EventColumns
from consentry.wire.events import (
    EVENT_BYTES_MAX,
    INSTANT_MAX,
    INSTANT_MIN,
    admit,
    read_event,
    read_strictly,
    write_event,
)
from consentry.wire.frames import FRAME_LENGTH, frame, schema_id_of
from consentry.wire.records import (
    fact_body,
)
from consentry.wire.schemas import Schema, schema

CATALOG = new_catalog()
KEY = MEMBER.encode()
HEAD = CATALOG.frame_of("ConsentChanged")
# The parts of one good event, so that a reader sees what each attack changes.
EVENT_ID = bytes(range(16))
OPT_OUT, OPT_IN = b"\x00", b"\x02"
BASIS = b"\x00"
INSTANT = long_bytes(day(1))
PURPOSE = b"\x1cgenai_training"
MEMBER_AT_THE_END = bytes((len(KEY) << 1,)) + KEY
NOTICE = SOURCE = b"\x00"
NULL = b"\x00"


def bytes_of(**changed: bytes) -> bytes:
    """A good ConsentChanged, part by part, with some parts replaced."""
    parts = {
        "head": HEAD,
        "event_id": EVENT_ID,
        "choice": OPT_OUT,
        "basis": BASIS,
        "effective_at": INSTANT,
        "recorded_at": INSTANT,
        "purpose": PURPOSE,
        "notice": NOTICE,
        "source": SOURCE,
        "observed": NULL,
        "evidence": NULL,
        "member": MEMBER_AT_THE_END,
        "trailing": b"",
    }
    return b"".join((parts | changed).values())


def without_the_checks(value: bytes) -> dict[str, Any]:
    """What fastavro alone makes of the bytes."""
    found: Any = fastavro.schemaless_reader(
        io.BytesIO(value[FRAME_LENGTH:]), schema("ConsentChanged").parsed, None
    )
    return dict(found)


ATTACKS: dict[str, tuple[bytes | None, str]] = {
    "no value at all": (None, "empty"),
    "an empty value": (b"", "empty"),
    "five bytes": (HEAD, "short"),
    "JSON text": (b'{"choice": "OPT_IN"}', "magic"),
    "another magic byte": (bytes_of(head=b"\x01" + HEAD[1:]), "magic"),
    "an unknown schema id": (bytes_of(head=frame(4711)), "schema_id"),
    "the id of a record that the topic does not carry": (
        bytes_of(head=CATALOG.frame_of("PauseLifted")),
        "wrong_type",
    ),
    "a choice with index -2, which Python counts from the end": (
        bytes_of(choice=b"\x03"),
        "not_canonical",
    ),
    "a choice with index -1": (bytes_of(choice=b"\x01"), "not_canonical"),
    "a choice with index 9": (bytes_of(choice=b"\x12"), "avro"),
    "an over-long choice": (bytes_of(choice=b"\x80\x00"), "not_canonical"),
    "a union with index -1": (bytes_of(observed=b"\x01\x00"), "not_canonical"),
    "a union with index 5": (bytes_of(observed=b"\x0a"), "avro"),
    "a trailing byte": (bytes_of(trailing=b"\x00"), "trailing"),
    "two events glued together": (bytes_of() + bytes_of()[FRAME_LENGTH:], "trailing"),
    "an over-long instant": (
        bytes_of(effective_at=INSTANT[:-1] + bytes((INSTANT[-1] | 0x80, 0))),
        "not_canonical",
    ),
    "an instant that never ends": (
        bytes_of(effective_at=b"\xff" * 8, recorded_at=b"\xff" * 8),
        "avro",
    ),
    "a truncated event": (bytes_of()[:-3], "avro"),
    "a string of 2^62 bytes": (bytes_of(purpose=long_bytes(2**62)), "avro"),
    "a string of -1 bytes": (bytes_of(purpose=b"\x01"), "avro"),
    "bad UTF-8": (bytes_of(source=b"\x04\xff\xfe"), "avro"),
    "a NUL in a text": (bytes_of(source=b"\x02\x00"), "text"),
    "a right-to-left mark in a text": (bytes_of(notice=b"\x06\xe2\x80\x8f"), "text"),
    "an encoded surrogate": (bytes_of(source=b"\x06\xed\xa0\x80"), "avro"),
    "a line break in a purpose": (bytes_of(purpose=b"\x06a\nb"), "purpose"),
    "a metric's label in a purpose": (
        bytes_of(purpose=long_bytes(14) + b'{__name__="a"}'),
        "purpose",
    ),
    "an empty purpose": (bytes_of(purpose=b"\x00"), "purpose"),
    "a long text": (bytes_of(source=long_bytes(513) + b"x" * 513), "text"),
    "an event over the limit": (bytes_of(source=long_bytes(20_000) + b"x" * 20_000), "too_large"),
    "a time before 1979": (bytes_of(recorded_at=long_bytes(INSTANT_MIN - 1)), "time_window"),
    "a negative time": (bytes_of(effective_at=long_bytes(-1)), "time_window"),
    "a time in the year 300000": (bytes_of(effective_at=long_bytes(2**62)), "time_window"),
    "a negative observed version": (bytes_of(observed=b"\x02\x01"), "observed_version"),
    "another member than the key": (bytes_of(member=b"\x10member-2"), "key_mismatch"),
    "a member id that is a path": (bytes_of(member=b"\x10../etc/x"), "member_id"),
    "no member": (bytes_of(member=b"\x00"), "member_id"),
}


class TestStrictly:
    def test_the_good_event_is_read(self) -> None:
        """Otherwise every attack below would be refused for the wrong reason."""
        event = read_event(bytes_of(), KEY, CATALOG)

        assert isinstance(event, ConsentChanged)
        assert (event.choice, event.purpose, event.member) == (
            Choice.OPT_OUT,
            "genai_training",
            MEMBER,
        )

    @pytest.mark.parametrize("attack", ATTACKS)
    def test_bytes_that_are_not_exactly_one_event_are_refused_by_class(self, attack: str) -> None:
        """Each was accepted, or ended the reader, somewhere; here its member is quarantined and the
        bytes are kept.
        """
        value, error_class = ATTACKS[attack]

        with pytest.raises(UndecodableEvent) as caught:
            read_event(value, KEY, CATALOG)

        assert caught.value.error_class == error_class

    @pytest.mark.parametrize("attack", ATTACKS)
    def test_the_fast_path_leaves_every_attack_to_the_strict_one(self, attack: str) -> None:
        """A guard that only the slow path has is no guard: nearly everything takes the fast one."""
        value, _ = ATTACKS[attack]

        assert EventColumns(CATALOG).read([value], [KEY]) == [None]

    @pytest.mark.parametrize(
        ("attack", "field", "read"),
        [
            ("a choice with index -2, which Python counts from the end", "choice", "OPT_IN"),
            ("a union with index -1", "observed_version", 0),
            ("an over-long choice", "choice", "OPT_OUT"),
            ("a trailing byte", "choice", "OPT_OUT"),
            ("two events glued together", "choice", "OPT_OUT"),
            ("a NUL in a text", "source", "\x00"),
            ("a negative time", "effective_at", -1),
        ],
    )
    def test_without_its_guard_an_attack_would_be_read(
        self, attack: str, field: str, read: object
    ) -> None:
        """Hurt when this breaks: whoever trusts the tests above; fastavro alone accepts these."""
        value, _ = ATTACKS[attack]

        assert value is not None
        assert without_the_checks(value)[field] == read

    @given(member_events_on_the_wire())
    def test_what_a_producer_writes_is_read_back(self, event: SentEvent) -> None:
        """A good event that is refused holds a member for nothing."""
        assert read_event(write_event(event, CATALOG), event.member.encode(), CATALOG) == event

    @given(st.binary(max_size=200))
    def test_any_bytes_are_an_event_that_encodes_to_them_or_refused(self, payload: bytes) -> None:
        """Whatever is sent, the worker neither crashes nor guesses."""
        try:
            fields = read_strictly("ConsentChanged", payload)
        except UndecodableEvent:
            return
        assert schema("ConsentChanged").encode(fields) == payload

    @pytest.mark.parametrize("jurisdiction", ["UK", "XX", "hk", "EEA", "*", "US-ZZ", ""])
    def test_a_jurisdiction_that_does_not_exist_is_refused(self, jurisdiction: str) -> None:
        """It would match terms that hold everywhere, and no pause."""
        value = write_event(moved(jurisdiction, 1, on=1), CATALOG)

        with pytest.raises(UndecodableEvent) as caught:
            read_event(value, KEY, CATALOG)

        assert caught.value.error_class == "jurisdiction"

    def test_the_error_holds_no_text_of_the_payload(self) -> None:
        """It goes to logs and metrics, where members' data and forged lines have no place."""
        with pytest.raises(UndecodableEvent) as caught:
            read_event(
                bytes_of(source=long_bytes(12) + b"secret\n\x00\x00\x00\x00\x00"), KEY, CATALOG
            )

        assert "secret" not in str(caught.value)


class TestFrames:
    def test_a_frame_says_its_schema_id(self) -> None:
        """The id decides between a withdrawal and a grant."""
        assert schema_id_of(frame(0x01020304) + b"x") == 0x01020304


class TestAdmission:
    def test_an_opt_in_from_the_future_is_refused(self) -> None:
        """It could outlive the lift that voids all earlier ones."""
        with pytest.raises(UndecodableEvent) as caught:
            admit(chose(Choice.OPT_IN, 1, on=2), day(1))

        assert caught.value.error_class == "opt_in_from_future"

    def test_an_opt_out_from_the_future_counts_from_when_the_broker_took_it(self) -> None:
        """A wrong clock must not postpone what the member asked for."""
        for event in (chose(Choice.OPT_OUT, 1, on=2), erased(1, on=2), moved("HK", 1, on=2)):
            assert admit(event, day(1)).recorded_at == day(1)

    def test_an_opt_out_from_a_fast_clock_binds_at_once(self) -> None:
        """An hour of wrong clock would be an hour of training on somebody who had said no."""
        ahead = chose(Choice.OPT_OUT, 1, on=2)

        assert admit(ahead, day(1)) == replace(ahead, recorded_at=day(1), effective_at=day(1))

    def test_an_erasure_that_is_dated_ahead_keeps_its_date(self) -> None:
        """An account that closes in two weeks is used, or not, by what its member says until
        then.
        """
        scheduled = replace(erased(1, on=3), effective_at=day(40))

        assert admit(scheduled, day(4)) is scheduled

    def test_a_release_from_the_future_is_refused(self) -> None:
        """It would end a quarantine before anybody had looked at what could not be read."""
        release = MemberReleased(
            event_id=identity(1), member=MEMBER, effective_at=day(1), recorded_at=day(2)
        )

        with pytest.raises(UndecodableEvent, match="after the broker took it") as refused:
            admit(release, day(1))
        assert refused.value.error_class == "release_from_future"

    def test_a_clock_that_runs_a_little_ahead_is_forgiven_and_clamped(self) -> None:
        """Clocks differ by milliseconds; holding those members would be noise."""
        ahead = chose(Choice.OPT_IN, 1, on=1, recorded_at=Micros(day(1) + 1_000_000))

        assert admit(ahead, day(1)).recorded_at == day(1)

    def test_what_was_recorded_before_is_left_as_it_is(self) -> None:
        """Importers send what was said years ago."""
        event = chose(Choice.OPT_IN, 1, on=1)

        assert admit(event, day(2)) is event


def sent_by_chance(random: Random) -> ConsentChanged | MemberRelocated | MemberErased:
    """Any event that nobody may refuse; few middles, so that some are met again."""
    member = "".join(random.choices("ab9:_-", k=random.choice([1, 3, 20, 63, 64])))
    times: dict[str, Any] = {
        "effective_at": day(random.randrange(9)),
        "recorded_at": day(random.random()),
    }
    number = random.randrange(1 << 64)
    if random.random() < 0.6:
        return chose(
            random.choice(list(Choice)),
            number,
            on=0,
            member=member,
            observed=random.choice([None, 0, 200]),
            source=random.choice(["", "web", "ü"]),
            evidence=random.choice([None, "", "ref-1"]),
            **times,
        )
    if random.random() < 0.7:
        return moved(random.choice(["HK", "US-CA"]), number, on=0, member=member, **times)
    return erased(number, on=1, member=member)


def mutated(random: Random) -> tuple[bytes, bytes]:
    """A good event and its key, damaged or not, in the ways that transport and forgery do."""
    event = sent_by_chance(random)
    key, value = event.member.encode(), bytearray(write_event(event, CATALOG))
    for _ in range(random.randrange(4)):
        act = random.choice(
            ["flip", "flip", "set", "cut", "extend", "insert", "remove", "swap", "key"]
        )
        place = random.randrange(len(value)) if value else 0
        if act == "extend" or not value:
            value += random.randbytes(random.randrange(1, 5))
        elif act == "flip":
            value[place] ^= 1 << random.randrange(8)
        elif act == "set":
            value[place] = random.choice([0, 1, 2, 3, 0x7F, 0x80, 0xFF])
        elif act == "cut":
            del value[place:]
        elif act == "insert":
            value.insert(place, random.randrange(256))
        elif act == "remove":
            del value[place]
        elif act == "swap":
            other = random.randrange(len(value))
            value[place], value[other] = value[other], value[place]
        else:
            key = random.choice([key[:-1], key + b"x", b"", b"\xff", key.swapcase()])
    return bytes(value), key


class TestColumns:
    @settings(max_examples=600)
    @given(st.integers(0, 2**48))
    def test_the_fast_path_accepts_nothing_that_the_strict_one_refuses_and_reads_the_same_fact(
        self, seed: int
    ) -> None:
        """It reads nearly every event there is; one byte string read otherwise is one member
        wronged.
        """
        random = Random(seed)
        messages = [mutated(random) for _ in range(10)]
        columns = EventColumns(CATALOG)
        values, keys = [value for value, _ in messages], [key for _, key in messages]

        for _ in range(2):  # the second time the middles are known
            for (value, key), found in zip(messages, columns.read(values, keys), strict=True):
                if found is not None:
                    fact = read_event(value, key, CATALOG).fact()
                    assert found == (fact_body(fact), fact.tag, fact.kind, fact.recorded_at)

    @given(st.lists(member_events_on_the_wire(), min_size=1, max_size=6))
    def test_good_events_are_recognised(self, events: list[SentEvent]) -> None:
        """A fast path that leaves all to the strict one would pass the test above, and be twenty
        times dearer.
        """
        keys = [event.member.encode() for event in events]

        found = EventColumns(CATALOG).read([write_event(event, CATALOG) for event in events], keys)

        # A release is rare, and an operator's: it takes the strict path.
        common = [not isinstance(event, MemberReleased) for event in events]
        assert [one is not None for one in found] == [
            len(key) < 64 and is_common for key, is_common in zip(keys, common, strict=True)
        ]

    @given(texts, st.integers(0, 255), st.integers(0, 24))
    def test_what_was_learned_from_one_event_frees_no_other(
        self, source: str, byte: int, back: int
    ) -> None:
        """The middles are remembered; a remembered one must not vouch for other bytes around it."""
        columns = EventColumns(CATALOG)
        good = write_event(chose(Choice.OPT_OUT, 1, on=1, source=source, member="m" * 20), CATALOG)
        columns.read([good], [b"m" * 20])
        changed = bytearray(good)
        changed[-1 - back] = byte

        found = columns.read([bytes(changed)], [b"m" * 20])

        assert (found != [None]) == (bytes(changed) == good or is_read(bytes(changed), b"m" * 20))

    def test_a_message_without_key_or_value_is_left_to_the_strict_path(self) -> None:
        """It is to be quarantined, and the partition perhaps tainted; none of that is the fast
        path's to say.
        """
        good = write_event(chose(Choice.OPT_OUT, 1, on=1), CATALOG)

        assert EventColumns(CATALOG).read([good, None, good], [None, KEY, b""]) == [
            None,
            None,
            None,
        ]

    def test_the_limit_of_size_is_the_strict_paths_or_less(self) -> None:
        """Nothing may be read that the limit is there to keep out."""
        large = bytes_of(source=long_bytes(EVENT_BYTES_MAX) + b"x" * EVENT_BYTES_MAX)

        assert EventColumns(CATALOG).read([large], [KEY]) == [None]

    def test_a_second_id_of_the_same_schema_is_recognised_once_it_is_known(self) -> None:
        """After a registry was moved, producers may write another id for the very same schema."""
        registry = InMemoryRegistry()
        catalog: Catalog = new_catalog(registry)
        again = Schema("ConsentChanged", schema("ConsentChanged").text + " ", None, "")
        other = registry.register("elsewhere", again)
        value = frame(other) + write_event(chose(Choice.OPT_OUT, 1, on=1), catalog)[FRAME_LENGTH:]
        columns = EventColumns(catalog)

        assert columns.read([value], [KEY]) == [None]
        assert read_event(value, KEY, catalog).fact().tag == identity(1)[8:]
        assert columns.read([value], [KEY]) != [None]

    def test_instants_at_both_ends_of_the_window_take_eight_bytes(self) -> None:
        """The width is what lets a batch be read column by column."""
        assert {len(long_bytes(instant)) for instant in (INSTANT_MIN, day(0), INSTANT_MAX - 1)} == {
            8
        }


def is_read(value: bytes, key: bytes) -> bool:
    """Whether the strict path accepts it."""
    try:
        read_event(value, key, CATALOG)
    except UndecodableEvent:
        return False
    return True
