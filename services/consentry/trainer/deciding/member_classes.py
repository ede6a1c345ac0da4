"""Classes of members who get the same answer, so that the trainer decides each class once.

A class is all members with one `MemberState.equivalence_key`. Most are told apart by columns, many
at a time (fact_columns.py); the others are read one by one, as the rules read them.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import count
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from consentry.domain.controls import Controls, PauseImposed
from consentry.domain.decisions import NOBODY, UNREADABLE, member_state
from consentry.domain.values import Micros
from consentry.record_index import FoundRecords, Segment
from consentry.trainer.deciding.fact_columns import FactColumns, Signature
from consentry.wire.records import DamagedRecord, read_record

_ANSWERS_MAX: Final = 200_000
"""Answers remembered for one purpose; beyond this many all are forgotten."""
_REMEMBERED_MAX: Final = (1 << 15) - 1
"""The last class that fits the two bytes kept for a member; a member of a later one is looked up
anew each time.
"""
_CHUNK_RECORDS: Final = 16_384
"""Records read at once: enough for the arithmetic to pay, few enough for a processor's cache."""
_LONG_AGO: Final = -(1 << 62)
_NEVER: Final = (1 << 63) - 1

QUARANTINED_CLASS: Final = 0
_NOBODY_CLASS: Final = 1

RowKind = tuple[str | None, str | None, Micros | None]
"""Jurisdiction, category and time of collection that stand for all rows with the same answers."""


class ControlBoundaries:
    """The times and categories at which controls can change the trainer's answers.

    Between two neighbouring times all answers are the same, and so are those for all categories
    that no control names. `opt_ins_voided_at` is that of the controls, `cut_offs` the times of
    collection that terms name; in microseconds, ascending.
    """

    def __init__(self, controls: Controls) -> None:
        self.controls: Final = controls
        self.cut_offs: Final = controls.collection_cut_offs
        self.opt_ins_voided_at: Final = controls.opt_ins_voided_at
        terms = [entry for policy in controls.policies for entry in policy.terms]
        self.categories: Final = frozenset(_named_categories(controls))
        effective = {control.effective_at for control in controls.log}
        effective |= controls.jurisdictions.changes
        effective |= {entry.notice_until for entry in terms if entry.notice_until is not None}
        self._effective = sorted(effective)
        self._recorded = sorted({control.recorded_at for control in controls.log})

    def moment(self, at: Micros, known_at: Micros) -> tuple[int, int]:
        """Return the moment of a trainer's question: those of one have the same answer.

        That holds as far as the controls are concerned. Times in microseconds.
        """
        return bisect_right(self._effective, at), bisect_right(self._recorded, known_at)


def _named_categories(controls: Controls) -> set[str]:
    """Return every category that the scope of a pause or the terms of a policy name."""
    named: set[str] = set()
    for control in controls.log:
        if isinstance(control, PauseImposed):
            named.update(control.scope.categories or ())
    for policy in controls.policies:
        for terms in policy.terms:
            named.update(terms.categories or ())
    return named


class KnownAnswers:
    """The answers that the trainer has given so far to classes of members.

    `given` has them by what `keys` makes of a kind of row and a class of members.
    """

    def __init__(self) -> None:
        # Each number is drawn once, so that two threads never give two kinds the same.
        self._numbers: defaultdict[RowKind, int] = defaultdict(count().__next__)
        self.given: dict[int, int] = {}

    def keys(
        self, rows: Sequence[RowKind], row_of: npt.NDArray[np.intp], classes: npt.NDArray[Any]
    ) -> list[int]:
        """Return the key of each class of members in `given`, the trainer's known answers.

        The class has the row at its index in `rows`.
        """
        numbers = np.array([self._numbers[row] for row in rows], dtype=np.int64)
        keys: list[int] = ((numbers[row_of] << 32) | classes).tolist()
        return keys


class MemberClasses:
    """The class of each member that a trainer decides on; a class shares its answers.

    It is for one purpose: a class gets one answer to the same row. A member's class is remembered
    by the position of their record, which never changes in its segment. It is remembered only once
    all facts of the record count, for then it is the same at all later times. `opt_ins_voided_at`
    is that of the boundaries asked under.
    """

    def __init__(self, purpose: str, opt_ins_voided_at: tuple[Micros, ...]) -> None:
        self.opt_ins_voided_at: Final = opt_ins_voided_at
        self.states: Final = [UNREADABLE, NOBODY]
        """The state of one member of each class."""
        self._purpose = purpose
        self._numbers = {
            own.equivalence_key(opt_ins_voided_at): number for number, own in enumerate(self.states)
        }
        self._signatures: dict[Signature | None, int] = {}
        self._codes: dict[Segment, npt.NDArray[np.int16]] = {}
        self._settled_at = self._settled_known_at = _LONG_AGO
        self._asked: tuple[ControlBoundaries | None, tuple[int, int], KnownAnswers] = (
            None,
            (0, 0),
            KnownAnswers(),
        )
        self._asking = threading.Lock()

    def answers(self, boundaries: ControlBoundaries, moment: tuple[int, int]) -> KnownAnswers:
        """Return the trainer's answers so far under these controls at this moment.

        More are to be added to them.
        """
        known_boundaries, known_moment, answers = self._asked
        is_other = known_boundaries is not boundaries or known_moment != moment
        if is_other or len(answers.given) > _ANSWERS_MAX:
            answers = KnownAnswers()
            self._asked = (boundaries, moment, answers)
        return answers

    def classes(
        self,
        found: Sequence[FoundRecords],
        count: int,
        live: Collection[Segment],
        *,
        at: Micros,
        known_at: Micros,
    ) -> npt.NDArray[np.int32]:
        """Return the class of each of `count` members to decide on: an index in `states`.

        `found` says which of them have records, and where. Everything remembered of segments that
        are not `live` is forgotten. Times in microseconds.
        """
        classes = np.full(count, _NOBODY_CLASS, dtype=np.int32)
        with self._asking:
            self._codes = {
                segment: codes for segment, codes in self._codes.items() if segment in live
            }
            # A remembered class holds from when every fact it rests on counts, and not before.
            may_remember = at >= self._settled_at and known_at >= self._settled_known_at
            for segment, rows, positions in found:
                codes = self._codes_of(segment)
                if may_remember:
                    numbers = codes[positions].astype(np.int32)
                else:
                    numbers = np.full(len(positions), -1, dtype=np.int32)
                missing = np.flatnonzero(numbers < 0)
                if len(missing):
                    distinct, inverse = np.unique(positions[missing], return_inverse=True)
                    looked_up = self._look_up(segment, codes, distinct, at, known_at)
                    numbers[missing] = looked_up[inverse]
                classes[rows] = numbers
        return classes

    def _codes_of(self, segment: Segment) -> npt.NDArray[np.int16]:
        codes = self._codes.get(segment)
        if codes is None:
            codes = self._codes[segment] = np.full(len(segment), -1, dtype=np.int16)
        return codes

    def _look_up(
        self,
        segment: Segment,
        codes: npt.NDArray[np.int16],
        positions: npt.NDArray[np.integer[Any]],
        at: Micros,
        known_at: Micros,
    ) -> npt.NDArray[np.int32]:
        """Return the classes of the members at these positions; remember the settled ones."""
        parts = []
        for start in range(0, len(positions), _CHUNK_RECORDS):
            chunk = positions[start : start + _CHUNK_RECORDS]
            members, raws = segment.members_at(chunk), segment.records_at(chunk)
            numbers, settled = self._classes_of(members, raws, at, known_at)
            settled &= numbers <= _REMEMBERED_MAX
            codes[chunk[settled]] = numbers[settled]
            parts.append(numbers)
        return np.concatenate(parts)

    def _classes_of(
        self, members: Sequence[bytes], raws: Sequence[bytes], at: Micros, known_at: Micros
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Return the classes of members with their records, and which are the same ever after."""
        facts = FactColumns(members, raws, self._purpose)
        effective, recorded = facts.latest()
        signatures = facts.signatures(at, known_at, self.opt_ins_voided_at)
        numbers = []
        for index, signature in enumerate(signatures):
            number = self._signatures.get(signature)
            if number is None:
                number, effective[index], recorded[index] = self._class_by_the_rules(
                    members[index], raws[index], at, known_at
                )
                if signature is not None:
                    self._signatures[signature] = number
            numbers.append(number)
        settled = (effective <= at) & (recorded <= known_at)
        if settled.any():
            self._settled_at = max(self._settled_at, int(effective[settled].max()))
            self._settled_known_at = max(self._settled_known_at, int(recorded[settled].max()))
        return np.array(numbers, dtype=np.int32), settled

    def _class_by_the_rules(
        self, member: bytes, raw: bytes, at: Micros, known_at: Micros
    ) -> tuple[int, int, int]:
        """Return the class of one member as the rules have it, and from when on it never changes.

        The last two are the effective and the recorded time from which on all of it counts.
        """
        try:
            record = read_record(raw, member)
        except DamagedRecord:
            return QUARANTINED_CLASS, _NEVER, _NEVER
        own = member_state(record, purpose=self._purpose, at=at, known_at=known_at)
        key = own.equivalence_key(self.opt_ins_voided_at)
        number = self._numbers.setdefault(key, len(self.states))
        if number == len(self.states):
            self.states.append(own)
        effective = [record.folded_effective_at, *(fact.effective_at for fact in record.facts)]
        recorded = [record.folded_recorded_at, *(fact.recorded_at for fact in record.facts)]
        return number, min(max(effective), _NEVER), min(max(recorded), _NEVER)
