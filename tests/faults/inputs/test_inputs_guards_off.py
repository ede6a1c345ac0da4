"""Each bad input once more, with the guard that stops it switched off: a guard that nobody misses
protects nobody.

In this process, over tables in memory. Every case is run twice, as it is and without its guard;
each says which layer was taken away, as often there are several. What ends a process (B-11, B-15,
B-16) and what lies below us (B-19, B-20) have theirs beside their tests on the real path.
"""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import fastavro
import pytest
from tests.batches import apply_batch
from tests.faults.inputs.attacks import OPT_IN, choice_of, of_row, text
from tests.stack import (
    PARTITIONS,
    PURPOSE,
    erased,
    lift,
    lives_in,
    member_of,
    now,
    opted_in,
    opted_out,
    pause,
)
from tests.table import load_partition

from consentry.domain import decisions
from consentry.domain.controls import Control, Controls, OptIns, PolicyPublished, Regime, Terms
from consentry.domain.decisions import decide
from consentry.domain.errors import UndecodableEvent
from consentry.domain.events import Fact, SentEvent
from consentry.domain.records import fold, fold_fact
from consentry.domain.values import Choice, Micros
from consentry.processor import decode as decode_step
from consentry.processor import fold as fold_step
from consentry.processor.batches import EventBatch, OwnedPartition, PartitionBatch
from consentry.processor.decode import BatchDecoder
from consentry.processor.materialiser import Materialiser
from consentry.processor.ports import InMemoryPublisher, NoObligations
from consentry.table.memory import InMemoryTable
from consentry.wire import controls, events
from consentry.wire import event_batches as columns
from consentry.wire.catalog import Catalog, InMemoryRegistry, load_catalog, register_all
from consentry.wire.events import write_event
from consentry.wire.frames import FRAME_LENGTH, frame
from consentry.wire.headers import Headers
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.records import read_record
from consentry.wire.schemas import Schema, schema

MEMBER = member_of(2)
KEY = MEMBER.encode()
REGISTRY = InMemoryRegistry()
register_all(REGISTRY, "inputs")
FOREIGN_ID = REGISTRY.register(
    "of-another-team",
    Schema(
        "foreign",
        schema("ConsentChanged").text.replace(
            '"OPT_OUT", "OPT_IN", "UNKNOWN"], "default": "OPT_OUT"',
            '"OPT_IN", "OPT_OUT", "UNKNOWN"]',
        ),
        None,
        "",
    ),
)
ALLOWING = Controls(iso_jurisdictions()).after(
    PolicyPublished(
        event_id=uuid.uuid4().bytes,
        version="open",
        terms=(Terms(jurisdictions=("*",), purpose=PURPOSE, regime=Regime.DEFAULT_ON),),
        effective_at=Micros(1),
        recorded_at=Micros(1),
    )
)


class Told(NamedTuple):
    """What became of a batch: the answer on the member, the error classes, and what the table
    holds.
    """

    reason: str
    classes: list[str]
    tainted: bool
    record: bytes


def made_catalog() -> Catalog:
    """The ids of our schemas; the foreign one is known to the registry and not to us."""
    return load_catalog(REGISTRY, "inputs")


def outcome_of(
    *messages: SentEvent | bytes | None,
    key: bytes | None = KEY,
    headers: Headers | None = None,
    owned_partition: int = 2,
) -> Told:
    """Apply events and raw messages in this order; `key` and `headers` are those of the raw
    ones.
    """
    catalog, table, publisher = made_catalog(), InMemoryTable(), InMemoryPublisher()
    worker = Materialiser(
        table=table,
        publisher=publisher,
        obligations=NoObligations(),
        catalog=catalog,
        partitions=PARTITIONS,
    )
    claim = table.claim(owned_partition, min_epoch=1)
    table.start_generation(
        owned_partition, epoch=claim.epoch, generation="g", next_offset=0, tainted=False
    )
    owned = OwnedPartition(owned_partition, claim.epoch, "g", 0, 0)
    is_raw = [one is None or isinstance(one, bytes) for one in messages]
    values = [
        one if one is None or isinstance(one, bytes) else write_event(one, catalog)
        for one in messages
    ]
    outcome = apply_batch(
        worker,
        owned,
        EventBatch(
            owned_partition,
            range(len(messages)),
            [key if raw else KEY for raw in is_raw],
            values,
            [now() // 1000 + 1] * len(messages),
            [headers if raw else None for raw in is_raw],
        ),
    )
    [held] = load_partition(table, owned_partition, [KEY])
    record = None if held is None else read_record(held, KEY)
    later = now(seconds=2)
    answer = decide(record, None, ALLOWING, purpose=PURPOSE, at=later, known_at=later)
    return Told(
        answer.reason.value,
        [one.error_class for one in outcome.refusals],
        owned.tainted,
        held or b"",
    )


def part(row: str, what: str) -> bytes | None:
    """The bytes of one attack, about MEMBER."""
    [attack] = [one for one in of_row(row) if one.what == what]
    return attack.value(made_catalog(), KEY)


def choice(**changed: bytes) -> bytes:
    """A choice of MEMBER, part by part."""
    return choice_of(made_catalog().frame_of("ConsentChanged"), KEY, **changed)


HOME = lives_in(MEMBER)


# ---- the quarantine: what no decoder takes


SKIPPED = [
    *(("B-01", what) for what in ("no value", "empty value")),
    *(("B-02", what) for what in ("one byte", "five bytes", "magic byte 1", "JSON")),
    *(("B-03", what) for what in ("unknown schema id", "negative schema id")),
    *(("B-06", what) for what in ("enum index 9", "union index 5")),
    *(("B-10", what) for what in ("truncated varint", "varint without end")),
    *(("B-11", what) for what in ("string of 2^62 bytes", "string of 2 GiB", "string of -1 bytes")),
    *(("B-12", what) for what in ("bad UTF-8", "lone surrogate")),
]


@pytest.mark.parametrize(("row", "what"), SKIPPED)
def test_without_the_hold_whoever_sent_what_cannot_be_read_stays_allowed(
    row: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off: the hold in place of an unreadable message.

    A consumer that logs and goes on drops the opt-out in it.
    """
    assert outcome_of(HOME, part(row, what)).reason == "QUARANTINED"
    skip_what_is_refused(monkeypatch)
    assert outcome_of(HOME, part(row, what)).reason == "DEFAULT_ON"


def skip_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a consumer that writes to a dead-letter topic and goes on."""
    strictly = BatchDecoder._decode_strictly

    def skipping(self: BatchDecoder, batch: PartitionBatch, index: int) -> Any:
        before, tainted = len(batch.result.refusals), batch.owned.tainted
        fact = strictly(self, batch, index)
        batch.owned.tainted = tainted
        return None if len(batch.result.refusals) > before else fact

    monkeypatch.setattr(BatchDecoder, "_decode_strictly", skipping)


def test_b03_without_the_limit_every_invented_id_is_a_question_to_the_registry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Off: ten questions a second. Each is a round trip that all events of the worker wait for."""

    class Asked(InMemoryRegistry):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def text(self, schema_id: int) -> str | None:
            self.count += 1
            return super().text(schema_id)

    def ask(first: int) -> int:
        registry.count = 0
        for schema_id in range(first, first + 300):
            with pytest.raises(UndecodableEvent):
                catalog.name_of(schema_id, allowed=events.EVENT_NAMES)
        return registry.count

    registry = Asked()
    register_all(registry, "inputs")
    catalog = load_catalog(registry, "inputs")
    assert ask(1000) <= 20
    monkeypatch.setattr(Catalog, "_may_call", lambda _self: True)
    assert ask(2000) == 300
    assert ask(2000) == 0, "what was asked for once is remembered"


# ---- step 4: encode again and compare, and step 3: the cursor at the last byte


def lax(name: str, payload: bytes, *, bytes_max: int = 0) -> dict[str, Any]:
    """A decoder that believes what it reads."""
    found: Any = fastavro.schemaless_reader(io.BytesIO(payload), schema(name).parsed, None)
    return dict(found)


GLUED = choice(choice=OPT_IN) + choice_of(b"", KEY)
SEEN = choice(choice=OPT_IN, observed=b"\x01\x04")
"""An opt-in with union index -1 before its version 2: the decoder counts from the end, and takes
the version.
"""


@pytest.mark.parametrize(
    ("row", "before", "value", "unguarded"),
    [
        ("B-05", [HOME], choice(choice=b"\x03"), "OPTED_IN"),
        ("B-05", [HOME], choice(choice=b"\x01"), "DEFAULT_ON"),
        ("B-07", [HOME, opted_out(MEMBER)], SEEN, "OPTED_IN"),
        ("B-08", [HOME], choice(choice=OPT_IN, trailing=b"\x00"), "OPTED_IN"),
        ("B-08", [HOME], GLUED, "OPTED_IN"),
        ("B-09", [HOME], choice(choice=b"\x82\x00"), "OPTED_IN"),
    ],
)
def test_b05_b07_b08_b09_without_encoding_again_bytes_are_read_as_somebody_meant_them(
    row: str, before: list[SentEvent], value: bytes, unguarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off: `read_strictly` neither looks where the decoder stopped nor encodes again.

    The fast path stays as it is.
    """
    assert outcome_of(*before, value).reason == "QUARANTINED"
    monkeypatch.setattr(events, "read_strictly", lax)
    assert outcome_of(*before, value).reason == unguarded, row


def test_b13_without_encoding_again_seven_is_true_and_nan_is_a_number() -> None:
    """Off: the comparison, and the lint that lets no member event have such a field."""
    boolean = fastavro.parse_schema("boolean")
    assert fastavro.schemaless_reader(io.BytesIO(b"\x07"), boolean, None) is True
    again = io.BytesIO()
    fastavro.schemaless_writer(again, boolean, True)
    assert again.getvalue() != b"\x07"
    number: Any = fastavro.schemaless_reader(
        io.BytesIO(b"\x00\x00\x00\x00\x00\x00\xf8\x7f"), fastavro.parse_schema("double"), None
    )
    assert number != number, (
        "NaN is encoded to the very same bytes: only the absence of floats helps"
    )


# ---- the pin


def test_b04_b18_without_the_pin_a_withdrawal_of_another_schema_is_a_grant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Off: topic → pinned fingerprints. That team's index 1 is OPT_OUT, ours is OPT_IN."""
    withdrawal = choice_of(frame(FOREIGN_ID), KEY, choice=b"\x02")
    assert outcome_of(HOME, withdrawal)[:2] == ("QUARANTINED", ["schema_id"])

    pinned = Catalog.name_of

    def any_is_ours(self: Catalog, schema_id: int, *, allowed: Sequence[str]) -> str:
        return (
            "ConsentChanged"
            if schema_id == FOREIGN_ID
            else pinned(self, schema_id, allowed=allowed)
        )

    monkeypatch.setattr(Catalog, "name_of", any_is_ours)
    assert outcome_of(HOME, withdrawal).reason == "OPTED_IN"


def test_b17_read_with_the_newest_schema_of_the_registry_everybody_says_yes() -> None:
    """Off: reading with our own schema.

    A flag that nobody sent is true, by its default, for every old event.
    """
    known = schema("ConsentChanged")
    text_of_flag = known.text.replace(
        '{"name": "member_id"',
        '{"name": "is_allowed", "type": "boolean", "default": true}, {"name": "member_id"',
    )
    newest = fastavro.parse_schema(json.loads(text_of_flag))
    found: Any = fastavro.schemaless_reader(
        io.BytesIO(choice()[FRAME_LENGTH:]), known.parsed, newest
    )
    assert found["is_allowed"] is True


# ---- step 5: what encoding cannot see


@pytest.mark.parametrize(
    ("row", "value", "unguarded"),
    [
        ("B-12", choice(choice=OPT_IN, source=b"\x02\x00"), "OPTED_IN"),
        ("B-12", choice(choice=OPT_IN, notice=b"\x06\xe2\x80\x8f"), "OPTED_IN"),
        ("B-14", choice(effective_at=b"\x01"), "OPTED_OUT"),
        ("B-14", part("B-14", "year 200000"), "DEFAULT_ON"),
        ("B-22", choice(choice=OPT_IN, member=text(b"somebody-else")), "OPTED_IN"),
        ("B-27", write_event(lives_in(MEMBER, "XX"), made_catalog()), "JURISDICTION_UNKNOWN"),
    ],
)
def test_b12_b14_b22_b27_without_the_checks_of_values_they_are_heeded(
    row: str, value: bytes, unguarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off: `check_fields`.

    A jurisdiction that does not exist is then still refused where it is decided.
    """
    assert outcome_of(HOME, value).reason == "QUARANTINED"
    monkeypatch.setattr(events, "check_fields", lambda _fields, _key: None)
    assert outcome_of(HOME, value).reason == unguarded, row


def test_b21_without_the_limit_a_message_with_any_number_of_headers_is_heeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Off: the limit of 32. Exactly 32 are taken, 33 and those that cannot be read are not."""
    many: Headers = [(f"h{number}", b"") for number in range(33)]
    value = choice(choice=OPT_IN)
    assert outcome_of(HOME, value, headers=many[:32]).reason == "OPTED_IN"
    for headers in (many, ()):
        assert outcome_of(HOME, value, headers=headers)[:2] == ("QUARANTINED", ["headers"])
    monkeypatch.setattr(decode_step, "are_refused", lambda _headers: False)
    assert outcome_of(HOME, value, headers=many).reason == "OPTED_IN"


def test_b21_without_the_limit_of_size_a_value_of_any_size_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Off: 16 KiB.

    What then still stops it is the length of each text; the decoder has no limit at all.
    """
    large = part("B-21", "value over 16 KiB")
    assert outcome_of(HOME, large).classes == ["too_large"]
    for module in (events, columns):
        monkeypatch.setattr(module, "EVENT_BYTES_MAX", 1 << 30)
    strictly = events.read_strictly
    monkeypatch.setattr(
        events, "read_strictly", lambda name, payload: strictly(name, payload, bytes_max=1 << 30)
    )
    assert outcome_of(HOME, large).classes == ["text"]


@pytest.mark.parametrize("key", [None, b"", b"k" * 65, b"a person@example.org", b"\xff"])
def test_b21_b22_without_the_taint_an_event_of_nobody_is_dropped(
    key: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off: the taint.

    It may have been the opt-out of anyone in the partition, and all of them stay allowed.
    """
    told = outcome_of(HOME, choice(), key=key)
    assert (told.classes, told.tainted) == (["key"], True)
    skip_what_is_refused(monkeypatch)
    untainted = outcome_of(HOME, choice(), key=key)
    assert (untainted.reason, untainted.tainted) == ("DEFAULT_ON", False)


def test_b23_without_the_check_of_the_partition_a_member_has_two_logs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Off: partition = murmur2(key). An opt-in there and an opt-out here have no order."""
    value = choice(choice=OPT_IN)
    assert "wrong_partition" in outcome_of(value, owned_partition=3).classes
    monkeypatch.setattr(decode_step, "partition_of", lambda _key, _partitions: 3)
    assert outcome_of(HOME, value, owned_partition=3).reason == "OPTED_IN"


# ---- meaning


def test_b24_without_a_look_at_the_content_an_opt_out_under_a_used_id_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Off: the comparison of content. A filter of repeated ids takes it for a retry."""
    first = opted_in(MEMBER)
    again = replace(first, choice=Choice.OPT_OUT)
    assert outcome_of(HOME, first, again)[:2] == ("QUARANTINED", ["event_id_reused"])
    monkeypatch.setattr(Fact, "says_the_same", lambda _self, _other: True)
    assert outcome_of(HOME, first, again)[:2] == ("OPTED_IN", [])


def test_b25_without_event_ids_what_was_said_before_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Off: the recognition of repeated events.

    A producer that begins anew at a lower number revives the past.
    """
    us, nowhere = lives_in(MEMBER, "US"), lives_in(MEMBER, "DE")
    opted = opted_in(MEMBER)
    history = (us, opted, replace(opted_in(MEMBER), choice=Choice.UNKNOWN), nowhere)
    assert outcome_of(*history, opted).reason == "DEFAULT_ON"

    def anew(record: Any, member: Any, fact: Fact) -> Any:
        return fold_fact(record, member, fact._replace(tag=os.urandom(8)))

    monkeypatch.setattr(fold_step, "append_fact", lambda *_arguments: None)
    monkeypatch.setattr(fold_step, "fold_fact", anew)
    assert outcome_of(*history, opted).reason == "OPTED_IN"


def test_b26_without_the_brokers_time_a_fast_clock_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off: `admit`. The opt-in counts, and the opt-out not for an hour."""
    ahead: dict[str, Any] = {"recorded_at": now(seconds=3600), "effective_at": now(seconds=3600)}
    eager, fast = replace(opted_in(MEMBER), **ahead), replace(opted_out(MEMBER), **ahead)
    assert outcome_of(HOME, eager)[:2] == ("QUARANTINED", ["opt_in_from_future"])
    assert outcome_of(HOME, fast)[:2] == ("OPTED_OUT", [])
    monkeypatch.setattr(decode_step, "admit", lambda event, _appended_at: event)
    assert outcome_of(HOME, eager).classes == []
    assert outcome_of(HOME, fast).reason == "DEFAULT_ON"


@pytest.mark.parametrize("observed", [None, 1, 1_000_000])
def test_b27_without_the_rule_of_what_was_seen_a_blind_opt_in_cancels_an_opt_out(
    observed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off: rule 2. The last word would win, whoever had not heard the one before."""
    history = (HOME, opted_out(MEMBER), opted_in(MEMBER, observed))
    assert outcome_of(*history).reason == "OPTED_OUT"
    monkeypatch.setattr(decisions, "next_choice", lambda _standing, fact: fact)
    assert outcome_of(*history).reason == "OPTED_IN"


def test_b28_without_the_pause_in_its_place_a_control_that_cannot_be_read_stops_nobody() -> None:
    """Off: the pause of everything that stands for it. It may have been the order of a court."""
    told: dict[str, Any] = {"offset": 9, "appended_at": now(), "catalog": made_catalog()}
    control = controls.read_control_or_pause(b"\x00\x00\x00\x00\x01\xff", **told)
    assert reason_under(control) == "PAUSED"
    assert reason_under() == "DEFAULT_ON", "a consumer that logs and goes on"


def test_b28_without_widening_a_pause_of_an_unknown_place_stops_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Off: an unknown scope is every scope. A slip of the pen would leave a regulator unheard."""
    atlantis = pause("nowhere", "ATLANTIS", effective=now(seconds=-1), recorded=now(seconds=-1))
    assert reason_under(atlantis) == "PAUSED"
    monkeypatch.setattr(Controls, "_widened", lambda _self, control: control)
    assert reason_under(atlantis) == "DEFAULT_ON"


def test_b28_without_versions_an_old_lift_ends_a_new_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off: the comparison of versions.

    A lift that came late would end the stop that was imposed since.
    """
    again = replace(pause("us", "US"), version=2)
    late = lift("us", OptIns.KEEP)
    assert reason_under(again, late) == "PAUSED"
    assert reason_under(again, lift("never-imposed", OptIns.KEEP)) == "PAUSED"
    versionless = replace(late, version=1 << 30)
    monkeypatch.setattr(
        Controls, "_widened", lambda _self, one: versionless if one is late else one
    )
    assert reason_under(again, late) == "DEFAULT_ON"


def reason_under(*more: Control) -> str:
    """The answer on a member of the United States under these controls too."""
    later = now(seconds=2)
    home = fold(None, HOME)
    return decide(
        home, None, ALLOWING.after(*more), purpose=PURPOSE, at=later, known_at=later
    ).reason.value


def test_b29_without_the_latch_something_is_kept_of_whoever_was_erased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Off: the latch of the fold.

    The decision has one of its own, so the answer stays; the record does not.
    """
    gone = (HOME, erased(MEMBER))
    before = outcome_of(*gone)
    after = outcome_of(*gone, opted_in(MEMBER, 100))
    assert (after.reason, after.record) == ("ERASED", before.record)
    monkeypatch.setattr(Fact, "binds", lambda _self, _later: False)
    unlatched = outcome_of(*gone, opted_in(MEMBER, 100))
    assert unlatched.reason == "ERASED"
    assert len(unlatched.record) > len(before.record)
