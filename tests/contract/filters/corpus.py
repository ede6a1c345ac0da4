"""The one corpus that every filter gets: members of all states, controls of all kinds, rows with
all awkward values.

What is expected comes from the rules, one row at a time; only the big form takes it from
`decide_table`, and holds a sample of it to the rules. The same seed gives the same corpus in every
process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tests.strategies import (
    PURPOSE,
    chose,
    day,
    erased,
    folded,
    identity,
    lift,
    moved,
    pause,
    policy,
    terms,
)

from consentry.domain.controls import Control, Minors, OptIns, Regime
from consentry.domain.decisions import Row
from consentry.domain.events import EventUnreadable, MemberEvent, MemberReleased
from consentry.domain.records import Record, fold
from consentry.domain.values import MEMBER_ID_PATTERN, AgeBand, Choice, MemberId, Micros, Reason
from consentry.trainer.deciding.columns import Columns, find_columns
from consentry.trainer.deciding.decide_table import REASONS, decide_table
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.frames import frame
from consentry.wire.freshness import FOREVER
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.partitions import partition_of, partitions_of
from consentry.wire.records import write_record

Ids = Literal["text", "integers"]

AT: Final = day(100)
"""When everything is asked."""
PARTITIONS: Final = 4
SMALL_ROWS: Final = 4_000
SMALL_MEMBERS: Final = 400
BIG_ROWS: Final = 1_000_000
BIG_MEMBERS: Final = 50_000
SAMPLE: Final = 2_000
"""So many rows of the big form are held to the rules."""

_CUT_OFF: Final = day(40)
_NO_MEMBERS: Final = ("", "no such id", "é", "a\n", "m" * 65, "a/b", "m:\x00")
_PLACES: Final = ("US", "US-CA", "DE", "FR", "GB", "CH", "HK", "JP", "CA", "SG", "BR", "IN")
_NO_PLACES: Final = ("XX", "", "us", "US-ZZ", "Deutschland")
_CATEGORIES: Final = ("posts", "profile", "likes", "messages")
_TIMES: Final = (
    day(0),
    Micros(_CUT_OFF - 1),
    _CUT_OFF,
    Micros(_CUT_OFF + 1),
    day(60),
    day(99),
    day(40_000),
    Micros(-7),
)
_KINDS: Final = 16
_FOLDED: Final = 14
"""The one of these whose history is folded."""


class Corpus(NamedTuple):
    """A snapshot, the question, rows and what each of them gets:

    `expected` is True where the row may be used.
    """

    snapshot: Snapshot
    at: Micros
    purpose: str
    table: pa.Table
    expected: npt.NDArray[np.bool_]
    reasons: Counter[Reason]
    """How many rows have each reason: what a filter adds to its tally."""

    @property
    def decider(self) -> SnapshotDecider:
        """Decides by the snapshot, as of the corpus's time."""
        return SnapshotDecider(self.snapshot, at=self.at)

    @property
    def kept(self) -> pa.Table:
        """The rows that every filter lets through, in order."""
        return self.table.filter(pa.array(self.expected))

    @property
    def kept_rows(self) -> list[int]:
        """Their values of `row`, the column that tells all rows apart."""
        found: list[int] = self.kept["row"].to_pylist()
        return found


def small(ids: Ids = "text", *, seed: int = 1) -> Corpus:
    """Thousands of rows; each row's answer is what `snapshot.decide` says of it."""
    random = Random(seed)
    histories = [_history(random, number, _member(number, ids)) for number in range(SMALL_MEMBERS)]
    records = [record for history in histories if (record := folded(*history)) is not None]
    snapshot = _snapshot(records)
    members = [_member(number, ids) for number in range(SMALL_MEMBERS)]
    table = _table(members, SMALL_ROWS, ids, seed=seed)
    reasons = decided_alone(snapshot, table, at=AT, purpose=PURPOSE)
    expected = np.array([reason in (Reason.OPTED_IN, Reason.DEFAULT_ON) for reason in reasons])
    return Corpus(snapshot, AT, PURPOSE, table, expected, Counter(reasons))


def big(
    ids: Ids = "text", *, seed: int = 1, rows: int = BIG_ROWS, members: int = BIG_MEMBERS
) -> Corpus:
    """A million rows; their answers are those of `decide_table`, a sample of which has to be that
    of `snapshot.decide`.
    """
    random = Random(seed)
    histories = [_history(random, number, _member(number, ids)) for number in range(SMALL_MEMBERS)]
    found = [folded(*history) for history in histories]
    records = [
        # Beyond the histories, members say what another one says. A folded history is read by hand
        # each time: few do.
        record if number < SMALL_MEMBERS else replace(record, member=_member(number, ids))
        for number in range(members)
        if (record := found[number % SMALL_MEMBERS]) is not None
        and (number < SMALL_MEMBERS or number % _KINDS != _FOLDED)
    ]
    snapshot = _snapshot(records)
    table = _table([_member(number, ids) for number in range(members)], rows, ids, seed=seed)
    decisions = decide_table(
        table,
        snapshot,
        purpose=PURPOSE,
        at=AT,
        known_at=FOREVER,
        columns=find_columns(table.column_names, None),
        is_fresh=True,
    )
    places = sorted(random.sample(range(rows), min(rows, SAMPLE)))
    alone = decided_alone(snapshot, table.take(places), at=AT, purpose=PURPOSE)
    assert [REASONS[place] for place in decisions.reasons[places]] == alone, (
        "a table is not decided as its rows are"
    )
    return Corpus(snapshot, AT, PURPOSE, table, decisions.mask, Counter(decisions.counts()))


def decided_alone(
    snapshot: Snapshot, table: pa.Table, *, at: Micros, purpose: str, columns: Columns | None = None
) -> list[Reason]:
    """The reason of each row by the rules, each asked by itself; times of collection in a column of
    timestamps.
    """
    columns = columns or find_columns(table.column_names, None)

    def values(name: str | None) -> Sequence[Any]:
        found: list[Any] = [None] * table.num_rows if name is None else table[name].to_pylist()
        return found

    collected = [None] * table.num_rows
    if columns.collected is not None:
        collected = table[columns.collected].cast(pa.timestamp("us")).cast(pa.int64()).to_pylist()
    rows = zip(
        values(columns.member),
        values(columns.jurisdiction),
        values(columns.category),
        collected,
        strict=True,
    )
    reasons = []
    for member, place, category, instant in rows:
        text = str(member) if isinstance(member, int) else member
        if text is None or MEMBER_ID_PATTERN.fullmatch(text) is None:
            reasons.append(Reason.QUARANTINED)
            continue
        row = Row(jurisdiction=place, category=category, collected=instant)
        decision = snapshot.decide(
            MemberId(text), row, purpose=purpose, at=at, known_at=FOREVER, stale_detail=""
        )
        reasons.append(decision.reason)
    return reasons


def opt_out(snapshot: Snapshot, *members: str, on: float = 99) -> None:
    """Have members opt out in a snapshot that others already decide by: what comes in the middle of an
    epoch.
    """
    records = []
    for number, member in enumerate(members):
        before = snapshot.record(MemberId(member))
        event = chose(Choice.OPT_OUT, 10_000_000 + number, on=on, member=member)
        after = folded(event) if before is None else _after(before, event)
        assert after is not None
        records.append(after)
    apply_records(snapshot, records)
    # A snapshot is named by what has been read; whoever follows moves their position with each record.
    for record in records:
        place = ("records", partition_of(record.member.encode(), snapshot.partitions))
        snapshot.positions[place] = snapshot.positions.get(place, 0) + 1


def allowed_member(corpus: Corpus) -> str:
    """A member of whom rows are let through: whoever opts out next."""
    counts = Counter(str(member) for member in corpus.kept["member_id"].to_pylist())
    return counts.most_common(1)[0][0]


def apply_records(snapshot: Snapshot, records: Iterable[Record]) -> None:
    """Have the snapshot take records in, each from its own partition."""
    whole = list(records)
    keys = [record.member.encode() for record in whole]
    values = [write_record(record, frame(1)) for record in whole]
    homes = partitions_of(keys, snapshot.partitions)
    for partition in range(snapshot.partitions):
        own = np.flatnonzero(homes == partition).tolist()
        snapshot.apply_records(
            partition, [keys[place] for place in own], [values[place] for place in own]
        )


def controls() -> list[Control]:
    """Policies of the three regimes, pauses that quarantine, are lifted, or are still to come;
    cut-offs and categories.
    """
    return [
        policy(900_001, terms("US", "DE", "FR", "GB", "CH", "HK", "JP", "CA", "SG", "IN"), on=0),
        policy(
            900_002,
            terms("EEA", "CH", regime=Regime.OPT_IN),
            terms("JP", regime=Regime.NOT_OFFERED),
            terms("GB", categories=("posts", "profile"), minors=Minors.EXCLUDE),
            terms("US", collected_from=_CUT_OFF),
            terms("IN", minors=Minors.ALLOW),
            terms("SG", notice_until=day(150)),
            on=10,
        ),
        pause(900_003, "HK", on=20, name="holds"),
        pause(900_004, "CA", on=25, name="category", categories=("posts",)),
        pause(900_005, "FR", on=30, name="voided"),
        lift(900_006, on=50, name="voided", opt_ins=OptIns.VOID),
        pause(900_007, "US-CA", on=30, name="kept"),
        lift(900_008, on=55, name="kept", opt_ins=OptIns.KEEP),
        pause(900_009, "SG", on=90, effective_at=day(200), name="to-come"),
        pause(900_010, "IN", on=30, name="other-purpose", purposes=("ads",)),
    ]


def _snapshot(records: Sequence[Record]) -> Snapshot:
    snapshot = Snapshot(PARTITIONS, iso_jurisdictions())
    for control in controls():
        snapshot.apply_control(control)
    apply_records(snapshot, records)
    foreign, damaged = records[3], records[7]
    home = partition_of(foreign.member.encode(), PARTITIONS)
    snapshot.apply_records(
        (home + 1) % PARTITIONS, [foreign.member.encode()], [write_record(foreign, frame(1))]
    )
    key = damaged.member.encode()
    snapshot.apply_records(
        partition_of(key, PARTITIONS), [key], [write_record(damaged, frame(1))[:-1] + b"\xff\xff"]
    )
    return snapshot


def _member(number: int, ids: Ids) -> MemberId:
    """Text ids of several lengths, that share prefixes; integers of several sizes, beyond 32 bits
    too.
    """
    if ids == "integers":
        return MemberId(
            str((number * 2_654_435_761) % (1 << (20, 28, 36, 42)[number % 4]) * 1_000_003 + number)
        )
    return MemberId(("m:%d" if number % 3 else "urn:li:member:%012d") % number)


def _history(random: Random, number: int, member: MemberId) -> list[MemberEvent]:
    """What a member of this number did, in log order: every kind of state comes round."""
    first = 1 + number * 100
    place = _PLACES[number // _KINDS % len(_PLACES)]
    bands = {4: AgeBand.MINOR, 5: AgeBand.UNKNOWN}
    lives = moved(
        place, first, on=5, age_band=bands.get(number % _KINDS, AgeBand.ADULT), member=member
    )
    out = chose(Choice.OPT_OUT, first + 1, on=random.randrange(6, 90), member=member)
    opted_in = chose(
        Choice.OPT_IN, first + 2, on=random.randrange(35, 95), observed=1, member=member
    )
    unread = EventUnreadable(event_id=identity(first + 6), member=member, recorded_at=day(70))
    again = chose(Choice.OPT_IN, first + 3, on=96, observed=2, member=member)
    stories: list[list[MemberEvent]] = [
        [],
        [lives],
        [lives, out],
        [lives, opted_in],
        [lives],
        [lives, opted_in],
        [lives, out, again],
        [lives, again, replace(out, recorded_at=day(97), effective_at=day(97))],
        [lives, opted_in, moved(random.choice(_PLACES), first + 4, on=60, member=member)],
        [lives, erased(first + 5, on=70, member=member)],
        [lives, unread],
        [lives, unread, _released(first, member)],
        [lives, replace(out, effective_at=day(200))],
        [chose(Choice.OPT_IN, first + 2, on=45, observed=0, member=member, purpose="ads"), lives],
        [
            lives,
            *(
                replace(out, event_id=identity(first + 9 + n), effective_at=day(110 + n))
                for n in range(80)
            ),
        ],
        [opted_in, lives],
    ]
    assert len(stories) == _KINDS
    return stories[number % _KINDS]


def _released(first: int, member: MemberId) -> MemberReleased:
    return MemberReleased(
        event_id=identity(first + 7),
        member=member,
        effective_at=day(75),
        recorded_at=day(75),
        observed_version=2,
    )


def _after(record: Record, event: MemberEvent) -> Record:
    return fold(record, event)


def _table(members: Sequence[str], rows: int, ids: Ids, *, seed: int) -> pa.Table:
    """Rows of these members, of nobody known and of no member at all, in several chunks of uneven
    size.
    """
    numbers = np.random.default_rng(seed)

    def drawn(values: Sequence[Any], kind: pa.DataType, *, rare: Sequence[Any] = ()) -> pa.Array:
        """Any of the values, and in one row of twenty a rare one."""
        places = numbers.integers(0, len(values), rows)
        if rare:
            odd = numbers.random(rows) < 0.05
            places[odd] = len(values) + numbers.integers(0, len(rare), int(odd.sum()))
        return pa.array([*values, *rare], kind).take(pa.array(places))

    if ids == "integers":
        column = drawn(
            [int(member) for member in members],
            pa.int64(),
            rare=(None, 0, -1, -5, (1 << 63) - 1, 77),
        )
    else:
        column = drawn(list(members), pa.string(), rare=(None, "never-seen", "-", *_NO_MEMBERS))
    order = np.arange(rows)
    table = pa.table(
        {
            "row": pa.array(order),
            "member_id": column,
            "jurisdiction": drawn([*_PLACES, None], pa.string(), rare=_NO_PLACES),
            "category": drawn(list(_CATEGORIES), pa.string(), rare=(None, "", "Posts")),
            "collected_at": drawn(_TIMES, pa.int64(), rare=(None,)).cast(pa.timestamp("us", "UTC")),
            "text": pa.array(
                np.char.add("text ", (order % 1000).astype(str)) if rows else [], pa.string()
            ),
            "score": drawn([0.5, 1.0, -3.25], pa.float64(), rare=(None, float("inf"))),
        }
    )
    cuts = sorted({0, rows, *numbers.integers(0, rows + 1, 5).tolist()})
    pieces = [table.slice(start, end - start) for start, end in pairwise(cuts)]
    return pa.concat_tables(pieces) if pieces else table
