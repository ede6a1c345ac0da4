"""The decision by the rules: may this member's data be used for a purpose at a time, and why.

It is given by what was known at a time, which may be another.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from consentry.domain.controls import (
    Controls,
    Minors,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
    Regime,
    Terms,
)
from consentry.domain.events import AGE_BANDS, RELOCATION_FACTS, Fact, FactKind
from consentry.domain.records import Record, next_choice, next_quarantine
from consentry.domain.values import REASON_RANK, AgeBand, Micros, Reason

_TOO_EARLY = "the question is about a time before what the record still knows"
_NOWHERE = "neither the member's record nor the row names a jurisdiction"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The facts that the rules know of one row of training data; None is not known.

    `collected` is in microseconds.
    """

    jurisdiction: str | None = None
    category: str | None = None
    collected: Micros | None = None


class Limit(enum.StrEnum):
    """The condition of a policy's terms that a question fails.

    If several fail, the first in this order is reported.

    Source: rule 6.
    """

    MINOR = "MINOR"
    AGE_NOT_KNOWN = "AGE_NOT_KNOWN"
    CATEGORY = "CATEGORY"
    COLLECTED_UNKNOWN = "COLLECTED_UNKNOWN"
    COLLECTED_BEFORE = "COLLECTED_BEFORE"


class Ground(NamedTuple):
    """One fact behind a decision of the rules: its reason, the fact, and the jurisdiction.

    With a policy come the terms that bind, and for OUTSIDE_TERMS the limit that fails.
    """

    reason: Reason
    fact: Fact | PauseImposed | PauseLifted | PolicyPublished | str
    jurisdiction: str | None = None
    terms: Terms | None = None
    limit: Limit | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer of the rules: outcome, reason, and grounds, the deciding one first."""

    allowed: bool
    reason: Reason
    because: tuple[Ground, ...] = field(default=())


class MemberState(NamedTuple):
    """A member's own part in a decision: their record, read for one purpose and time.

    Whatever `decide_state` reads of it stands in `equivalence_key` too.
    """

    erasure: Fact | None
    quarantine: Fact | None
    is_folded: bool
    """Whether the question is about a time before what the record still knows."""
    relocation: Fact | None
    choice: Fact | None

    @property
    def jurisdiction(self) -> str | None:
        """The jurisdiction where the member was last known to live, or None."""
        if self.relocation is None:
            return None
        return self.relocation.name

    @property
    def age_band(self) -> AgeBand:
        """The age band last recorded of the member."""
        if self.relocation is None:
            return AgeBand.UNKNOWN
        return AGE_BANDS[self.relocation.kind]

    @property
    def bar(self) -> Ground | None:
        """The ground that excludes the member before row, controls or choice are asked, or None.

        Source: rules 3 and 10.
        """
        if self.erasure is not None:
            return Ground(Reason.ERASED, self.erasure)
        if self.quarantine is not None:
            return Ground(Reason.QUARANTINED, self.quarantine)
        return Ground(Reason.HISTORY_FOLDED, _TOO_EARLY) if self.is_folded else None

    @property
    def has_opted_out(self) -> bool:
        """True if the member's choice that stands is an opt-out."""
        return self.choice is not None and self.choice.kind is not FactKind.OPTED_IN

    @property
    def is_excluded_by_own_facts(self) -> bool:
        """True if the member is excluded whatever row and controls say. Source: rule 8."""
        return self.bar is not None or self.has_opted_out

    def equivalence_key(self, opt_ins_voided_at: Sequence[Micros]) -> Hashable:
        """Return everything in this state that `decide_state` can tell from another state.

        Members whose states have equal keys get the same answer and reason to every question, with
        any row. `opt_ins_voided_at` is that of the controls (`Controls.opt_ins_voided_at`), in
        microseconds, ascending: a lift parts those who opted in before it from those who did after.
        """
        bar = self.bar
        if bar is not None:
            return bar.reason
        choice = self.choice
        if choice is None or self.has_opted_out:
            return self.jurisdiction, self.age_band, self.has_opted_out
        lifts_before = bisect_left(opt_ins_voided_at, choice.recorded_at)
        return self.jurisdiction, self.age_band, False, lifts_before


NOBODY = MemberState(None, None, False, None, None)
"""The state of a member of whom nothing is recorded."""

UNREADABLE = NOBODY._replace(quarantine=Fact(FactKind.QUARANTINED, Micros(0), Micros(0), bytes(8)))
"""The state of a member of whom something could not be read."""


def member_state(
    record: Record | None, *, purpose: str, at: Micros, known_at: Micros
) -> MemberState:
    """Return by the rules what the facts of a member's record that count come to.

    In log order; times in microseconds.

    Source: rules 1 to 4 and 10.
    """
    if record is None:
        return NOBODY
    if at < record.folded_effective_at or known_at < record.folded_recorded_at:
        return MemberState(None, None, True, None, None)
    erasure = quarantine = relocation = choice = None
    for fact in record.facts:
        # Runs once per fact of every record: unpacked by index, which is quicker than by name.
        kind, effective_at, recorded_at = fact[0], fact[1], fact[2]
        if effective_at > at or recorded_at > known_at:
            continue
        if kind in RELOCATION_FACTS:
            relocation = fact
        elif kind is FactKind.ERASED:
            erasure = fact
        elif kind is FactKind.QUARANTINED or kind is FactKind.RELEASED or kind is FactKind.UNKNOWN:
            quarantine = next_quarantine(quarantine, fact)
        elif fact.name == purpose:
            choice = next_choice(choice, fact)
    return MemberState(erasure, quarantine, False, relocation, choice)


def decide(
    record: Record | None,
    row: Row | None,
    controls: Controls,
    *,
    purpose: str,
    at: Micros,
    known_at: Micros,
) -> Decision:
    """Decide by the rules if a row, or a member's data at large, may be used for `purpose`.

    `record` is None for a member who is not in the table. `at` is when the data would be used; only
    what had been recorded by `known_at` counts; both in microseconds since 1970-01-01 UTC. Returns
    the outcome, one reason of the closed list and the grounds, the deciding one first. Raises
    nothing: whatever is unknown is not allowed. Source: rules 1 to 10 (docs/architecture.md,
    "Rules").
    """
    own = member_state(record, purpose=purpose, at=at, known_at=known_at)
    return decide_state(own, row, controls, purpose=purpose, at=at, known_at=known_at)


def decide_state(
    own: MemberState,
    row: Row | None,
    controls: Controls,
    *,
    purpose: str,
    at: Micros,
    known_at: Micros,
) -> Decision:
    """Decide by the rules for a member's state; see `decide`. The only place that allows.

    Whoever reads more of `own` here adds it to `MemberState.equivalence_key` and to its form in
    columns, trainer/deciding/fact_columns.py; tests fail until both are done.
    """
    bar = own.bar
    if bar is not None:
        return Decision(False, bar.reason, (bar,))
    jurisdictions: dict[str, None] = {}
    if own.jurisdiction is not None:
        jurisdictions[own.jurisdiction] = None
    if row is not None and row.jurisdiction is not None:
        jurisdictions[row.jurisdiction] = None
    if not jurisdictions:
        ground = Ground(Reason.JURISDICTION_UNKNOWN, _NOWHERE)
        return Decision(False, ground.reason, (ground,))
    question = _UseQuestion(own, row, controls, purpose, at, known_at)
    answers = [question.ask(code) for code in jurisdictions]
    refusing = [grounds for grounds in answers if not grounds[0].reason.allows]
    grounds = min(refusing or answers, key=lambda grounds: REASON_RANK[grounds[0].reason])
    return Decision(not refusing, grounds[0].reason, tuple(grounds))


class _UseQuestion(NamedTuple):
    """One question, asked for each jurisdiction that the member or the row names."""

    own: MemberState
    row: Row | None
    controls: Controls
    purpose: str
    at: Micros
    known_at: Micros

    def ask(self, place: str) -> list[Ground]:
        """Return the grounds for one jurisdiction, the deciding one first. Source: rule 8."""
        if not self.controls.jurisdictions.is_code(place):
            return [
                Ground(Reason.JURISDICTION_UNKNOWN, f"{place[:16]!r} is not a known code", place)
            ]
        category = None
        if self.row is not None:
            category = self.row.category
        applicable = self.controls.applicable(
            place, self.purpose, category, at=self.at, known_at=self.known_at
        )
        choice = self._choice_ground(place, applicable.voiding_lift)
        rest = [choice] if choice else []
        if applicable.pause is not None:
            return [Ground(Reason.PAUSED, applicable.pause, place), *rest]
        if choice is not None and choice.reason is Reason.OPTED_OUT:
            return [choice]
        if applicable.policy is None or applicable.terms is None:
            return [
                Ground(Reason.NO_TERMS, f"no policy has terms for {self.purpose}", place),
                *rest,
            ]
        reason = self._by_terms(applicable.terms, choice)
        limit = None
        if reason is Reason.OUTSIDE_TERMS:
            limit = failed_limit(applicable.terms, self.own.age_band, self.row)
        return [Ground(reason, applicable.policy, place, applicable.terms, limit), *rest]

    def _choice_ground(self, place: str, lift: PauseLifted | None) -> Ground | None:
        """Return the ground that the member's choice is: None where there is none.

        It is an opt-out, an opt-in, or an opt-in that a lift made void.
        """
        choice = self.own.choice
        if choice is None:
            return None
        if self.own.has_opted_out:
            return Ground(Reason.OPTED_OUT, choice, place)
        if lift is not None and choice.recorded_at <= lift.recorded_at:
            return Ground(Reason.OPT_IN_REQUIRED, lift, place)
        return Ground(Reason.OPTED_IN, choice, place)

    def _by_terms(self, terms: Terms, choice: Ground | None) -> Reason:
        """Return the reason once neither a pause nor an opt-out decides."""
        if terms.regime in (Regime.NOT_OFFERED, Regime.UNKNOWN):
            return Reason.NOT_OFFERED
        if failed_limit(terms, self.own.age_band, self.row) is not None:
            return Reason.OUTSIDE_TERMS
        if choice is not None and choice.reason is Reason.OPTED_IN:
            return Reason.OPTED_IN
        if terms.notice_until is not None and self.at < terms.notice_until:
            return Reason.NOTICE_OPEN
        return Reason.DEFAULT_ON if terms.regime is Regime.DEFAULT_ON else Reason.OPT_IN_REQUIRED


def failed_limit(terms: Terms, band: AgeBand, row: Row | None) -> Limit | None:
    """Return the first limit of a policy's terms that age, category or collection time fails.

    Source: rule 6.
    """
    if band is AgeBand.MINOR and terms.minors is not Minors.ALLOW:
        return Limit.MINOR
    if band is AgeBand.UNKNOWN and terms.minors in (Minors.EXCLUDE_UNLESS_ADULT, Minors.UNKNOWN):
        return Limit.AGE_NOT_KNOWN
    if row is None:
        return None
    if (
        terms.categories is not None
        and row.category is not None
        and row.category not in terms.categories
    ):
        return Limit.CATEGORY
    if terms.collected_from is None or (
        row.collected is not None and row.collected >= terms.collected_from
    ):
        return None
    return Limit.COLLECTED_UNKNOWN if row.collected is None else Limit.COLLECTED_BEFORE


def stale(detail: str) -> Decision:
    """Return the decision if freshness is not proven; `detail` says by what bound."""
    return Decision(False, Reason.STALE, (Ground(Reason.STALE, detail),))
