"""Controls as people write them: instants, durations, scopes and policy files, checked with a named error."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from consentry.domain.controls import PURGE_WITHIN_DEFAULT, Minors, PolicyPublished, Regime, Scope, Terms
from consentry.domain.errors import InvalidInput
from consentry.domain.values import Micros, parse_name
from consentry.wire.events import INSTANT_MAX, INSTANT_MIN
from consentry.wire.jurisdictions import iso_jurisdictions

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DURATION: Final = re.compile(
    r"P(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?)?"
)
_POLICY_FIELDS: Final = frozenset({"version", "effective", "terms"})
_TERMS_FIELDS: Final = frozenset(
    {
        "jurisdictions",
        "purpose",
        "regime",
        "basis",
        "notice_until",
        "categories",
        "collected_from",
        "minors",
        "purge",
    }
)
_BASES: Final = ("CONSENT", "LEGITIMATE_INTEREST", "OTHER")


def micros(moment: datetime) -> Micros:
    """An aware datetime in microseconds since 1970-01-01 UTC, exactly."""
    return Micros((moment - _EPOCH) // timedelta(microseconds=1))


def moment(instant: Micros) -> datetime:
    """The aware UTC datetime of an instant."""
    return _EPOCH + timedelta(microseconds=instant)


def parse_instant(value: object, *, what: str) -> Micros:
    """An ISO 8601 date or date and time as microseconds; without a zone it is UTC. Raises InvalidInput."""
    try:
        if isinstance(value, datetime):
            found = value
        elif isinstance(value, date):
            found = datetime(value.year, value.month, value.day, tzinfo=UTC)
        else:
            found = datetime.fromisoformat(str(value))
    except ValueError:
        _refuse(what, value, "is not an ISO 8601 date or time", "write 2024-10-11 or 2024-10-11T09:00:00Z")
    instant = micros(found if found.tzinfo else found.replace(tzinfo=UTC))
    if not INSTANT_MIN <= instant < INSTANT_MAX:
        _refuse(what, value, "lies outside the years 1979 to 3111", "write the date that is meant")
    return instant


def parse_duration(value: object, *, what: str) -> Micros:
    """An ISO 8601 duration of weeks, days, hours and minutes in microseconds. Raises InvalidInput."""
    found = _DURATION.fullmatch(str(value))
    parts = {name: int(number) for name, number in (found.groupdict() if found else {}).items() if number}
    try:
        length = timedelta(**parts)
    except OverflowError:
        parts = {}
    if not parts:
        _refuse(what, value, "is not a duration", "write P30D, P2W or PT12H")
    return Micros(length // timedelta(microseconds=1))


def parse_scope(
    jurisdictions: Sequence[str],
    purposes: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    *,
    what: str = "jurisdictions",
) -> Scope:
    """A scope whose every entry is known. Raises InvalidInput for an empty one or an unknown code."""
    if not jurisdictions:
        _refuse(what, [], "is empty", "name ISO 3166 codes, a group such as EEA, or '*' for everywhere")
    unknown = iso_jurisdictions().unknown([str(entry) for entry in jurisdictions])
    if unknown:
        _refuse(what, unknown[0], "is not an ISO 3166 code, a known group or '*'", "write HK, US-CA, EEA or '*'")
    return Scope(
        jurisdictions=tuple(map(str, jurisdictions)),
        purposes=None if purposes is None else tuple(parse_name(one, what="purpose") for one in purposes),
        categories=None if categories is None else tuple(parse_name(one, what="category") for one in categories),
    )


def parse_policy_file(text: str, *, event_id: bytes, recorded_at: Micros, source: str) -> PolicyPublished:
    """A policy from YAML 1.2 text (so NO is Norway). Raises InvalidInput naming line or field."""
    try:
        data = YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        _refuse("the file", f"line {line}", f"is not YAML: {error.problem}", "correct the line")
    except (YAMLError, ValueError, OverflowError) as error:
        # A date that no calendar has, or a character that no text has.
        _refuse("the file", text.strip()[:40], f"is not YAML: {error}", "correct it; dates are YYYY-MM-DD")
    return parse_policy(data, event_id=event_id, recorded_at=recorded_at, source=source)


def parse_policy(data: object, *, event_id: bytes, recorded_at: Micros, source: str) -> PolicyPublished:
    """A policy from plain values: version, effective (default: recorded) and terms. Raises InvalidInput."""
    fields = _fields(data, _POLICY_FIELDS, "the policy")
    version = str(_needed(fields, "version", "the policy"))
    entries = _needed(fields, "terms", "the policy")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        _refuse("terms", entries, "is not a list with at least one entry", "give one entry per group of jurisdictions")
    effective = fields.get("effective")
    effective_at = recorded_at if effective is None else parse_instant(effective, what="effective")
    terms = tuple(_parse_terms(entry, f"terms[{place}]") for place, entry in enumerate(entries))
    for place, entry in enumerate(terms):
        if entry.notice_until is not None and entry.notice_until < effective_at:
            given = entries[place].get("notice_until")
            _refuse(f"terms[{place}].notice_until", given, "is before the policy takes effect", "give a later date")
    return PolicyPublished(
        event_id=event_id,
        version=version,
        terms=terms,
        effective_at=effective_at,
        recorded_at=recorded_at,
        source=source,
    )


def _parse_terms(data: object, where: str) -> Terms:
    fields = _fields(data, _TERMS_FIELDS, where)
    places = _needed(fields, "jurisdictions", where)
    scope = parse_scope(_listed(places, f"{where}.jurisdictions"), what=f"{where}.jurisdictions")
    notice, since = fields.get("notice_until"), fields.get("collected_from")
    categories = fields.get("categories")
    purge = _fields(fields.get("purge") or {}, frozenset({"on_opt_out", "within"}), f"{where}.purge")
    within = purge.get("within")
    return Terms(
        jurisdictions=scope.jurisdictions,
        purpose=parse_name(str(_needed(fields, "purpose", where)), what="purpose"),
        regime=Regime(
            _one_of(_needed(fields, "regime", where), ("NOT_OFFERED", "OPT_IN", "DEFAULT_ON"), f"{where}.regime")
        ),
        basis=_one_of(_given(fields, "basis", "OTHER"), _BASES, f"{where}.basis"),
        notice_until=None if notice is None else parse_instant(notice, what=f"{where}.notice_until"),
        categories=None if categories is None else _categories(categories, f"{where}.categories"),
        collected_from=None if since is None else parse_instant(since, what=f"{where}.collected_from"),
        minors=Minors(
            _one_of(_given(fields, "minors", "ALLOW"), ("EXCLUDE_UNLESS_ADULT", "EXCLUDE", "ALLOW"), f"{where}.minors")
        ),
        purge_on_opt_out=bool(purge.get("on_opt_out", False)),
        purge_within=PURGE_WITHIN_DEFAULT if within is None else parse_duration(within, what=f"{where}.purge.within"),
    )


def _fields(data: object, known: frozenset[str], where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        _refuse(where, data, "is not a mapping of fields", f"write fields such as {', '.join(sorted(known)[:3])}")
    unknown = sorted(set(map(str, data)) - known)
    if unknown:
        _refuse(where, unknown[0], "is not a field of it", f"use {', '.join(sorted(known))}")
    return data


def _listed(value: object, what: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        _refuse(what, value, "is not a list", f"write [{value}]")
    return value


def _categories(value: object, what: str) -> tuple[str, ...]:
    return tuple(parse_name(str(one), what="category") for one in _listed(value, what))


def _given(fields: Mapping[str, Any], name: str, default: str) -> Any:
    """A field's value, or the default where it is left out or null; `false` is a value, and refused."""
    value = fields.get(name)
    return default if value is None else value


def _needed(fields: Mapping[str, Any], name: str, where: str) -> Any:
    if fields.get(name) is None:
        _refuse(where, name, "is missing", f"add {name}")
    return fields[name]


def _one_of(value: object, choices: Sequence[str], what: str) -> str:
    if value not in choices:
        _refuse(what, value, "is not one of the known words", f"use {', '.join(choices)}")
    return str(value)


def _refuse(what: str, value: object, why: str, fix: str) -> NoReturn:
    raise InvalidInput(f"In {what}: {str(value)[:80]!r} {why}.", code="input.form", fix=fix)
