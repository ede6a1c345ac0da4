"""Scenario files:

YAML 1.2 as docs/scenarios.md describes it, checked with an error that names line and field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

from consentry.domain.controls import PauseImposed, PauseLifted
from consentry.domain.decisions import Row
from consentry.domain.errors import InvalidInput
from consentry.domain.events import (
    ConsentChanged,
    EventUnreadable,
    MemberErased,
    MemberReleased,
    MemberRelocated,
)
from consentry.domain.orders import PurgeReason
from consentry.domain.scenarios import Expectation, ExpectedOrder, Scenario, TimelineEntry
from consentry.domain.values import AgeBand, Choice, MemberId, Micros, Reason, parse_member_id
from consentry.forms.controls import (
    FieldReader,
    parse_instant,
    parse_lift,
    parse_pause,
    parse_policy,
)
from consentry.forms.document import InvalidDocument, refuse
from consentry.forms.yaml import read_form
from consentry.wire.jurisdictions import iso_jurisdictions

_FIELDS: Final = ("name", "timeline", "expect", "expect_orders")
_EXPECTATION_FIELDS: Final = ("member", "purpose", "at", "known_at", "row", "allowed", "reason")
_ROW_FIELDS: Final = ("jurisdiction", "category", "collected")
_ORDER_FIELDS: Final = ("because", "member", "pause", "jurisdictions", "due")
SOURCE: Final = "scenario"


def read_scenario(text: str, *, file: str = "the scenario") -> Scenario:
    """A scenario from YAML 1.2 text. Raises InvalidInput naming the file, the line and the
    field.
    """
    return read_form(text, parse_scenario, source=file)


def parse_scenario(document: object) -> Scenario:
    """A scenario from plain values, as a YAML loader gives them.

    Raises InvalidDocument naming the field.
    """
    form = FieldReader(document, _FIELDS, "the scenario", top=True)
    form.needed("name")
    name = form.text("name")
    form.needed("timeline")
    timeline = tuple(
        _parse_entry(entry, place, name)
        for place, entry in enumerate(form.listed("timeline") or ())
    )
    _check_order(timeline)
    _check_lifts(timeline)
    orders = form.listed("expect_orders")
    expect = form.listed("expect") or ()
    if not expect and orders is None:
        refuse(
            "the scenario", "expect", "is missing", "say what must be answered, or expect_orders"
        )
    end = timeline[-1].what.recorded_at if timeline else None
    return Scenario(
        name=name,
        timeline=timeline,
        expect=tuple(
            _parse_expectation(one, f"expect[{place}]", end) for place, one in enumerate(expect)
        ),
        expect_orders=None
        if orders is None
        else tuple(
            _parse_order(one, f"expect_orders[{place}]") for place, one in enumerate(orders)
        ),
    )


def _parse_entry(data: object, place: int, scenario: str) -> TimelineEntry:
    where = f"timeline[{place}]"
    form = FieldReader(data, ("recorded", *_KINDS), where)
    given = [kind for kind in _KINDS if form.get(kind) is not None]
    if len(given) != 1:
        problem = f"it has the kinds {' and '.join(given)}" if given else "it has no kind of entry"
        raise InvalidDocument(where, problem, f"give exactly one of {', '.join(_KINDS)}")
    recorded_at = parse_instant(form.needed("recorded"), what=form.path("recorded"))
    event_id = hashlib.blake2b(f"{scenario}:{place}".encode(), digest_size=16).digest()
    return _KINDS[given[0]](form.get(given[0]), form.path(given[0]), event_id, recorded_at)


def _policy_published(
    data: object, where: str, event_id: bytes, recorded_at: Micros
) -> TimelineEntry:
    return TimelineEntry(
        parse_policy(data, event_id=event_id, recorded_at=recorded_at, source=SOURCE, where=where)
    )


def _pause_imposed(data: object, where: str, event_id: bytes, recorded_at: Micros) -> TimelineEntry:
    return TimelineEntry(
        parse_pause(data, event_id=event_id, recorded_at=recorded_at, source=SOURCE, where=where)
    )


def _pause_lifted(data: object, where: str, event_id: bytes, recorded_at: Micros) -> TimelineEntry:
    return TimelineEntry(
        parse_lift(data, event_id=event_id, recorded_at=recorded_at, source=SOURCE, where=where)
    )


def _consent_changed(
    data: object, where: str, event_id: bytes, recorded_at: Micros
) -> TimelineEntry:
    form = FieldReader(data, ("member", "purpose", "choice", "observed", "effective"), where)
    event = ConsentChanged(
        event_id=event_id,
        member=_member(form),
        purpose=form.name("purpose", "purpose"),
        choice=Choice(form.word("choice", tuple(Choice))),
        effective_at=_effective(form, recorded_at),
        recorded_at=recorded_at,
        source=SOURCE,
    )
    return TimelineEntry(event, form.number("observed"))


def _member_relocated(
    data: object, where: str, event_id: bytes, recorded_at: Micros
) -> TimelineEntry:
    form = FieldReader(data, ("member", "jurisdiction", "age_band", "effective"), where)
    form.needed("jurisdiction")
    return TimelineEntry(
        MemberRelocated(
            event_id=event_id,
            member=_member(form),
            jurisdiction=_jurisdiction(form) or "",
            age_band=AgeBand(form.word("age_band", tuple(AgeBand), AgeBand.UNKNOWN.value)),
            effective_at=_effective(form, recorded_at),
            recorded_at=recorded_at,
            source=SOURCE,
        )
    )


def _member_erased(data: object, where: str, event_id: bytes, recorded_at: Micros) -> TimelineEntry:
    form = FieldReader(data, ("member", "effective"), where)
    effective_at = _effective(form, recorded_at)
    return TimelineEntry(
        MemberErased(
            event_id=event_id,
            member=_member(form),
            effective_at=effective_at,
            recorded_at=recorded_at,
            source=SOURCE,
        )
    )


def _unreadable(data: object, where: str, event_id: bytes, recorded_at: Micros) -> TimelineEntry:
    form = FieldReader(data, ("member",), where)
    return TimelineEntry(
        EventUnreadable(event_id=event_id, member=_member(form), recorded_at=recorded_at)
    )


def _released(data: object, where: str, event_id: bytes, recorded_at: Micros) -> TimelineEntry:
    form = FieldReader(data, ("member", "observed", "effective"), where)
    effective_at = _effective(form, recorded_at)
    release = MemberReleased(
        event_id=event_id,
        member=_member(form),
        effective_at=effective_at,
        recorded_at=recorded_at,
        source=SOURCE,
    )
    return TimelineEntry(release, form.number("observed"))


_KINDS: Final[dict[str, Callable[[object, str, bytes, Micros], TimelineEntry]]] = {
    "policy_published": _policy_published,
    "member_relocated": _member_relocated,
    "consent_changed": _consent_changed,
    "pause_imposed": _pause_imposed,
    "pause_lifted": _pause_lifted,
    "member_erased": _member_erased,
    "unreadable": _unreadable,
    "released": _released,
}


def _member(form: FieldReader) -> MemberId:
    try:
        return parse_member_id(form.scalar("member"))
    except InvalidInput as error:
        if isinstance(error, InvalidDocument):
            raise
        raise InvalidDocument(
            form.path("member"), error.message.removesuffix("."), error.fix
        ) from error


def _jurisdiction(form: FieldReader) -> str | None:
    if form.get("jurisdiction") is None:
        return None
    value = form.scalar("jurisdiction")
    if not iso_jurisdictions().is_code(value):
        refuse(
            form.path("jurisdiction"), value, "is not an ISO 3166 code", "write such as HK or US-CA"
        )
    return value


def _effective(form: FieldReader, recorded_at: Micros) -> Micros:
    effective_at = form.instant("effective")
    return recorded_at if effective_at is None else effective_at


def _check_order(timeline: Sequence[TimelineEntry]) -> None:
    """The list is the log, and a log's entries are recorded one after the other."""
    for place, (before, entry) in enumerate(pairwise(timeline), start=1):
        if entry.what.recorded_at < before.what.recorded_at:
            raise InvalidDocument(
                f"timeline[{place}].recorded",
                "it is earlier than that of the entry before it, but the list is the log's order",
                "put the entries in the order in which they were recorded; `effective` may be any "
                "time",
            )


def _check_lifts(timeline: Sequence[TimelineEntry]) -> None:
    imposed = {entry.what.pause for entry in timeline if isinstance(entry.what, PauseImposed)}
    for place, entry in enumerate(timeline):
        if isinstance(entry.what, PauseLifted) and entry.what.pause not in imposed:
            refuse(
                f"timeline[{place}].pause_lifted.pause",
                entry.what.pause,
                "is not a pause that this timeline imposes",
                f"name one of {', '.join(sorted(imposed))}"
                if imposed
                else "impose it before or after",
            )


def _parse_expectation(data: object, where: str, end: Micros | None) -> Expectation:
    form = FieldReader(data, _EXPECTATION_FIELDS, where)
    if end is None:
        form.needed("at")
        form.needed("known_at")
    at, known_at = form.instant("at"), form.instant("known_at")
    form.needed("allowed")
    return Expectation(
        member=_member(form),
        purpose=form.name("purpose", "purpose"),
        at=at if at is not None else end or Micros(0),
        known_at=known_at if known_at is not None else end or Micros(0),
        row=None if form.get("row") is None else _parse_row(form.get("row"), form.path("row")),
        allowed=form.truth("allowed") or False,
        reason=Reason(form.word("reason", tuple(Reason))),
    )


def _parse_row(data: object, where: str) -> Row:
    form = FieldReader(data, _ROW_FIELDS, where)
    category = form.get("category")
    return Row(
        jurisdiction=_jurisdiction(form),
        category=None if category is None else form.name("category", "category"),
        collected=form.instant("collected", at_any_time=True),
    )


def _parse_order(data: object, where: str) -> ExpectedOrder:
    form = FieldReader(data, _ORDER_FIELDS, where)
    because = PurgeReason(form.word("because", tuple(PurgeReason)))
    is_pause = because is PurgeReason.PAUSE
    if form.get("member" if is_pause else "pause") is not None:
        refuse(
            where, because, "names the wrong subject", "PAUSE names a pause, the others a member"
        )
    places: Any = form.scope("jurisdictions") if form.get("jurisdictions") is not None else ()
    return ExpectedOrder(
        because=because,
        member=None if is_pause else _member(form),
        pause=form.name("pause", "pause") if is_pause else None,
        jurisdictions=frozenset(places),
        due_at=form.instant("due"),
    )
