"""Deciding once more, as of the time, whether what was read might be read: what certificates and
`verify` rest on.

A read at time T is a violation if it was excluded at T by everything that the run may have known.
The run had proof of
all that was recorded up to some moment between T - bound and T, and no more is known of that
moment. So a fact that was
recorded later than T - bound neither condemns a read nor has to justify it: only where no moment of
that span gives
*allowed* is there a violation.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consentry.domain.decisions import MemberState, Row
from consentry.domain.events import FactKind
from consentry.domain.values import MEMBER_ID_PATTERN, MemberId, Micros, Reason
from consentry.record_index import TextKeys
from consentry.trainer.deciding.decide_table import REASONS, Columns, decide_table
from consentry.trainer.deciding.fact_columns import FactColumns
from consentry.trainer.deciding.member_classes import MemberClasses
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.certificates.reads import micros
from consentry.wire.records import DamagedRecord

READ_COLUMNS: Final = Columns(
    jurisdiction="jurisdiction", category="category", collected="collected_from"
)
FINE, VIOLATED, CANNOT_TELL = range(3)
EXCLUDED_WHATEVER_THE_ROW: Final = (
    "SHA-256 over the ids, in the order of their bytes, each followed by a line end, of all "
    "members whose record alone "
    "excludes them for the purpose, whatever a row, a pause or terms say: erased, held, history "
    "folded, or the last "
    "choice that counts is no opt-in; at the time the run ended, by what was recorded up to "
    "known_at_end"
)
_SIDE_BY_SIDE: Final = 16_384
_AT_ONCE: Final = 32
"""From so many rows of one time on, deciding them as a table is quicker than one by one."""

_Times = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]


class Examined(NamedTuple):
    """For each read its outcome (FINE, VIOLATED, CANNOT_TELL) and the place in REASONS of what
    decided it.
    """

    outcomes: npt.NDArray[np.int8]
    reasons: npt.NDArray[np.int8]

    def counts(self, outcome: int) -> dict[Reason, int]:
        """How many reads have an outcome, by reason."""
        numbers = np.bincount(
            self.reasons[self.outcomes == outcome], minlength=len(REASONS)
        ).tolist()
        return {reason: number for reason, number in zip(REASONS, numbers, strict=True) if number}


def examine(snapshot: Snapshot, reads: pa.Table, *, purpose: str, bound: Micros) -> Examined:
    """Decide every read of a table (trainer/runs/certificates/reads.py) as of its first and last
    time, and in between.

    `bound` is how far the run's knowledge may have lagged behind, in microseconds. A read whose
    member was excluded for a while between its first and last time cannot be told: what happened in
    between is not in the reads. Nor can one that is held or folded for a reason that carries no
    date.
    """
    return _Examination(snapshot, reads, purpose, bound).examined()


class _Examination:
    """One table of reads under examination."""

    def __init__(self, snapshot: Snapshot, reads: pa.Table, purpose: str, bound: Micros) -> None:
        self._snapshot, self._reads, self._purpose, self._bound = snapshot, reads, purpose, bound
        self._first, self._last = micros(reads["first_read_at"]), micros(reads["last_read_at"])
        count = reads.num_rows
        self._outcomes, self._reasons = np.zeros((2, count), dtype=np.int8)
        self._recorded = np.array(
            sorted({control.recorded_at for control in snapshot.controls.log}), dtype=np.int64
        )
        earliest = int(self._first.min(initial=1 << 62))
        self._is_settled = ~_changed_since(snapshot, reads, purpose, earliest, earliest - bound)

    def examined(self) -> Examined:
        """The outcome of every read."""
        everything = np.arange(self._reads.num_rows)
        self._look(everything, self._first)
        later = np.flatnonzero((self._last > self._first) & (self._outcomes == FINE))
        self._look(later, self._last[later])
        self._look_between(later[self._outcomes[later] == FINE])
        return Examined(self._outcomes, self._reasons)

    def _look(self, rows: npt.NDArray[np.intp], times: _Times) -> None:
        """Decide some reads at one time each."""
        reasons = self._answers(rows, times, self._bound)
        suspect = np.flatnonzero(~_allows(reasons))
        if not len(suspect):
            return
        rows, times, reasons = rows[suspect], times[suspect], reasons[suspect]
        still = ~_allows(self._answers(rows, times, 0))
        for row, time, reason in zip(
            rows[still].tolist(), times[still].tolist(), reasons[still].tolist(), strict=True
        ):
            outcome = self._closely(row, time, REASONS[reason])
            if outcome != FINE:
                self._outcomes[row], self._reasons[row] = outcome, reason

    def _closely(self, row: int, time: int, reason: Reason) -> int:
        """The outcome of a read that was excluded by what was known at both ends of the span of
        knowledge.
        """
        member = self._reads["member_id"][row].as_py()
        if MEMBER_ID_PATTERN.fullmatch(member) is None:
            return VIOLATED
        if reason is Reason.HISTORY_FOLDED or (
            reason is Reason.QUARANTINED and self._is_held_without_date(member)
        ):
            return CANNOT_TELL
        between = _within(self._recorded.tolist(), time - self._bound, time)
        if not self._is_settled[row]:
            between += [
                fact
                for fact in _recorded_times(self._snapshot, member)
                if time - self._bound < fact < time
            ]
        for known_at in sorted(set(between)):
            if self._decides(row, member, time, known_at).allows:
                return FINE
        return VIOLATED

    def _is_held_without_date(self, member: str) -> bool:
        """Whether it is not a fact of the record that holds the member."""
        try:
            return (
                self._snapshot.is_quarantined(member.encode())
                or self._snapshot.record(MemberId(member)) is None
            )
        except DamagedRecord:
            return True

    def _look_between(self, rows: npt.NDArray[np.intp]) -> None:
        """Say CANNOT_TELL of reads that were excluded at some time between their first and their
        last.
        """
        changes = _changes(self._snapshot, self._bound)
        settled = rows[self._is_settled[rows]]
        begin = np.searchsorted(changes, self._first[settled], side="right")
        end = np.searchsorted(changes, self._last[settled], side="right")
        for place in range(int(begin.min(initial=0)), int(end.max(initial=0)) - 1):
            inside = settled[(begin <= place) & (place < end - 1)]
            if len(inside):
                self._note_between(inside, np.full(len(inside), changes[place]))
        for row in rows[~self._is_settled[rows]].tolist():
            member = self._reads["member_id"][row].as_py()
            times = [*_fact_times(self._snapshot, member, self._bound), *changes.tolist()]
            between = _within(sorted(times), self._first[row], self._last[row])
            if between:
                self._note_between(np.full(len(between), row), np.array(between, dtype=np.int64))

    def _note_between(self, rows: npt.NDArray[np.intp], times: _Times) -> None:
        reasons = self._answers(rows, times, self._bound)
        excluded = ~_allows(reasons)
        self._outcomes[rows[excluded]] = CANNOT_TELL
        self._reasons[rows[excluded]] = reasons[excluded]

    def _answers(self, rows: npt.NDArray[np.intp], times: _Times, lag: int) -> npt.NDArray[np.int8]:
        """Places in REASONS for these rows, each at its time, by what was recorded `lag` before
        it.
        """
        found = np.zeros(len(rows), dtype=np.int8)
        if not len(rows):
            return found
        changes = _changes(self._snapshot, lag)
        settled = self._is_settled[rows]
        earliest = int(self._first.min())
        spans = np.searchsorted(changes, times, side="right")
        for span in np.unique(spans[settled]).tolist():
            # Neither the member's facts nor the controls change within it: any of its times stands
            # for all.
            some = np.flatnonzero(settled & (spans == span))
            time = max(earliest, int(changes[span - 1])) if span else earliest
            found[some] = self._table(rows[some], time, time - lag)
        rest = np.flatnonzero(~settled)
        order = rest[np.argsort(times[rest], kind="stable")]
        for some in (
            np.split(order, np.flatnonzero(np.diff(times[order])) + 1) if len(order) else ()
        ):
            time = int(times[some[0]])
            if len(some) >= _AT_ONCE:
                found[some] = self._table(rows[some], time, time - lag)
                continue
            for place in some.tolist():
                row = int(rows[place])
                member = self._reads["member_id"][row].as_py()
                found[place] = REASONS.index(self._decides(row, member, time, time - lag))
        return found

    def _table(self, rows: npt.NDArray[np.intp], at: int, known_at: int) -> npt.NDArray[np.int8]:
        is_all = len(rows) == self._reads.num_rows and rows[0] == 0 and rows[-1] == len(rows) - 1
        asked = self._reads if is_all else self._reads.take(pa.array(rows))
        return decide_table(
            asked,
            self._snapshot,
            purpose=self._purpose,
            at=Micros(at),
            known_at=Micros(known_at),
            columns=READ_COLUMNS,
            is_fresh=True,
        ).reasons

    def _decides(self, row: int, member: str, at: int, known_at: int) -> Reason:
        if MEMBER_ID_PATTERN.fullmatch(member) is None:
            return Reason.QUARANTINED
        decision = self._snapshot.decide(
            MemberId(member),
            row_of(self._reads, row),
            purpose=self._purpose,
            at=Micros(at),
            known_at=Micros(known_at),
            stale_detail="",
        )
        return decision.reason


_ALLOWED: Final = np.array([reason.allows for reason in REASONS])


def _allows(reasons: npt.NDArray[np.int8]) -> _Mask:
    found: _Mask = _ALLOWED[reasons]
    return found


def row_of(reads: pa.Table, row: int) -> Row:
    """What is known of the rows that a read stands for."""
    collected = reads["collected_from"][row]
    return Row(
        jurisdiction=reads["jurisdiction"][row].as_py(),
        category=reads["category"][row].as_py(),
        collected=Micros(collected.value) if collected.is_valid else None,
    )


def _changes(snapshot: Snapshot, lag: int) -> _Times:
    """When some control begins to count or to say something else, for questions that know what is
    `lag` old.
    """
    controls = snapshot.controls
    notices = {
        terms.notice_until
        for policy in controls.policies
        for terms in policy.terms
        if terms.notice_until is not None
    }
    found = (
        {control.effective_at for control in controls.log}
        | set(controls.jurisdictions.changes)
        | notices
    )
    return np.array(
        sorted(found | {control.recorded_at + lag for control in controls.log}), dtype=np.int64
    )


def _changed_since(
    snapshot: Snapshot, reads: pa.Table, purpose: str, at: int, known_at: int
) -> _Mask:
    """Of which reads the member's record has a fact that came, or took effect, later; true too
    where it cannot be told.

    Of all others the record says one thing at every later time.
    """
    found = np.zeros(reads.num_rows, dtype=np.bool_)
    start = 0
    for chunk in reads["member_id"].chunks:
        keys = TextKeys.of_arrow(chunk)
        rows = np.flatnonzero(keys.valid())
        for segment, hits, places in snapshot.records.find(keys.taken(rows)):
            for begin in range(0, len(places), _SIDE_BY_SIDE):
                part = places[begin : begin + _SIDE_BY_SIDE]
                facts = FactColumns(segment.members_at(part), segment.records_at(part), purpose)
                effective, recorded = facts.latest()
                changed = ~facts.is_plain | (effective > at) | (recorded > known_at)
                found[start + rows[hits[begin : begin + _SIDE_BY_SIDE]]] = changed
        start += len(chunk)
    return found


def _within(times: list[int], after: int, before: int) -> list[int]:
    """The times that are later than the one and earlier than the other; `times` ascend."""
    return times[bisect_right(times, after) : bisect_left(times, before)]


def _recorded_times(snapshot: Snapshot, member: str) -> list[int]:
    return [int(recorded) for _, recorded in _dates(snapshot, member)]


def _fact_times(snapshot: Snapshot, member: str, bound: int) -> list[int]:
    """When a fact of the member began to count for what was `bound` behind."""
    return [
        time
        for effective, recorded in _dates(snapshot, member)
        for time in (int(effective), int(recorded) + bound)
    ]


def _dates(snapshot: Snapshot, member: str) -> list[tuple[Micros, Micros]]:
    try:
        record = snapshot.record(MemberId(member))
    except DamagedRecord:
        return []
    return (
        [] if record is None else [(fact.effective_at, fact.recorded_at) for fact in record.facts]
    )


class Exclusions(NamedTuple):
    """How many members are excluded whatever a row says, and their digest; see
    EXCLUDED_WHATEVER_THE_ROW.
    """

    members: int
    digest: str
    undated: int
    """Of them, those held or folded: of these a later view may say otherwise about the same time.
    """


def exclusions(snapshot: Snapshot, *, purpose: str, at: Micros, known_at: Micros) -> Exclusions:
    """Who is excluded whatever a row says. Times in microseconds."""
    excluded: list[bytes] = []
    undated = 0
    pairs = iter(snapshot.records)
    while members := list(islice(pairs, _SIDE_BY_SIDE)):
        # Likenesses of its own: what is asked about the past is not to be remembered for questions
        # about now.
        member_classes = MemberClasses(purpose, snapshot.boundaries.voiding)
        classes = snapshot.classes(members, member_classes, at=at, known_at=known_at)
        decides = np.array([_decides_alone(own) for own in member_classes.standings])
        found = decides[classes]
        undated += int(
            np.isin(
                classes,
                np.flatnonzero(
                    [
                        own.is_folded or own.quarantine is not None
                        for own in member_classes.standings
                    ]
                ),
            ).sum()
        )
        excluded += [members[place] for place in np.flatnonzero(found).tolist()]
    return Exclusions(len(excluded), "sha256:" + _digest(excluded), undated)


def _decides_alone(own: MemberState) -> bool:
    return (
        own.erasure is not None
        or own.quarantine is not None
        or own.is_folded
        or (own.choice is not None and own.choice.kind is not FactKind.OPTED_IN)
    )


def _digest(members: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    told: Any = iter(sorted(members))
    while some := list(islice(told, _SIDE_BY_SIDE)):
        found.update(b"\n".join(some) + b"\n")
    return found.hexdigest()


def proven_at(snapshot: Snapshot) -> Micros | None:
    """The time up to which all that was recorded is held;

    None where some partition was never proven fresh.
    """
    counted = snapshot.freshness.counted()
    return (
        min(one.frontier_at for one in counted.values())
        if len(counted) == snapshot.partitions
        else None
    )
