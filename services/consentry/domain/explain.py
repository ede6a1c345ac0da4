"""The chain that explains a decision: its fact, the member's choice, the terms otherwise."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from consentry.domain.controls import Control, Controls, PauseImposed, PolicyPublished, counts
from consentry.domain.decisions import (
    Decision,
    Ground,
    MemberState,
    Row,
    decide_state,
    member_state,
)
from consentry.domain.events import CHOICE_FACTS, QUARANTINE_FACTS, RELOCATION_FACTS, Fact, FactKind
from consentry.domain.records import Record, next_choice, next_quarantine
from consentry.domain.values import Micros, Reason
from consentry.domain.wording import NameOf, Phrasing, date_text, moment_of

__all__ = [
    "ExplainQuestion",
    "Explanation",
    "FactNote",
    "Link",
    "SentenceRole",
    "as_data",
    "date_text",
    "explain",
    "sentences",
]

_FOREVER: Final = Micros(1 << 62)


class SentenceRole(enum.StrEnum):
    """The role of a sentence in the chain that explains a decision."""

    DECIDES = "decides"
    BESIDE = "beside"
    OTHERWISE = "otherwise"
    NOT_COUNTED = "not counted"


class Link(NamedTuple):
    """One sentence in the chain that explains a decision, its role, and its ground."""

    role: SentenceRole
    ground: Ground
    text: str


class FactNote(NamedTuple):
    """One fact of a record in words, and why the rules do not count it for a question, or ''.

    `replaced_by` is the version of the fact that took its place; a fact that was replaced did
    count.
    """

    fact: Fact
    text: str
    why_not: str = ""
    replaced_by: int | None = None

    @property
    def counts(self) -> bool:
        """True if the explained answer heeds the fact."""
        return not self.why_not


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainQuestion:
    """One question about one member, to be decided by the rules and explained.

    It is as `decide` takes it; times are in microseconds since 1970-01-01 UTC.
    """

    record: Record | None
    row: Row | None
    controls: Controls
    purpose: str
    at: Micros
    known_at: Micros

    def member_state(self) -> MemberState:
        """Return the member's state that the record gives for the question."""
        return member_state(self.record, purpose=self.purpose, at=self.at, known_at=self.known_at)

    def decide_state(self, own: MemberState, row: Row | None, controls: Controls) -> Decision:
        """Return the decision for a member's state, row and controls at the same times."""
        return decide_state(
            own, row, controls, purpose=self.purpose, at=self.at, known_at=self.known_at
        )

    def places(self, own: MemberState) -> tuple[str, ...]:
        """The jurisdictions that member and row name, the member's first, each once."""
        places: list[str] = []
        if own.jurisdiction is not None:
            places.append(own.jurisdiction)
        row_place = None
        if self.row is not None:
            row_place = self.row.jurisdiction
        if row_place is not None and row_place not in places:
            places.append(row_place)
        return tuple(places)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A decision explained: its chain of sentences, and the record's facts in log order.

    The deciding sentence is the first.
    """

    asked: ExplainQuestion
    decision: Decision
    chain: tuple[Link, ...]
    facts: tuple[FactNote, ...]

    @property
    def because(self) -> tuple[str, ...]:
        """The sentences of the explanation alone."""
        return tuple(link.text for link in self.chain)


def explain(asked: ExplainQuestion, name_of: NameOf | None = None) -> Explanation:
    """Decide a question by the rules and explain it: reason, choice, the terms otherwise.

    It says why, what the member had chosen, and what the terms would have said otherwise.

    The decision is that of `decide`. Costs a few decisions more, so it is for people, not for rows.
    Raises nothing.
    """
    words = Phrasing(name_of, asked.row)
    own = asked.member_state()
    decision = asked.decide_state(own, asked.row, asked.controls)
    notes = _notes(asked, own, words)
    chain = tuple(_Chain(asked, own, decision, notes, words).links())
    return Explanation(asked=asked, decision=decision, chain=chain, facts=notes)


def sentences(decision: Decision, name_of: NameOf | None = None) -> tuple[str, ...]:
    """One sentence per ground of a decision, the deciding one first.

    `explain` says more, but needs the question.
    """
    words = Phrasing(name_of)
    return tuple(words.sentence(ground) for ground in decision.because)


def _notes(asked: ExplainQuestion, own: MemberState, words: Phrasing) -> tuple[FactNote, ...]:
    """Every fact of the record, in log order, with what keeps it from counting.

    Source: rules 1 to 3 and 7.
    """
    notes: list[FactNote] = []
    stands: dict[str, int] = {}
    choice: Fact | None = None
    quarantine: Fact | None = None
    for place, fact in enumerate(asked.record.facts if asked.record else ()):
        why_not = _why_not(asked, own, fact)
        if not why_not and fact.kind in CHOICE_FACTS:
            before, choice = choice, next_choice(choice, fact)
            if before is not None and choice is before:
                why_not = _kept_out(fact, before)
        if not why_not and fact.kind in QUARANTINE_FACTS:
            before, quarantine = quarantine, next_quarantine(quarantine, fact)
            if before is not None and quarantine is before:
                why_not = _left_quarantined(fact, before)
        if not why_not:
            slot = _slot(fact)
            if slot in stands:
                replaced = stands.pop(slot)
                notes[replaced] = notes[replaced]._replace(replaced_by=fact.version)
            if fact.kind not in (FactKind.RELEASED, FactKind.CHOICE_UNKNOWN):
                stands[slot] = place
            if fact is own.choice and fact.kind is FactKind.OPTED_IN:
                why_not = _voided(asked, own, fact, words)
        notes.append(FactNote(fact, words.fact(fact), why_not))
    return tuple(notes)


def _slot(fact: Fact) -> str:
    """Facts of one slot take each other's place; of choices only those for the purpose asked about
    come here.
    """
    if fact.kind in RELOCATION_FACTS:
        return "relocation"
    if fact.kind in CHOICE_FACTS:
        return "choice"
    if fact.kind is FactKind.ERASED:
        return "erasure"
    return "quarantine"


def _why_not(asked: ExplainQuestion, own: MemberState, fact: Fact) -> str:
    """Return why a fact does not count, before it is held against others; '' if it does."""
    if own.is_folded:
        return "the record no longer answers for that time"
    is_late = fact.recorded_at > asked.known_at
    if fact.effective_at > asked.at:
        reason = "takes effect later"
        if is_late:
            reason = "recorded later, and takes effect later"
        return reason
    if is_late:
        return "recorded later"
    if own.erasure is not None and fact.version > own.erasure.version:
        return "it followed the erasure"
    if fact.kind in CHOICE_FACTS and fact.name != asked.purpose:
        return "it is about another purpose"
    return ""


def _kept_out(fact: Fact, opt_out: Fact) -> str:
    """Return the reason why a choice left the opt-out as it was."""
    if fact.kind is not FactKind.OPTED_IN:
        return f"it is not understood, and leaves the opt-out of fact {opt_out.version}"
    if fact.observed_version is None:
        return "it did not cancel the opt-out, as nothing shows that the person had seen it"
    return (
        "it did not cancel the opt-out, as the person had not seen it (they had seen version "
        f"{fact.observed_version})"
    )


def _left_quarantined(release: Fact, quarantine: Fact) -> str:
    """Return the reason why a release left the quarantine as it was."""
    return (
        f"it did not end the quarantine of fact {quarantine.version}, as the operator had not "
        f"looked at it (they had looked at version {release.observed_version})"
    )


def _voided(asked: ExplainQuestion, own: MemberState, choice: Fact, words: Phrasing) -> str:
    """Return the lift, and where, that voids the opt-in that stands; '' where none does."""
    found: list[str] = []
    places = [place for place in asked.places(own) if asked.controls.jurisdictions.is_code(place)]
    for place in places:
        lift = asked.controls.last_voiding_lift(
            place, asked.purpose, at=asked.at, known_at=asked.known_at
        )
        if lift is not None and choice.recorded_at <= lift.recorded_at:
            where = ""
            if len(places) > 1:
                where = f" in {words.place(place)}"
            recorded = date_text(lift.recorded_at)
            found.append(f"the lift of {lift.pause}, recorded {recorded}, made it void{where}")
    return "; ".join(found)


class _Chain:
    """Makes the sentences of one explanation."""

    def __init__(
        self,
        asked: ExplainQuestion,
        own: MemberState,
        decision: Decision,
        notes: tuple[FactNote, ...],
        words: Phrasing,
    ) -> None:
        self._asked = asked
        self._own = own
        self._decision = decision
        self._notes = notes
        self._words = words

    def links(self) -> Iterator[Link]:
        """The chain, the deciding sentence first."""
        deciding, *beside = self._decision.because
        yield Link(SentenceRole.DECIDES, deciding, self._deciding_text(deciding))
        place = deciding.jurisdiction
        if place is None:
            return
        pauses: tuple[PauseImposed, ...] = ()
        if deciding.reason is Reason.PAUSED:
            pauses = self._pauses(place, self._asked.known_at)
        for pause in pauses:
            if pause is not deciding.fact:
                ground = Ground(Reason.PAUSED, pause, place)
                yield Link(SentenceRole.BESIDE, ground, f"also, {self._words.sentence(ground)}")
        for ground in beside:
            yield Link(SentenceRole.BESIDE, ground, self._words.sentence(ground))
        yield from self._choices(deciding)
        yield from self._elsewhere(place)
        yield from self._otherwise(place, pauses)
        yield from self._not_counted(place)

    def _deciding_text(self, ground: Ground) -> str:
        record, row = self._asked.record, self._asked.row
        if ground.reason is Reason.HISTORY_FOLDED and record is not None:
            return (
                "the record's oldest facts were folded together: it answers for uses from "
                f"{date_text(_next_second(record.folded_effective_at))} on, by what was known from "
                f"{date_text(_next_second(record.folded_recorded_at))} on"
            )
        if ground.reason is not Reason.JURISDICTION_UNKNOWN:
            return self._words.sentence(ground)
        if ground.jurisdiction is None:
            about_member = "the member has no known residence"
            if record is None:
                about_member = "nothing was ever recorded of the member"
            about_row = "the row names no jurisdiction"
            if row is None:
                about_row = "no row was asked about"
            return f"{about_member}, and {about_row}"
        whose = "the member's record"
        if row is not None and row.jurisdiction == ground.jurisdiction:
            whose = "the row"
        return f"{whose} names a jurisdiction that is not known: {ground.fact}"

    def _choices(self, deciding: Ground) -> Iterator[Link]:
        """That the member had not chosen, or what did not cancel their opt-out."""
        choice = self._own.choice
        purpose = self._asked.purpose
        place = deciding.jurisdiction
        if choice is None:
            text = f"the member had not chosen for {purpose}"
            for note in self._notes:
                if note.counts and note.fact.kind is FactKind.CHOICE_UNKNOWN:
                    text = (
                        f"no choice of the member for {purpose} stands: the last one "
                        "is not understood"
                    )
            yield Link(SentenceRole.BESIDE, Ground(deciding.reason, text, place), text)
        elif choice.kind is FactKind.OPTED_OUT:
            for note in self._notes:
                fact = note.fact
                is_later = fact.version > choice.version and fact.name == purpose
                if is_later and fact.kind is FactKind.OPTED_IN:
                    opted_in = date_text(fact.effective_at)
                    text = f"an opt-in on {opted_in} is not counted: {note.why_not}"
                    ground = Ground(Reason.OPTED_OUT, fact, place)
                    yield Link(SentenceRole.NOT_COUNTED, ground, text)

    def _elsewhere(self, decided: str) -> Iterator[Link]:
        """Yield the other jurisdiction's answer, where member and row name two. Source: rule 4."""
        places = self._asked.places(self._own)
        for place in places:
            if place != decided:
                alone = self._alone(place, self._own, self._asked.controls)
                answers = {place: alone.allowed, decided: self._decision.allowed}
                home, origin = places
                home_text = self._with_answer(home, answers[home])
                origin_text = self._with_answer(origin, answers[origin])
                text = f"the member lives in {home_text}; the row comes from {origin_text}"
                ground = alone.because[0]
                sentence = self._words.sentence(ground)
                yield Link(SentenceRole.BESIDE, ground, f"{text}; {sentence}")

    def _with_answer(self, place: str, allowed: bool) -> str:
        """Return a jurisdiction in words, with the answer that it gives."""
        if allowed:
            return f"{self._words.place(place)}, which allows"
        return f"{self._words.place(place)}, which refuses"

    def _alone(self, place: str, own: MemberState, controls: Controls) -> Decision:
        """The answer that one jurisdiction gives by itself."""
        row = self._asked.row
        if own.relocation is None:
            row_there = replace(row or Row(), jurisdiction=place)
            return self._asked.decide_state(own, row_there, controls)
        if row is not None:
            row = replace(row, jurisdiction=None)
        relocation = own.relocation._replace(name=place)
        return self._asked.decide_state(own._replace(relocation=relocation), row, controls)

    def _otherwise(self, place: str, pauses: tuple[PauseImposed, ...]) -> Iterator[Link]:
        """Yield the answer that the other rules give, without the pauses and the opt-out."""
        if self._decision.reason not in (Reason.PAUSED, Reason.OPTED_OUT):
            return
        own = self._own
        controls = self._asked.controls
        aside: list[str] = []
        if len(pauses) == 1:
            aside.append("the pause")
        elif pauses:
            aside.append("the pauses")
        if pauses:
            controls = _without(controls, pauses)
        if own.choice is not None and own.choice.kind is FactKind.OPTED_OUT:
            aside.append("the opt-out")
            own = own._replace(choice=None)
        alone = self._alone(place, own, controls)
        answer = self._words.sentence(alone.because[0], would=True)
        text = f"without {' and '.join(aside)}, {answer}"
        for other in self._asked.places(self._own):
            if alone.allowed and other != place and not self._alone(other, own, controls).allowed:
                text += f", yet {self._words.place(other)} would still have refused"
        yield Link(SentenceRole.OTHERWISE, alone.because[0], text)

    def _not_counted(self, place: str) -> Iterator[Link]:
        """Pauses that were in effect already while nobody could know yet."""
        if self._decision.reason is Reason.PAUSED:
            return
        for pause in self._pauses(place, _FOREVER):
            if pause.recorded_at > self._asked.known_at:
                ground = Ground(Reason.PAUSED, pause, place)
                yield Link(
                    SentenceRole.NOT_COUNTED,
                    ground,
                    f"not yet known then: {self._words.sentence(ground)}",
                )

    def _pauses(self, place: str, known_at: Micros) -> tuple[PauseImposed, ...]:
        """Every pause in force on the use in a jurisdiction, in log order;

        `decide` needs only the first.
        """
        asked, controls = self._asked, self._asked.controls
        holders = controls.jurisdictions.holders(place, at=asked.at)
        category = None
        if asked.row is not None:
            category = asked.row.category
        said: dict[tuple[str, int], PauseImposed] = {}
        for control in controls.log:
            if isinstance(control, PauseImposed) and counts(control, asked.at, known_at):
                said.setdefault((control.pause, control.version), control)
        in_force: list[PauseImposed] = []
        for pause in said.values():
            is_here = not holders.isdisjoint(pause.scope.jurisdictions)
            if not is_here or not pause.scope.covers_use(asked.purpose, category):
                continue
            if not controls.is_lifted(pause, at=asked.at, known_at=known_at):
                in_force.append(pause)
        return tuple(in_force)


def _without(controls: Controls, pauses: tuple[PauseImposed, ...]) -> Controls:
    """The controls as if these pauses had never been imposed."""
    gone = {(pause.pause, pause.version) for pause in pauses}
    others: list[Control] = []
    for control in controls.log:
        if isinstance(control, PauseImposed) and (control.pause, control.version) in gone:
            continue
        others.append(control)
    return Controls(controls.jurisdictions).after(*others)


def as_data(explanation: Explanation) -> dict[str, Any]:
    """An explained decision as plain values for JSON; times in ISO 8601, UTC.

    `because` and `grounds` go in step.
    """
    asked = explanation.asked
    version = None
    if asked.record is not None:
        version = asked.record.version
    return {
        "purpose": asked.purpose,
        "row": _row_data(asked.row),
        "at": _iso(asked.at),
        "known_at": _iso(asked.known_at),
        "allowed": explanation.decision.allowed,
        "reason": explanation.decision.reason.value,
        "because": list(explanation.because),
        "grounds": [_ground_data(link) for link in explanation.chain],
        "version": version,
        "facts": [_fact_data(note) for note in explanation.facts],
    }


def _row_data(row: Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    collected_at = None
    if row.collected is not None:
        collected_at = _iso(row.collected)
    return {
        "jurisdiction": row.jurisdiction,
        "category": row.category,
        "collected_at": collected_at,
    }


def _ground_data(link: Link) -> dict[str, Any]:
    ground, fact = link.ground, link.ground.fact
    found: dict[str, Any] = {
        "role": link.role.value,
        "reason": ground.reason.value,
        "kind": "note",
        "jurisdiction": ground.jurisdiction,
    }
    if isinstance(fact, str):
        return found
    if isinstance(fact, Fact):
        found |= {
            "kind": "fact",
            "fact": fact.kind.name,
            "version": fact.version,
            "name": fact.name,
        }
    elif isinstance(fact, PolicyPublished):
        found |= {
            "kind": "policy",
            "version": fact.version,
            "event_id": str(uuid.UUID(bytes=fact.event_id)),
            "regime": None,
            "limit": None,
        }
        if ground.terms is not None:
            found["regime"] = ground.terms.regime.value
        if ground.limit is not None:
            found["limit"] = ground.limit.value
    else:
        kind = "lift"
        if isinstance(fact, PauseImposed):
            kind = "pause"
        found |= {"kind": kind, "pause": fact.pause, "version": fact.version}
        found["event_id"] = str(uuid.UUID(bytes=fact.event_id))
    return found | {"effective_at": _iso(fact.effective_at), "recorded_at": _iso(fact.recorded_at)}


def _fact_data(note: FactNote) -> dict[str, Any]:
    fact = note.fact
    return {
        "version": fact.version,
        "kind": fact.kind.name,
        "name": fact.name,
        "effective_at": _iso(fact.effective_at),
        "recorded_at": _iso(fact.recorded_at),
        "observed_version": fact.observed_version,
        "counts": note.counts,
        "why_not": note.why_not or None,
        "replaced_by": note.replaced_by,
    }


def _next_second(instant: Micros) -> Micros:
    """The first full second that is not before the instant, so that a bound is told right without
    its fraction.
    """
    return Micros(-(-instant // 1_000_000) * 1_000_000)


def _iso(instant: Micros) -> str:
    return moment_of(instant).isoformat()
