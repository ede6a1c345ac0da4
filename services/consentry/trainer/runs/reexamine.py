"""Decides every read of a training run again, as of its time.

It is the base of certificates and of `verify`. A read at time T is a violation if it was excluded
at T by everything that the run may have known. The run had proof of all that was recorded up to
some moment between T - bound and T, and nothing more is known of that moment. So a fact that was
recorded after T - bound neither condemns a read nor has to justify it. There is a violation only
where no moment of that span gives *allowed*.

An example with a bound of 5 s, and an opt-out that was recorded at 12:00:00:

    read at 11:59:59       fine: nobody knew of the opt-out
    read at 12:00:04.9     fine: the run may have known only what was recorded up to 11:59:59.9
    read at 12:00:05       a violation: every moment from 12:00:00 on has the opt-out
    first read at 11:59:59, last read at 12:00:05      a violation, by the last read
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consentry.domain.decisions import Row
from consentry.domain.values import MEMBER_ID_PATTERN, MemberId, Micros, Reason
from consentry.record_index import TextKeys
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decide_table import REASONS, decide_table
from consentry.trainer.deciding.fact_columns import FactColumns
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.certificates.reads import micros
from consentry.wire.records import DamagedRecord

READ_COLUMNS: Final = Columns(
    jurisdiction="jurisdiction", category="category", collected="collected_from"
)
FINE, VIOLATED, CANNOT_TELL = range(3)
_CHUNK_ROWS: Final = 16_384
_TABLE_ROWS_MIN: Final = 32
"""From this many rows of one time on, deciding them as a table is quicker than one by one."""

_Times = npt.NDArray[np.int64]
_Rows = npt.NDArray[np.intp]
_Mask = npt.NDArray[np.bool_]
_ReasonCodes = npt.NDArray[np.int8]
"""Positions in REASONS."""


class ReadOutcomes(NamedTuple):
    """The outcome of each read of a training run, decided again, with its reason.

    An outcome is FINE, VIOLATED or CANNOT_TELL; the reason is the one that decided it. Both are
    arrays with one value for each read; a reason is its position in REASONS.
    """

    outcomes: npt.NDArray[np.int8]
    reasons: _ReasonCodes

    def counts(self, outcome: int) -> dict[Reason, int]:
        """Return how many reads of a training run have an outcome, by reason."""
        selected = self.reasons[self.outcomes == outcome]
        numbers = np.bincount(selected, minlength=len(REASONS)).tolist()
        return {reason: number for reason, number in zip(REASONS, numbers, strict=True) if number}


def reexamine(snapshot: Snapshot, reads: pa.Table, *, purpose: str, bound: Micros) -> ReadOutcomes:
    """Decide a training run's reads again as of their first and last times, and in between.

    `reads` is a table as in certificates/reads.py. `bound` is how far the run's knowledge may have
    lagged behind, in microseconds. The outcome is CANNOT_TELL where the member was excluded for a
    while between the first and the last time, as the reads do not say what happened in between; and
    where a member is quarantined or their history folded for a reason that has no date.
    """
    return _Examination(snapshot, reads, purpose, bound).outcomes()


class _Examination:
    """Works out the outcomes of one table of reads."""

    def __init__(self, snapshot: Snapshot, reads: pa.Table, purpose: str, bound: Micros) -> None:
        self._snapshot = snapshot
        self._reads = reads
        self._bound = bound
        self._first = micros(reads["first_read_at"])
        self._last = micros(reads["last_read_at"])
        self._outcomes = np.zeros(reads.num_rows, dtype=np.int8)
        self._reasons = np.zeros(reads.num_rows, dtype=np.int8)
        self._controls_recorded = sorted({control.recorded_at for control in snapshot.controls.log})
        earliest = int(self._first.min(initial=1 << 62))
        self._is_settled = ~_changed_since(snapshot, reads, purpose, earliest, earliest - bound)
        """True for each read whose member's record says the same at every time that is asked."""
        self._decider = _ReadDecider(snapshot, reads, purpose, earliest, self._is_settled)

    def outcomes(self) -> ReadOutcomes:
        """Return the outcome of every read."""
        every = np.arange(self._reads.num_rows)
        self._examine_at(every, self._first)
        later = np.flatnonzero((self._last > self._first) & (self._outcomes == FINE))
        self._examine_at(later, self._last[later])
        self._examine_between(later[self._outcomes[later] == FINE])
        return ReadOutcomes(self._outcomes, self._reasons)

    def _examine_at(self, rows: _Rows, times: _Times) -> None:
        """Examine reads at one time each.

        Almost all of them are allowed by what was recorded a bound before, or by what was recorded
        at the time. Only those that are excluded by both are examined one by one.
        """
        reasons = self._decider.decide(rows, times, self._bound)
        suspect = np.flatnonzero(~_allows(reasons))
        if not len(suspect):
            return
        rows = rows[suspect]
        times = times[suspect]
        reasons = reasons[suspect]
        excluded = np.flatnonzero(~_allows(self._decider.decide(rows, times, 0)))
        for index in excluded.tolist():
            row, reason = int(rows[index]), int(reasons[index])
            outcome = self._examine_closely(row, int(times[index]), REASONS[reason])
            if outcome != FINE:
                self._outcomes[row] = outcome
                self._reasons[row] = reason

    def _examine_closely(self, row: int, time: int, reason: Reason) -> int:
        """Return the outcome of a read that is excluded at both ends of the span of knowledge."""
        member = self._decider.member(row)
        if MEMBER_ID_PATTERN.fullmatch(member) is None:
            return VIOLATED
        if reason is Reason.HISTORY_FOLDED:
            return CANNOT_TELL
        if reason is Reason.QUARANTINED and self._is_quarantined_without_date(member):
            return CANNOT_TELL
        begin = time - self._bound
        moments = _between(self._controls_recorded, begin, time)
        if not self._is_settled[row]:
            recorded = sorted(recorded for _, recorded in _fact_dates(self._snapshot, member))
            moments += _between(recorded, begin, time)
        for known_at in sorted(set(moments)):
            if self._decider.decide_row(row, time, known_at).allows:
                return FINE
        return VIOLATED

    def _is_quarantined_without_date(self, member: str) -> bool:
        """Return whether something other than a fact of the record quarantines the member."""
        try:
            is_quarantined = self._snapshot.is_quarantined(member.encode())
            return is_quarantined or self._snapshot.record(MemberId(member)) is None
        except DamagedRecord:
            return True

    def _examine_between(self, rows: _Rows) -> None:
        """Mark reads as CANNOT_TELL that were excluded at some time between their first and last.

        Answers change only where a control or a fact of the member begins to count.
        """
        changes = _control_changes(self._snapshot, self._bound)
        is_settled = self._is_settled[rows]
        self._examine_settled_between(rows[is_settled], changes)
        for row in rows[~is_settled].tolist():
            times = changes.tolist()
            for effective, recorded in _fact_dates(self._snapshot, self._decider.member(row)):
                times.append(effective)
                times.append(recorded + self._bound)
            inner = _between(sorted(times), self._first[row], self._last[row])
            if inner:
                same_row = np.full(len(inner), row)
                self._mark_excluded(same_row, np.array(inner, dtype=np.int64))

    def _examine_settled_between(self, rows: _Rows, changes: _Times) -> None:
        """Examine between their first and last time the reads that only controls can exclude."""
        begin = np.searchsorted(changes, self._first[rows], side="right")
        end = np.searchsorted(changes, self._last[rows], side="right")
        # The answer after a read's last change is that at its last time, which was examined.
        lowest = int(begin.min(initial=0))
        highest = int(end.max(initial=0)) - 1
        for index in range(lowest, highest):
            is_inside = (begin <= index) & (index < end - 1)
            inside = rows[is_inside]
            if len(inside):
                self._mark_excluded(inside, np.full(len(inside), changes[index]))

    def _mark_excluded(self, rows: _Rows, times: _Times) -> None:
        """Mark reads as CANNOT_TELL where they are excluded at their time."""
        reasons = self._decider.decide(rows, times, self._bound)
        excluded = ~_allows(reasons)
        self._outcomes[rows[excluded]] = CANNOT_TELL
        self._reasons[rows[excluded]] = reasons[excluded]


class _ReadDecider:
    """Decides the reads of one table, each at a time of its own."""

    def __init__(
        self, snapshot: Snapshot, reads: pa.Table, purpose: str, earliest: int, is_settled: _Mask
    ) -> None:
        self._snapshot = snapshot
        self._reads = reads
        self._purpose = purpose
        self._earliest = earliest
        self._is_settled = is_settled

    def member(self, row: int) -> str:
        """Return the member of a read."""
        member: str = self._reads["member_id"][row].as_py()
        return member

    def decide(self, rows: _Rows, times: _Times, lag: int) -> _ReasonCodes:
        """Decide these reads, each at its time, by what was recorded `lag` before it."""
        reasons = np.zeros(len(rows), dtype=np.int8)
        is_settled = self._is_settled[rows]
        self._decide_settled(np.flatnonzero(is_settled), rows, times, lag, reasons)
        for same in _groups_of_one_time(np.flatnonzero(~is_settled), times):
            time = int(times[same[0]])
            if len(same) >= _TABLE_ROWS_MIN:
                reasons[same] = self._decide_together(rows[same], time, time - lag)
                continue
            for index in same.tolist():
                reason = self.decide_row(int(rows[index]), time, time - lag)
                reasons[index] = REASONS.index(reason)
        return reasons

    def _decide_settled(
        self, settled: _Rows, rows: _Rows, times: _Times, lag: int, reasons: _ReasonCodes
    ) -> None:
        """Fill in the reasons of reads whose member's record does not change.

        Between two changes of the controls any time gives the same answer, so all reads of such a
        span are decided together.
        """
        changes = _control_changes(self._snapshot, lag)
        spans = np.searchsorted(changes, times[settled], side="right")
        for span in np.unique(spans).tolist():
            same = settled[spans == span]
            time = self._earliest
            if span:
                time = max(time, int(changes[span - 1]))
            reasons[same] = self._decide_together(rows[same], time, time - lag)

    def _decide_together(self, rows: _Rows, at: int, known_at: int) -> _ReasonCodes:
        """Decide these reads at one time, as a table."""
        count = self._reads.num_rows
        is_whole = len(rows) == count and rows[0] == 0 and rows[-1] == count - 1
        reads = self._reads
        if not is_whole:
            reads = reads.take(pa.array(rows))
        decisions = decide_table(
            reads,
            self._snapshot,
            purpose=self._purpose,
            at=Micros(at),
            known_at=Micros(known_at),
            columns=READ_COLUMNS,
            is_fresh=True,
        )
        return decisions.reasons

    def decide_row(self, row: int, at: int, known_at: int) -> Reason:
        """Decide one read at one time."""
        member = self.member(row)
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


def _allows(reasons: _ReasonCodes) -> _Mask:
    allowed: _Mask = _ALLOWED[reasons]
    return allowed


def row_of(reads: pa.Table, row: int) -> Row:
    """Return the facts known of the rows that a training run's read stands for."""
    collected = reads["collected_from"][row]
    return Row(
        jurisdiction=reads["jurisdiction"][row].as_py(),
        category=reads["category"][row].as_py(),
        collected=Micros(collected.value) if collected.is_valid else None,
    )


def _control_changes(snapshot: Snapshot, lag: int) -> _Times:
    """Return the times at which some control begins to count or to mean something else.

    For answers by what was recorded `lag` before. In ascending order, in microseconds.
    """
    controls = snapshot.controls
    times: set[int] = set(controls.jurisdictions.changes)
    for control in controls.log:
        times |= {control.effective_at, control.recorded_at + lag}
    for policy in controls.policies:
        for terms in policy.terms:
            if terms.notice_until is not None:
                times.add(terms.notice_until)
    return np.array(sorted(times), dtype=np.int64)


def _changed_since(
    snapshot: Snapshot, reads: pa.Table, purpose: str, at: int, known_at: int
) -> _Mask:
    """Return True for each read whose member's record has a fact that came or took effect later.

    True too where the record does not show it. All other records say the same at every later time.
    """
    changed = np.zeros(reads.num_rows, dtype=np.bool_)
    start = 0
    for chunk in reads["member_id"].chunks:
        keys = TextKeys.of_arrow(chunk)
        rows = np.flatnonzero(keys.valid())
        for segment, hits, positions in snapshot.records.find(keys.take(rows)):
            for begin in range(0, len(positions), _CHUNK_ROWS):
                span = slice(begin, begin + _CHUNK_ROWS)
                part = positions[span]
                facts = FactColumns(segment.members_at(part), segment.records_at(part), purpose)
                effective, recorded = facts.latest()
                is_later = (effective > at) | (recorded > known_at)
                changed[start + rows[hits[span]]] = is_later | ~facts.is_plain
        start += len(chunk)
    return changed


def _groups_of_one_time(indexes: _Rows, times: _Times) -> list[_Rows]:
    """Return the indexes in groups of equal time, in the order of their times."""
    if not len(indexes):
        return []
    ordered = indexes[np.argsort(times[indexes], kind="stable")]
    edges = np.flatnonzero(np.diff(times[ordered])) + 1
    return np.split(ordered, edges)


def _between(times: Sequence[int], after: int, before: int) -> list[int]:
    """Return the times that lie strictly between two others; `times` ascend."""
    return list(times[bisect_right(times, after) : bisect_left(times, before)])


def _fact_dates(snapshot: Snapshot, member: str) -> list[tuple[int, int]]:
    """Return when each fact of a member took effect and was recorded; none of a damaged record."""
    try:
        record = snapshot.record(MemberId(member))
    except DamagedRecord:
        return []
    if record is None:
        return []
    return [(int(fact.effective_at), int(fact.recorded_at)) for fact in record.facts]


def proven_at(snapshot: Snapshot) -> Micros | None:
    """Return the time up to which the snapshot that a run's reads are judged by is complete.

    It holds all that was recorded up to then. None where some partition was never proven fresh.
    """
    counted = snapshot.freshness.counted()
    if len(counted) != snapshot.partitions:
        return None
    return min(partition.frontier_at for partition in counted.values())
