"""Controls as people write them: instants, scopes, pauses, lifts and policies, checked with a named
error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from consentry.domain.controls import (
    PURGE_WITHIN_DEFAULT,
    Minors,
    OptIns,
    PauseBasis,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
    Reach,
    Regime,
    Scope,
    Terms,
)
from consentry.domain.errors import InvalidInput
from consentry.domain.values import DAY_MICROS, POLICY_VERSION_PATTERN, Micros, parse_name
from consentry.forms.document import InvalidDocument, refuse, shown
from consentry.forms.yaml import read_form
from consentry.wire.events import INSTANT_MAX, INSTANT_MIN
from consentry.wire.jurisdictions import iso_jurisdictions

VERSION_MAX: Final = (1 << 31) - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER_MAX: Final = 10**40
_DURATION: Final = re.compile(
    r"P(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?)?"
)
POLICY_FIELDS: Final = ("version", "effective", "terms")
PAUSE_FIELDS: Final = (
    *("pause", "version", "jurisdictions", "purposes", "categories"),
    *("effective", "authority", "basis", "reach"),
)
LIFT_FIELDS: Final = ("pause", "version", "effective", "opt_ins")
_TERMS_FIELDS: Final = (
    *("jurisdictions", "purpose", "regime", "basis", "notice_until"),
    *("categories", "collected_from", "minors", "purge"),
)
WITHIN_MAX: Final = Micros(100 * 365 * DAY_MICROS)
_BASES: Final = ("CONSENT", "LEGITIMATE_INTEREST", "OTHER")


def micros(moment: datetime) -> Micros:
    """An aware datetime in microseconds since 1970-01-01 UTC, exactly."""
    since = moment - _EPOCH
    return Micros((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def parse_instant(value: object, *, what: str, at_any_time: bool = False) -> Micros:
    """An ISO 8601 date or date and time as microseconds; without a zone it is UTC.

    Raises InvalidDocument.

    What is recorded lies in the years 1979 to 3111; data may have been collected `at_any_time`.
    """
    try:
        if isinstance(value, datetime):
            found = value
        elif isinstance(value, date):
            found = datetime(value.year, value.month, value.day, tzinfo=UTC)
        else:
            found = datetime.fromisoformat(shown(value))
    except ValueError:
        refuse(
            what,
            value,
            "is not an ISO 8601 date or time",
            "write 2024-10-11 or 2024-10-11T09:00:00Z",
        )
    instant = micros(found if found.tzinfo else found.replace(tzinfo=UTC))
    if not at_any_time and not INSTANT_MIN <= instant < INSTANT_MAX:
        refuse(what, value, "lies outside the years 1979 to 3111", "write the date that is meant")
    return instant


def parse_duration(value: object, *, what: str) -> Micros:
    """An ISO 8601 duration of weeks, days, hours and minutes in microseconds.

    Raises InvalidDocument.
    """
    found = _DURATION.fullmatch(shown(value))
    parts = {
        name: int(number) for name, number in (found.groupdict() if found else {}).items() if number
    }
    try:
        length = timedelta(**parts)
    except OverflowError:
        parts, length = {}, timedelta()
    if not parts or length // timedelta(microseconds=1) > WITHIN_MAX:
        refuse(
            what, value, "is not a duration of at most a hundred years", "write P30D, P2W or PT12H"
        )
    return Micros(length // timedelta(microseconds=1))


def parse_scope(
    jurisdictions: Sequence[str],
    purposes: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    *,
    what: str = "jurisdictions",
) -> Scope:
    """A scope whose every entry is known.

    Raises InvalidDocument for an empty one or an unknown code.
    """
    if not jurisdictions:
        refuse(
            what, [], "is empty", "name ISO 3166 codes, a group such as EEA, or '*' for everywhere"
        )
    unknown = iso_jurisdictions().unknown([str(entry) for entry in jurisdictions])
    if unknown:
        refuse(
            what,
            unknown[0],
            "is not an ISO 3166 code, a known group or '*'",
            "write HK, US-CA, EEA or '*'",
        )
    return Scope(
        jurisdictions=tuple(map(str, jurisdictions)),
        purposes=None
        if purposes is None
        else tuple(parse_name(one, what="purpose") for one in purposes),
        categories=None
        if categories is None
        else tuple(parse_name(one, what="category") for one in categories),
    )


class FieldReader:
    """A mapping of fields that stands at a path of a document; every reading of it checks.

    Raises InvalidDocument.
    """

    def __init__(
        self, data: object, known: Collection[str], where: str, *, top: bool = False
    ) -> None:
        self.where = where
        self._prefix = "" if top else f"{where}."
        if not isinstance(data, Mapping):
            refuse(
                where,
                data,
                "is not a mapping of fields",
                f"write fields such as {', '.join([*known][:3])}",
            )
        self._data: Mapping[Any, Any] = data
        for field in data:
            if field not in known:
                refuse(
                    self.path(shown(field)),
                    field,
                    f"is not a field of {where}",
                    f"use {', '.join(known)}",
                )

    def path(self, field: str) -> str:
        """Where a field of this form stands in the document."""
        return f"{self._prefix}{field}"

    def get(self, field: str) -> Any:
        """The value; None where it is left out or null."""
        return self._data.get(field)

    def needed(self, field: str) -> Any:
        """The value of a field that must be there."""
        value = self._data.get(field)
        if value is None:
            refuse(self.where, field, "is missing", f"add {field}")
        return value

    def instant(self, field: str, *, at_any_time: bool = False) -> Micros | None:
        """An ISO 8601 instant in microseconds."""
        value = self._data.get(field)
        return (
            None
            if value is None
            else parse_instant(value, what=self.path(field), at_any_time=at_any_time)
        )

    def name(self, field: str, what: str) -> str:
        """The needed name of a purpose, category or pause."""
        return self._name(self.needed(field), what, self.path(field))

    def names(self, field: str, what: str) -> tuple[str, ...] | None:
        """A list of such names; None means all, and an empty one would mean none."""
        values = self.listed(field)
        if values is None:
            return None
        if not values:
            refuse(
                self.path(field), [], "is empty", f"leave {field} out for all of them, or name some"
            )
        return tuple(
            self._name(value, what, f"{self.path(field)}[{n}]") for n, value in enumerate(values)
        )

    def listed(self, field: str) -> Sequence[Any] | None:
        """A list."""
        value = self._data.get(field)
        if value is not None and (not isinstance(value, Sequence) or isinstance(value, str)):
            refuse(self.path(field), value, "is not a list", f"write [{value}]")
        return value

    def word(self, field: str, words: Sequence[str], default: str | None = None) -> str:
        """One of a closed list; without a default it is needed. `false` is a value, and refused."""
        value = self.needed(field) if default is None else self._data.get(field)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or value not in words:
            refuse(
                self.path(field), value, "is not one of the known words", f"use {', '.join(words)}"
            )
        return str(value)

    def number(self, field: str, *, least: int = 1, most: int = VERSION_MAX) -> int | None:
        """A whole number."""
        value = self._data.get(field)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            refuse(
                self.path(field),
                value,
                f"is not a whole number from {least} to {most}",
                "write such as 1",
            )
        return value

    def truth(self, field: str) -> bool | None:
        """A yes or no."""
        value = self._data.get(field)
        if value is not None and not isinstance(value, bool):
            refuse(self.path(field), value, "is neither true nor false", "write true or false")
        return value

    def text(self, field: str, default: str = "") -> str:
        """Printable text."""
        value = self._data.get(field)
        found = default if value is None else self._scalar(value, self.path(field))
        if not found.isprintable() or len(found) > 200:
            refuse(
                self.path(field),
                value,
                "has unprintable or more than 200 characters",
                "shorten it to one line",
            )
        return found

    def version(self, field: str) -> str:
        """The needed version of a policy."""
        found = self.scalar(field)
        if POLICY_VERSION_PATTERN.fullmatch(found) is None:
            refuse(
                self.path(field),
                found,
                "is not 1 to 64 letters, digits, '_', '.' or '-', a letter or digit first",
                "write such as 2025-11-03 or v2",
            )
        return found

    def scope(self, field: str) -> tuple[str, ...]:
        """The needed list of jurisdictions, each known."""
        self.needed(field)
        values = self.listed(field) or ()
        codes = [
            self._scalar(value, f"{self.path(field)}[{place}]")
            for place, value in enumerate(values)
        ]
        return parse_scope(codes, what=self.path(field)).jurisdictions

    def scalar(self, field: str) -> str:
        """The needed single value of a field as text."""
        return self._scalar(self.needed(field), self.path(field))

    def _name(self, value: object, what: str, path: str) -> str:
        try:
            return parse_name(self._scalar(value, path), what=what)
        except InvalidInput as error:
            if isinstance(error, InvalidDocument):
                raise
            raise InvalidDocument(path, error.message.removesuffix("."), error.fix) from error

    def _scalar(self, value: object, path: str) -> str:
        """A single value as text; a list, a mapping or a truth in its place is a slip."""
        if isinstance(value, bool) or not isinstance(value, str | int | float | date):
            refuse(path, value, "is not a text", "write it in quotes")
        if isinstance(value, int) and abs(value) >= _NUMBER_MAX:
            refuse(path, value, "is not a text", "write it in quotes")
        return str(value)


def parse_policy_file(
    text: str, *, event_id: bytes, recorded_at: Micros, source: str, file: str = "the policy"
) -> PolicyPublished:
    """A policy from YAML 1.2 text. Raises InvalidInput naming the file, the line and the field."""

    def parse(data: object) -> PolicyPublished:
        return parse_policy(data, event_id=event_id, recorded_at=recorded_at, source=source)

    return read_form(text, parse, source=file)


def parse_policy(
    data: object, *, event_id: bytes, recorded_at: Micros, source: str, where: str = ""
) -> PolicyPublished:
    """A policy from plain values: version, effective (default: recorded) and terms.

    Raises InvalidDocument.
    """
    form = FieldReader(data, POLICY_FIELDS, where or "the policy", top=not where)
    form.needed("version")
    form.needed("terms")
    entries = form.listed("terms") or ()
    if not entries:
        refuse(form.path("terms"), [], "is empty", "give one entry per group of jurisdictions")
    effective_at = _or(form.instant("effective"), recorded_at)
    terms = tuple(
        _parse_terms(entry, form.path(f"terms[{place}]")) for place, entry in enumerate(entries)
    )
    for place, entry in enumerate(terms):
        if entry.notice_until is not None and entry.notice_until < effective_at:
            given = entries[place].get("notice_until")
            refuse(
                form.path(f"terms[{place}].notice_until"),
                given,
                "is before the policy takes effect",
                "give a date after `effective`, or leave it out",
            )
    return PolicyPublished(
        event_id=event_id,
        version=form.version("version"),
        terms=terms,
        effective_at=effective_at,
        recorded_at=recorded_at,
        source=source,
    )


def _parse_terms(data: object, where: str) -> Terms:
    form = FieldReader(data, _TERMS_FIELDS, where)
    purge = FieldReader(form.get("purge") or {}, ("on_opt_out", "within"), form.path("purge"))
    within = purge.get("within")
    return Terms(
        jurisdictions=form.scope("jurisdictions"),
        purpose=form.name("purpose", "purpose"),
        regime=Regime(form.word("regime", ("NOT_OFFERED", "OPT_IN", "DEFAULT_ON"))),
        basis=form.word("basis", _BASES, "OTHER"),
        notice_until=form.instant("notice_until"),
        categories=form.names("categories", "category"),
        collected_from=form.instant("collected_from"),
        minors=Minors(form.word("minors", ("EXCLUDE", "EXCLUDE_UNLESS_ADULT", "ALLOW"), "ALLOW")),
        purge_on_opt_out=purge.truth("on_opt_out") or False,
        purge_within=PURGE_WITHIN_DEFAULT
        if within is None
        else parse_duration(within, what=purge.path("within")),
    )


def parse_pause(
    data: object, *, event_id: bytes, recorded_at: Micros, source: str, where: str = ""
) -> PauseImposed:
    """A pause from plain values; jurisdictions are needed, purposes and categories mean all.

    Raises InvalidDocument.
    """
    form = FieldReader(data, PAUSE_FIELDS, where or "the pause", top=not where)
    return PauseImposed(
        event_id=event_id,
        pause=form.name("pause", "pause"),
        version=_or(form.number("version"), 1),
        scope=Scope(
            jurisdictions=form.scope("jurisdictions"),
            purposes=form.names("purposes", "purpose"),
            categories=form.names("categories", "category"),
        ),
        effective_at=_or(form.instant("effective"), recorded_at),
        recorded_at=recorded_at,
        authority=form.text("authority"),
        basis=PauseBasis(form.word("basis", ("ORDER", "UNDERTAKING"), "UNDERTAKING")),
        reach=Reach(form.word("reach", ("GOING_FORWARD", "PRIOR_AND_FUTURE"), "GOING_FORWARD")),
        source=source,
    )


def parse_lift(
    data: object, *, event_id: bytes, recorded_at: Micros, source: str, where: str = ""
) -> PauseLifted:
    """A lift from plain values; earlier opt-ins become void unless it says KEEP.

    Raises InvalidDocument.
    """
    form = FieldReader(data, LIFT_FIELDS, where or "the lift", top=not where)
    return PauseLifted(
        event_id=event_id,
        pause=form.name("pause", "pause"),
        version=_or(form.number("version"), 1),
        effective_at=_or(form.instant("effective"), recorded_at),
        recorded_at=recorded_at,
        opt_ins=OptIns(form.word("opt_ins", ("VOID", "KEEP"), "VOID")),
        source=source,
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
