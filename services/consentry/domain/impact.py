"""The members whose answers a control would change by the rules: counted, by home and reason.

Nothing is sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from consentry.domain.controls import (
    Control,
    Controls,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
)
from consentry.domain.decisions import MemberState, decide_state, member_state
from consentry.domain.records import Record
from consentry.domain.values import Micros, Reason

ANY_PURPOSE: Final = "any purpose"
"""Stands for every purpose where no policy names one; it is no name that a purpose can have."""


class ReasonChange(NamedTuple):
    """Members whose answer by the rules a control changes, or gives another reason.

    `jurisdiction` is their residence.
    """

    purpose: str
    jurisdiction: str | None
    before: Reason
    after: Reason
    was_allowed: bool
    is_allowed: bool
    members: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Impact:
    """The difference that a control makes to the answers of the rules, at one moment.

    Times in microseconds. `covered` has members by last residence, for residences inside the
    control's scope; `unplaced` are those without one. `unchanged` counts the covered members' other
    answers by purpose and reason.
    """

    at: Micros
    known_at: Micros
    members: int
    covered: Mapping[str, int]
    unplaced: int
    changes: tuple[ReasonChange, ...]
    unchanged: Mapping[tuple[str, Reason], int]

    def excluded(self) -> Mapping[str, int]:
        """Return how many members the control would exclude, by purpose."""
        excluding = []
        for change in self.changes:
            if change.was_allowed and not change.is_allowed:
                excluding.append(change)
        return _by_purpose(excluding)

    def opened(self) -> Mapping[str, int]:
        """Return how many members the control would newly allow, by purpose."""
        opening = []
        for change in self.changes:
            if change.is_allowed and not change.was_allowed:
                opening.append(change)
        return _by_purpose(opening)


def _by_purpose(changes: Iterable[ReasonChange]) -> Mapping[str, int]:
    found: Counter[str] = Counter()
    for change in changes:
        found[change.purpose] += change.members
    return found


class Census:
    """Members counted by all that the rules' answer depends on, so each kind is decided once."""

    def __init__(
        self, controls: Controls, *, purposes: tuple[str, ...], at: Micros, known_at: Micros
    ) -> None:
        """`controls` are all that will be compared: which lifts an opt-in came before is part of
        its kind.
        """
        self._purposes = purposes
        self._times = {"at": at, "known_at": known_at}
        self._opt_ins_voided_at = controls.opt_ins_voided_at
        self._kinds: dict[tuple[object, ...], tuple[str, MemberState]] = {}
        self._counts: Counter[tuple[object, ...]] = Counter()
        self._members = 0

    def add(self, record: Record, members: int = 1) -> None:
        """Count one member; -1 takes the member back."""
        self._members += members
        for purpose in self._purposes:
            own = member_state(record, purpose=purpose, **self._times)
            # Where they live is counted beside the answer, also of those whom it does not decide.
            kind = (purpose, own.jurisdiction, own.equivalence_key(self._opt_ins_voided_at))
            if kind not in self._kinds:
                self._kinds[kind] = (purpose, own)
            self._counts[kind] += members

    def compare(self, before: Controls, after: Controls, scope: Iterable[str]) -> Impact:
        """Return how a control changes the answers of all members counted so far.

        They are asked about the member alone, without a row.
        """
        wanted = frozenset(scope)
        covered: Counter[str] = Counter()
        changed: Counter[tuple[str, str | None, Reason, Reason, bool, bool]] = Counter()
        unchanged: Counter[tuple[str, Reason]] = Counter()
        unplaced = 0
        for kind, (purpose, own) in self._kinds.items():
            members, place = self._counts[kind], own.jurisdiction
            if members == 0:
                continue  # all of them were taken back
            is_covered = False
            if place is not None:
                holders = after.jurisdictions.holders(place, at=self._times["at"])
                is_covered = not wanted.isdisjoint(holders)
            if purpose == self._purposes[0]:
                if place is None:
                    unplaced += members
                elif is_covered:
                    covered[place] += members
            was = decide_state(own, None, before, purpose=purpose, **self._times)
            now = decide_state(own, None, after, purpose=purpose, **self._times)
            if was.reason is not now.reason:
                changed[purpose, place, was.reason, now.reason, was.allowed, now.allowed] += members
            elif is_covered:
                unchanged[purpose, now.reason] += members
        changes = [ReasonChange(*key, members) for key, members in changed.items()]
        changes.sort(key=_order)
        return Impact(
            **self._times,
            members=self._members,
            covered=dict(sorted(covered.items())),
            unplaced=unplaced,
            changes=tuple(changes),
            unchanged=dict(sorted(unchanged.items())),
        )


def _order(change: ReasonChange) -> tuple[object, ...]:
    """Return the rank of a change: those that open use, those that close it, then other reasons."""
    if change.is_allowed == change.was_allowed:
        weight = 2
    elif change.is_allowed:
        weight = 0
    else:
        weight = 1
    return (
        weight,
        change.purpose,
        change.jurisdiction or "",
        -change.members,
        change.before,
        change.after,
    )


def scope_of(control: Control, controls: Controls) -> tuple[str, ...]:
    """Return the jurisdictions that a control names; a lift names those of its pauses."""
    if isinstance(control, PauseImposed):
        return control.scope.jurisdictions
    codes: dict[str, None] = {}
    if isinstance(control, PolicyPublished):
        for terms in control.terms:
            codes.update(dict.fromkeys(terms.jurisdictions))
    else:
        for pause in lifted_by(control, controls):
            codes.update(dict.fromkeys(pause.scope.jurisdictions))
    return tuple(codes)


def purposes_of(control: Control, controls: Controls) -> tuple[str, ...]:
    """Return the purposes that a control names; or else every purpose that terms name."""
    if isinstance(control, PolicyPublished):
        return tuple(dict.fromkeys(terms.purpose for terms in control.terms))
    pauses = (control,) if isinstance(control, PauseImposed) else lifted_by(control, controls)
    every = controls.purposes or (ANY_PURPOSE,)
    named: dict[str, None] = {}
    for pause in pauses:
        if pause.scope.purposes is None:
            return every
        named.update(dict.fromkeys(pause.scope.purposes))
    return tuple(named) or every


def lifted_by(lift: PauseLifted, controls: Controls) -> tuple[PauseImposed, ...]:
    """Return the pauses that a lift ends, by the rules."""
    return tuple(
        pause
        for pause in controls.pauses
        if pause.pause == lift.pause and pause.version <= lift.version
    )


def moments_of(control: Control, *, now: Micros) -> tuple[Micros, ...]:
    """Return the moments to ask about a control: when it takes effect, when each notice ends.

    In microseconds.
    """
    start = max(now, control.effective_at)
    terms = control.terms if isinstance(control, PolicyPublished) else ()
    ends = {
        one.notice_until
        for one in terms
        if one.notice_until is not None and one.notice_until > start
    }
    return (start, *sorted(ends))
