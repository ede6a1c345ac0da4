"""Which members stand alike, and what some controls tell apart: each kind of question is asked
once.
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
_REMEMBERED_MAX: Final = (1 << 15) - 1
"""The last class that is remembered in two bytes for a member; of any beyond it is looked anew each
time.
"""
_SIDE_BY_SIDE: Final = 16_384
"""Records read at once: enough for the arithmetic to count, few enough for a processor's cache."""
_LONG_AGO: Final = -(1 << 62)
_NEVER: Final = (1 << 63) - 1

QUARANTINED_CLASS: Final = 0
_NOBODY_CLASS: Final = 1

RowKind = tuple[str | None, str | None, Micros | None]
"""Jurisdiction, category and time of collection that stand for all rows that are judged alike."""


class ControlBoundaries:
    """What some controls tell apart: times between two neighbours are judged alike, and so are
    categories not named.

    `voiding` is when lifts that void opt-ins were recorded, `cut_offs` what terms say of
    collection; in microseconds, ascending.
    """

    def __init__(self, controls: Controls) -> None:
        self.controls: Final = controls
        self.cut_offs: Final = controls.collection_cut_offs
        pauses = [control for control in controls.log if isinstance(control, PauseImposed)]
        terms = [entry for policy in controls.policies for entry in policy.terms]
        self.voiding: Final = controls.opt_ins_voided_at
        named = [
            *(pause.scope.categories for pause in pauses),
            *(entry.categories for entry in terms),
        ]
        self.categories: Final = frozenset(category for some in named for category in some or ())
        effective = {
            control.effective_at for control in controls.log
        } | controls.jurisdictions.changes
        self._effective = sorted(
            effective | {one.notice_until for one in terms if one.notice_until is not None}
        )
        self._recorded = sorted({control.recorded_at for control in controls.log})

    def moment(self, at: Micros, known_at: Micros) -> tuple[int, int]:
        """Questions of one moment have one answer, as far as the controls are concerned."""
        return bisect_right(self._effective, at), bisect_right(self._recorded, known_at)


class KnownAnswers:
    """Answers given so far:

    `given` has them by what `keys` makes of a kind of row and a class of members.
    """

    def __init__(self) -> None:
        # Each number is drawn once, so that two threads never give two kinds the same.
        self._numbers: defaultdict[RowKind, int] = defaultdict(count().__next__)
        self.given: dict[int, int] = {}

    def keys(
        self, rows: Sequence[RowKind], place: npt.NDArray[np.intp], classes: npt.NDArray[Any]
    ) -> list[int]:
        """What `given` is asked by, for each class and the row at its place in `rows`."""
        numbers = np.array([self._numbers[row] for row in rows], dtype=np.int64)
        found: list[int] = ((numbers[place] << 32) | classes).tolist()
        return found


class MemberClasses:
    """Which members stand alike for one purpose: a class of them gets one answer to the same row.

    A member's class is remembered by the place of their record, which never changes in its segment,
    and only once all facts of it count, for then it is the same at all later times. `voiding` is
    that of the boundaries asked under.
    """

    def __init__(self, purpose: str, voiding: tuple[Micros, ...]) -> None:
        self.voiding: Final = voiding
        self.standings: Final = [UNREADABLE, NOBODY]
        """One of each class."""
        self._purpose = purpose
        self._numbers = {
            own.equivalence_key(voiding): number for number, own in enumerate(self.standings)
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
        """The answers given so far under these controls at this moment; to be added to."""
        under, then, found = self._asked
        if under is not boundaries or then != moment or len(found.given) > _ANSWERS_MAX:
            found = KnownAnswers()
            self._asked = (boundaries, moment, found)
        return found

    def classes(
        self,
        found: Sequence[FoundRecords],
        count: int,
        live: Collection[Segment],
        *,
        at: Micros,
        known_at: Micros,
    ) -> npt.NDArray[np.int32]:
        """The class of each of `count` members, a place in `standings`;

        `found` says where there are records of them.

        Of the segments that are not `live` nothing is remembered any more. Times in microseconds.
        """
        classes = np.full(count, _NOBODY_CLASS, dtype=np.int32)
        with self._asking:
            self._codes = {
                segment: codes for segment, codes in self._codes.items() if segment in live
            }
            covers = at >= self._settled_at and known_at >= self._settled_known_at
            for segment, rows, places in found:
                codes = self._codes_of(segment)
                numbers = (
                    codes[places].astype(np.int32)
                    if covers
                    else np.full(len(places), -1, dtype=np.int32)
                )
                missing = np.flatnonzero(numbers < 0)
                if len(missing):
                    distinct, inverse = np.unique(places[missing], return_inverse=True)
                    numbers[missing] = self._look_up(segment, codes, distinct, at, known_at)[
                        inverse
                    ]
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
        places: npt.NDArray[np.integer[Any]],
        at: Micros,
        known_at: Micros,
    ) -> npt.NDArray[np.int32]:
        """The classes of the members at these places; those that are settled are remembered in
        `codes`.
        """
        parts = []
        for start in range(0, len(places), _SIDE_BY_SIDE):
            part = places[start : start + _SIDE_BY_SIDE]
            members, raws = segment.members_at(part), segment.records_at(part)
            numbers, settled = self._look(members, raws, at, known_at)
            settled &= numbers <= _REMEMBERED_MAX
            codes[part[settled]] = numbers[settled]
            parts.append(numbers)
        return np.concatenate(parts)

    def _look(
        self, members: Sequence[bytes], raws: Sequence[bytes], at: Micros, known_at: Micros
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """The classes of some members with their records, and which of them are the same at all
        later times.
        """
        facts = FactColumns(members, raws, self._purpose)
        effective, recorded = facts.latest()
        found = []
        for place, signature in enumerate(facts.signatures(at, known_at, self.voiding)):
            number = self._signatures.get(signature)
            if number is None:
                closely = self._look_closely(members[place], raws[place], at, known_at)
                number, effective[place], recorded[place] = closely
                if signature is not None:
                    self._signatures[signature] = number
            found.append(number)
        settled = (effective <= at) & (recorded <= known_at)
        if settled.any():
            self._settled_at = max(self._settled_at, int(effective[settled].max()))
            self._settled_known_at = max(self._settled_known_at, int(recorded[settled].max()))
        return np.array(found, dtype=np.int32), settled

    def _look_closely(
        self, member: bytes, raw: bytes, at: Micros, known_at: Micros
    ) -> tuple[int, int, int]:
        """The class of one member as the rules have it, and the two times from which on nothing in
        it changes.
        """
        try:
            record = read_record(raw, member)
        except DamagedRecord:
            return QUARANTINED_CLASS, _NEVER, _NEVER
        own = member_state(record, purpose=self._purpose, at=at, known_at=known_at)
        number = self._numbers.setdefault(own.equivalence_key(self.voiding), len(self.standings))
        if number == len(self.standings):
            self.standings.append(own)
        effective = max((record.folded_effective_at, *(fact.effective_at for fact in record.facts)))
        recorded = max((record.folded_recorded_at, *(fact.recorded_at for fact in record.facts)))
        return number, min(effective, _NEVER), min(recorded, _NEVER)
