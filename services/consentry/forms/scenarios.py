"""Scenario files that people write: YAML 1.2 as docs/scenarios.md describes it.

Each part is declared as a model.

Errors name the line and the field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field

from consentry.domain.controls import PauseImposed, PauseLifted
from consentry.domain.decisions import Row
from consentry.domain.events import (
    ConsentChanged,
    EventUnreadable,
    MemberErased,
    MemberReleased,
    MemberRelocated,
)
from consentry.domain.orders import PurgeReason
from consentry.domain.scenarios import Expectation, ExpectedOrder, Scenario, TimelineEntry
from consentry.domain.values import AgeBand, Choice, Micros, Reason
from consentry.forms.controls import LiftDocument, PauseDocument, PolicyDocument, WrittenDocument
from consentry.forms.document import InvalidDocument, ListOf, refuse
from consentry.forms.fields import (
    Category,
    Instant,
    InstantOfAnyTime,
    Jurisdiction,
    Member,
    PauseName,
    Purpose,
    ScopeEntries,
    Text,
    Version,
    one_of,
)
from consentry.forms.json_schema import editor_schema
from consentry.forms.yaml import read_form

SOURCE: Final = "scenario"
"""The source that a scenario's events and controls name."""

_EFFECTIVE: Final = "When it begins to hold. Left out: when it was recorded."
_END: Final = "Left out: the end of the timeline."
_ALLOWING: Final = [reason.value for reason in Reason if reason.allows]


# ---- the documents


class ChoiceDocument(WrittenDocument):
    """A member chooses for one purpose, as people write it in a scenario file."""

    member: Member = Field(description="The member who chooses.")
    purpose: Purpose = Field(
        description="The purpose of the choice; it says nothing of other purposes."
    )
    choice: Annotated[Choice, one_of(*Choice)] = Field(
        description="UNKNOWN takes an opt-in back and leaves an opt-out."
    )
    observed: Version | None = Field(
        None,
        description="The number of the timeline entry, from 1, whose state the person had seen. An "
        "opt-in cancels an opt-out only if it had been seen. null: not stated.",
    )
    effective: Instant | None = Field(None, description=_EFFECTIVE)


class RelocationDocument(WrittenDocument):
    """A member is known to live somewhere, or their age became known, in a scenario file.

    The last one counts.
    """

    member: Member = Field(description="The member who lives there.")
    jurisdiction: Jurisdiction = Field(
        description="Where they live: an ISO 3166 country (NO is Norway) or subdivision."
    )
    age_band: Annotated[AgeBand, one_of(*AgeBand)] = Field(
        AgeBand.UNKNOWN,
        description="Whether they are of age there. The last relocation's age band counts.",
    )
    effective: Instant | None = Field(None, description=_EFFECTIVE)


class ErasureDocument(WrittenDocument):
    """A member is erased, in a scenario file.

    From its effective time on nothing about them changes.
    """

    member: Member = Field(description="The member who is erased.")
    effective: Instant | None = Field(None, description=_EFFECTIVE)


class UnreadableDocument(WrittenDocument):
    """A member's event that could not be read, in a scenario file: they are quarantined."""

    member: Member = Field(description="The member who is quarantined.")


class ReleaseDocument(WrittenDocument):
    """An operator ends the quarantine of a member, as people write it in a scenario file."""

    member: Member = Field(description="The member who is released.")
    observed: Version | None = Field(
        None,
        description="The number of the timeline entry, from 1, whose state the operator had looked "
        "at: a quarantine that came after it stays. null: every quarantine before this entry ends.",
    )
    effective: Instant | None = Field(None, description=_EFFECTIVE)


_KINDS: Final = (
    *("policy_published", "member_relocated", "consent_changed", "pause_imposed"),
    *("pause_lifted", "member_erased", "unreadable", "released"),
)


class EntryDocument(WrittenDocument):
    """One thing that was recorded, as people write it in a scenario file.

    A time, and exactly one kind.
    """

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [kind]} for kind in _KINDS]}
    )

    recorded: Instant = Field(
        description="When it was written down, never earlier than that of the entry before it."
    )
    policy_published: PolicyDocument | None = Field(
        None, description="A policy: from its effective time on its terms bind."
    )
    member_relocated: RelocationDocument | None = Field(
        None, description="A member is known to live somewhere, or their age became known."
    )
    consent_changed: ChoiceDocument | None = Field(
        None, description="A member chooses for one purpose."
    )
    pause_imposed: PauseDocument | None = Field(
        None, description="An authority, or the platform itself, stops a use for a scope."
    )
    pause_lifted: LiftDocument | None = Field(
        None, description="The end of a pause that this timeline imposes, earlier or later."
    )
    member_erased: ErasureDocument | None = Field(None, description="A member is erased.")
    unreadable: UnreadableDocument | None = Field(
        None, description="An event of this member that could not be read."
    )
    released: ReleaseDocument | None = Field(
        None, description="An operator ends the quarantine of a member."
    )

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> None:
        """Refuse a written entry of a scenario without a kind, or with more than one."""
        kinds = [kind for kind in _KINDS if kind in fields]
        if len(kinds) == 1:
            return
        problem = "it has no kind of entry"
        if kinds:
            problem = f"it has the kinds {' and '.join(kinds)}"
        raise InvalidDocument("", problem, f"give exactly one of {', '.join(_KINDS)}")


class RowDocument(WrittenDocument):
    """One row of training data, as people write it in a scenario file."""

    jurisdiction: Jurisdiction | None = Field(
        None,
        description="Where the row comes from. If it differs from where the member lives, both "
        "must allow.",
    )
    category: Category | None = Field(None, description="The kind of data. Left out: not known.")
    collected: InstantOfAnyTime | None = Field(
        None, description="When it was collected. Left out: not known."
    )


class ExpectationDocument(WrittenDocument):
    """A question and its right answer, as people write them in a scenario file."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"allowed": {"const": True}}},
            "then": {"properties": {"reason": {"enum": [*_ALLOWING]}}},
            "else": {"properties": {"reason": {"not": {"enum": [*_ALLOWING]}}}},
        }
    )

    member: Member = Field(
        description="The member it is about; one of whom nothing is recorded may be asked about."
    )
    purpose: Purpose = Field(description="The purpose that the data would be used for.")
    at: Instant | None = Field(None, description=f"When it would be used. {_END}")
    known_at: Instant | None = Field(
        None, description=f"Only what was recorded by then is known. {_END}"
    )
    row: RowDocument | None = Field(
        None, description="The row that would be used. Left out: the member's data at large."
    )
    allowed: bool = Field(description="Whether the use is allowed.")
    reason: Annotated[Reason, one_of(*Reason)] = Field(
        description="The reason: of those that apply, the first in this order. "
        f"{' and '.join(_ALLOWING)} allow, the others do not.",
        # Freshness is no part of a story: no scenario is answered with STALE.
        json_schema_extra={
            "enum": [reason.value for reason in Reason if reason is not Reason.STALE]
        },
    )


class OrderDocument(WrittenDocument):
    """A purge order that is open, in a scenario file: for one member, or a pause's scope."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"because": {"const": "PAUSE"}}},
            "then": {"required": ["pause"], "not": {"required": ["member"]}},
            "else": {
                "required": ["member"],
                "not": {"anyOf": [{"required": ["pause"]}, {"required": ["jurisdictions"]}]},
            },
        }
    )

    because: Annotated[PurgeReason, one_of(*PurgeReason)] = Field(
        description="The reason that obliges to delete."
    )
    member: Member | None = Field(None, description="The member whose data must go; not for PAUSE.")
    pause: PauseName | None = Field(
        None, description="The pause whose data must go; only for PAUSE."
    )
    jurisdictions: ScopeEntries | None = Field(
        None,
        description="The jurisdictions of that pause, in any order; only for PAUSE. Left out: not "
        "looked at.",
    )
    due: Instant | None = Field(
        None,
        description="By when: recorded, plus the shortest time that terms in force allow, 30 days "
        "where there are none. Left out: not looked at.",
    )


class ScenarioDocument(WrittenDocument):
    """A story in a scenario file: its timeline in order, and the answers it must then get.

    See docs/scenarios.md. Optional fields may be null, which means the same as leaving them out.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {
                    "required": ["expect"],
                    "properties": {"expect": {"type": "array", "minItems": 1}},
                },
                {"required": ["expect_orders"], "properties": {"expect_orders": {"type": "array"}}},
            ],
            # A timeline without entries has no end that a question could be asked at.
            "if": {"properties": {"timeline": {"maxItems": 0}}},
            "then": {"properties": {"expect": {"items": {"required": ["at", "known_at"]}}}},
        }
    )

    name: Text = Field(
        description="The name of the story: the file's name without .yaml.",
        json_schema_extra={"minLength": 1},
    )
    timeline: ListOf[EntryDocument] = Field(
        description="Everything that was recorded. The order of the list is the order of the log."
    )
    expect: ListOf[ExpectationDocument] = Field(
        (), description="Questions, each with its right answer."
    )
    expect_orders: ListOf[OrderDocument] | None = Field(
        None,
        description="The purge orders open after the whole timeline, in any order. []: none. Left "
        "out: not looked at.",
    )


def schema_text() -> str:
    """Return the JSON Schema of scenario files that people write.

    It is the same text for the same models.
    """
    schema = editor_schema(ScenarioDocument, "Consentry scenario")
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


# ---- as the rules read them


def read_scenario(text: str, *, file: str = "the scenario") -> Scenario:
    """Return a scenario from the YAML 1.2 text that people write.

    Raises InvalidInput naming file, line and field.
    """
    return read_form(text, parse_scenario, source=file)


def parse_scenario(data: object) -> Scenario:
    """Return a scenario from the plain values of a written file. Raises InvalidDocument.

    They are as a YAML loader gives them.
    """
    document = ScenarioDocument.read(data, name="the scenario")
    timeline = []
    for index, entry in enumerate(document.timeline):
        event_id = hashlib.blake2b(f"{document.name}:{index}".encode(), digest_size=16).digest()
        timeline.append(_timeline_entry(entry, f"timeline[{index}]", event_id))
    _check_order(timeline)
    _check_lifts(timeline)
    if not document.expect and document.expect_orders is None:
        fix = "say what must be answered, or expect_orders"
        refuse("the scenario", "expect", "is missing", fix)
    end = None
    if timeline:
        end = timeline[-1].what.recorded_at
    expect = [
        _expectation(expected, f"expect[{index}]", end)
        for index, expected in enumerate(document.expect)
    ]
    orders = None
    if document.expect_orders is not None:
        orders = tuple(
            _expected_order(expected, f"expect_orders[{index}]")
            for index, expected in enumerate(document.expect_orders)
        )
    return Scenario(
        name=document.name,
        timeline=tuple(timeline),
        expect=tuple(expect),
        expect_orders=orders,
    )


def _timeline_entry(entry: EntryDocument, path: str, event_id: bytes) -> TimelineEntry:
    """Return the event or control of an entry, which has exactly one kind."""
    recorded_at = entry.recorded
    control: dict[str, Any] = {
        "event_id": event_id,
        "recorded_at": recorded_at,
        "source": SOURCE,
    }
    if entry.policy_published is not None:
        policy = entry.policy_published.control(path=f"{path}.policy_published", **control)
        return TimelineEntry(policy)
    if entry.pause_imposed is not None:
        return TimelineEntry(entry.pause_imposed.control(**control))
    if entry.pause_lifted is not None:
        return TimelineEntry(entry.pause_lifted.control(**control))
    if entry.unreadable is not None:
        member = entry.unreadable.member
        return TimelineEntry(
            EventUnreadable(event_id=event_id, member=member, recorded_at=recorded_at)
        )
    return _member_event(entry, control)


def _member_event(entry: EntryDocument, common: Mapping[str, Any]) -> TimelineEntry:
    """Return the event that a producer or operator sent."""
    document = (
        entry.consent_changed or entry.member_relocated or entry.member_erased or entry.released
    )
    assert document is not None, "check_fields lets no entry without a kind pass"
    effective_at = document.effective
    if effective_at is None:
        effective_at = entry.recorded
    event = {**common, "member": document.member, "effective_at": effective_at}
    if isinstance(document, ChoiceDocument):
        choice = ConsentChanged(purpose=document.purpose, choice=document.choice, **event)
        return TimelineEntry(choice, document.observed)
    if isinstance(document, RelocationDocument):
        relocation = MemberRelocated(
            jurisdiction=document.jurisdiction, age_band=document.age_band, **event
        )
        return TimelineEntry(relocation)
    if isinstance(document, ErasureDocument):
        return TimelineEntry(MemberErased(**event))
    return TimelineEntry(MemberReleased(**event), document.observed)


def _check_order(timeline: Sequence[TimelineEntry]) -> None:
    """Refuse entries out of order: the list is the log, where each is recorded after the last."""
    for index, (before, entry) in enumerate(pairwise(timeline), start=1):
        if entry.what.recorded_at < before.what.recorded_at:
            raise InvalidDocument(
                f"timeline[{index}].recorded",
                "it is earlier than that of the entry before it, but the list is the log's order",
                "put the entries in the order in which they were recorded; `effective` may be any "
                "time",
            )


def _check_lifts(timeline: Sequence[TimelineEntry]) -> None:
    """Refuse a lift of a pause that the timeline imposes nowhere."""
    imposed = {entry.what.pause for entry in timeline if isinstance(entry.what, PauseImposed)}
    fix = "impose it before or after"
    if imposed:
        fix = f"name one of {', '.join(sorted(imposed))}"
    for index, entry in enumerate(timeline):
        if isinstance(entry.what, PauseLifted) and entry.what.pause not in imposed:
            refuse(
                f"timeline[{index}].pause_lifted.pause",
                entry.what.pause,
                "is not a pause that this timeline imposes",
                fix,
            )


def _expectation(document: ExpectationDocument, path: str, end: Micros | None) -> Expectation:
    """Return a question, asked at the timeline's end unless it says when."""
    return Expectation(
        member=document.member,
        purpose=document.purpose,
        at=_instant_or_end(document.at, "at", path, end),
        known_at=_instant_or_end(document.known_at, "known_at", path, end),
        row=_row(document.row),
        allowed=document.allowed,
        reason=document.reason,
    )


def _instant_or_end(instant: Micros | None, field: str, path: str, end: Micros | None) -> Micros:
    if instant is not None:
        return instant
    if end is None:
        refuse(path, field, "is missing", f"add {field}")
    return end


def _row(document: RowDocument | None) -> Row | None:
    if document is None:
        return None
    return Row(
        jurisdiction=document.jurisdiction,
        category=document.category,
        collected=document.collected,
    )


def _expected_order(document: OrderDocument, path: str) -> ExpectedOrder:
    """Return a purge order that must be open: a pause's, or a member's."""
    if document.because is PurgeReason.PAUSE:
        subject = "pause"
        wrong_subject: str | None = document.member
    else:
        subject = "member"
        wrong_subject = document.pause
    if wrong_subject is not None:
        fix = "PAUSE names a pause, the others a member"
        refuse(path, document.because, "names the wrong subject", fix)
    if getattr(document, subject) is None:
        refuse(path, subject, "is missing", f"add {subject}")
    return ExpectedOrder(
        because=document.because,
        member=document.member,
        pause=document.pause,
        jurisdictions=frozenset(document.jurisdictions or ()),
        due_at=document.due,
    )
