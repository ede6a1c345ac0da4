"""Types of fields in documents that people write: how each is read, refused, described.

A type's description is its JSON Schema, which editors show; the reading is at least as strict.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final

from pydantic_core import CoreSchema, core_schema

from consentry.domain.controls import Scope
from consentry.domain.errors import InvalidInput
from consentry.domain.values import (
    DAY_MICROS,
    MEMBER_ID_PATTERN,
    NAME_PATTERN,
    POLICY_VERSION_PATTERN,
    MemberId,
    Micros,
    micros,
    parse_member_id,
    parse_name,
)
from consentry.forms.document import InvalidDocument, as_validator, refuse, shown
from consentry.wire.events import INSTANT_MAX, INSTANT_MIN
from consentry.wire.jurisdictions import iso_jurisdictions

VERSION_MAX: Final = (1 << 31) - 1
TEXT_CHARACTERS_MAX: Final = 200
PURGE_WITHIN_MAX: Final = Micros(100 * 365 * DAY_MICROS)
_NUMBER_MAX: Final = 10**40
"""A whole number of more digits is no text that anybody meant."""
_DURATION: Final = re.compile(
    r"P(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?)?"
)


def parse_instant(value: object, *, what: str, at_any_time: bool = False) -> Micros:
    """Return a date, or date and time, that people write as ISO 8601, in microseconds.

    Without a zone it is UTC.

    `what` is the field's path in error sentences. What is recorded lies in the years 1979 to 3111;
    data may have been collected `at_any_time`. Raises InvalidDocument.
    """
    try:
        if isinstance(value, datetime):
            moment = value
        elif isinstance(value, date):
            moment = datetime(value.year, value.month, value.day, tzinfo=UTC)
        else:
            moment = datetime.fromisoformat(shown(value))
    except ValueError:
        fix = "write 2024-10-11 or 2024-10-11T09:00:00Z"
        refuse(what, value, "is not an ISO 8601 date or time", fix)
    if not moment.tzinfo:
        moment = moment.replace(tzinfo=UTC)
    instant = micros(moment)
    if not at_any_time and not INSTANT_MIN <= instant < INSTANT_MAX:
        refuse(what, value, "lies outside the years 1979 to 3111", "write the date that is meant")
    return instant


def parse_duration(value: object, *, what: str) -> Micros:
    """Return an ISO 8601 duration that people write, in microseconds.

    It has weeks, days, hours and minutes.

    `what` is the field's path in error sentences. Raises InvalidDocument.
    """
    parts: dict[str, int] = {}
    match = _DURATION.fullmatch(shown(value))
    if match is not None:
        parts = {unit: int(number) for unit, number in match.groupdict().items() if number}
    try:
        length = timedelta(**parts)
    except OverflowError:
        parts = {}
        length = timedelta()
    duration = Micros(length // timedelta(microseconds=1))
    if not parts or duration > PURGE_WITHIN_MAX:
        problem = "is not a duration of at most a hundred years"
        refuse(what, value, problem, "write P30D, P2W or PT12H")
    return duration


def parse_scope(
    jurisdictions: Sequence[str],
    purposes: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    *,
    what: str = "jurisdictions",
) -> Scope:
    """Return the scope in a document that people write; its every entry is known.

    `what` is the path of the jurisdictions in error sentences. Raises InvalidDocument for an empty
    scope or an unknown code, InvalidInput for what is no name of a purpose or category.
    """
    if not jurisdictions:
        fix = "name ISO 3166 codes, a group such as EEA, or '*' for everywhere"
        refuse(what, [], "is empty", fix)
    codes = tuple(map(str, jurisdictions))
    unknown = iso_jurisdictions().unknown(codes)
    if unknown:
        problem = "is not an ISO 3166 code, a known group or '*'"
        refuse(what, unknown[0], problem, "write HK, US-CA, EEA or '*'")
    return Scope(
        jurisdictions=codes,
        purposes=_parsed_names(purposes, "purpose"),
        categories=_parsed_names(categories, "category"),
    )


def _parsed_names(names: Sequence[str] | None, what: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    return tuple(parse_name(name, what=what) for name in names)


def _scalar(value: object, path: str = "") -> str:
    """Return a single value as text; a list, a mapping or a truth in its place is a slip."""
    is_scalar = isinstance(value, str | int | float | date) and not isinstance(value, bool)
    if not is_scalar or (isinstance(value, int) and abs(value) >= _NUMBER_MAX):
        refuse(path, value, "is not a text", "write it in quotes")
    return str(value)


def _listed(value: object) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        refuse("", value, "is not a list", f"write [{shown(value)}]")
    return value


def _parse_text(value: object) -> str:
    text = _scalar(value)
    if not text.isprintable() or len(text) > TEXT_CHARACTERS_MAX:
        problem = f"has unprintable or more than {TEXT_CHARACTERS_MAX} characters"
        refuse("", value, problem, "shorten it to one line")
    return text


def _parse_version(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= VERSION_MAX:
        refuse("", value, f"is not a whole number from 1 to {VERSION_MAX}", "write such as 1")
    return value


def _parse_policy_version(value: object) -> str:
    text = _scalar(value)
    if POLICY_VERSION_PATTERN.fullmatch(text) is None:
        problem = "is not 1 to 64 letters, digits, '_', '.' or '-', a letter or digit first"
        refuse("", text, problem, "write such as 2025-11-03 or v2")
    return text


def _parse_jurisdiction(value: object) -> str:
    code = _scalar(value)
    if not iso_jurisdictions().is_code(code):
        refuse("", code, "is not an ISO 3166 code", "write such as HK or US-CA")
    return code


def _parse_scope_entries(value: object) -> tuple[str, ...]:
    entries = [_scalar(entry, f"[{index}]") for index, entry in enumerate(_listed(value))]
    return parse_scope(entries, what="").jurisdictions


def _parse_names(value: object, what: str, field: str) -> tuple[str, ...]:
    """Return the names in a list. An empty list is refused: it reads as all, and covers none."""
    values = _listed(value)
    if not values:
        refuse("", [], "is empty", f"leave {field} out for all of them, or name some")
    return tuple(_parse_name(entry, what, f"[{index}]") for index, entry in enumerate(values))


def _parse_name(value: object, what: str, path: str = "") -> str:
    text = _scalar(value, path)
    try:
        return parse_name(text, what=what)
    except InvalidInput as error:
        raise InvalidDocument(path, error.message.removesuffix("."), error.fix) from error


def _parse_word(value: object, words: Mapping[str, enum.StrEnum]) -> enum.StrEnum:
    """Return the word that a text names. `false` is a value, and none of them."""
    if not isinstance(value, str) or value not in words:
        refuse("", value, "is not one of the known words", f"use {', '.join(words)}")
    return words[value]


# ---- the types


class FieldType:
    """A type of field in written documents: the reader of its values, and their JSON Schema.

    `parse` returns the value or raises InvalidInput.
    """

    def __init__(self, parse: Callable[[Any], Any], **schema: Any) -> None:
        self._parse = parse
        self._schema = schema

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(as_validator(self._parse))

    def __get_pydantic_json_schema__(self, _core: CoreSchema, _handler: Any) -> dict[str, Any]:
        return dict(self._schema)


def one_of(*words: enum.StrEnum) -> FieldType:
    """Return the type of a field in written documents that takes one of these words only."""
    by_text = {word.value: word for word in words}
    return FieldType(lambda value: _parse_word(value, by_text), enum=list(by_text))


def _name_schema(example: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{NAME_PATTERN.pattern}$", "examples": [example]}


_INSTANT_SCHEMA: Final = {
    "type": "string",
    "pattern": "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    "([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,6})?)?"
    "(Z|[+-][0-9]{2}:[0-9]{2})?)?$",
    "examples": ["2024-10-11", "2024-10-14T09:00:00Z"],
}
_PURPOSE_SCHEMA: Final = _name_schema("genai_training")
_CATEGORY_SCHEMA: Final = _name_schema("posts")

Instant = Annotated[
    Micros, FieldType(lambda value: parse_instant(value, what=""), **_INSTANT_SCHEMA)
]
"""A moment: an ISO 8601 date, which means its first instant, or date and time; UTC without zone."""

InstantOfAnyTime = Annotated[
    Micros,
    FieldType(lambda value: parse_instant(value, what="", at_any_time=True), **_INSTANT_SCHEMA),
]
"""A moment that may lie long before anything was recorded."""

Duration = Annotated[
    Micros,
    FieldType(
        lambda value: parse_duration(value, what=""),
        type="string",
        pattern="^P(?=[0-9]|T[0-9])([0-9]+W)?([0-9]+D)?(T(?=[0-9])([0-9]+H)?([0-9]+M)?)?$",
        examples=["P30D", "P2W", "PT12H"],
    ),
]
"""A length of time in weeks, days, hours and minutes. Months and years have no fixed length."""

Jurisdiction = Annotated[
    str,
    FieldType(
        _parse_jurisdiction,
        type="string",
        pattern="^[A-Z]{2}(-[A-Z0-9]{1,3})?$",
        examples=["HK", "US-CA"],
    ),
]
"""An ISO 3166 country (NO is Norway) or subdivision."""

ScopeEntries = Annotated[
    tuple[str, ...],
    FieldType(
        _parse_scope_entries,
        type="array",
        minItems=1,
        items={
            "type": "string",
            "pattern": "^([*]|EEA|[A-Z]{2}(-[A-Z0-9]{1,3})?)$",
            "examples": ["HK", "US-CA", "EEA", "*"],
        },
    ),
]
"""At least one ISO 3166 country or subdivision, the group EEA, or "*" for everywhere."""

Member = Annotated[
    MemberId,
    FieldType(
        lambda value: parse_member_id(_scalar(value)),
        type="string",
        pattern=f"^{MEMBER_ID_PATTERN.pattern}$",
        examples=["m1", "m:4711"],
    ),
]
"""The pseudonym of a member. It is quoted if it is a number."""

Purpose = Annotated[str, FieldType(lambda value: _parse_name(value, "purpose"), **_PURPOSE_SCHEMA)]
Category = Annotated[
    str, FieldType(lambda value: _parse_name(value, "category"), **_CATEGORY_SCHEMA)
]
PauseName = Annotated[
    str, FieldType(lambda value: _parse_name(value, "pause"), **_name_schema("hk-2024"))
]
Purposes = Annotated[
    tuple[str, ...],
    FieldType(
        lambda value: _parse_names(value, "purpose", "purposes"),
        type="array",
        minItems=1,
        items=_PURPOSE_SCHEMA,
    ),
]
Categories = Annotated[
    tuple[str, ...],
    FieldType(
        lambda value: _parse_names(value, "category", "categories"),
        type="array",
        minItems=1,
        items=_CATEGORY_SCHEMA,
    ),
]

Version = Annotated[int, FieldType(_parse_version, type="integer", minimum=1, maximum=VERSION_MAX)]
"""The version of a pause, or the number of a timeline's entry."""

PolicyVersion = Annotated[
    str,
    FieldType(
        _parse_policy_version,
        type="string",
        pattern=f"^{POLICY_VERSION_PATTERN.pattern}$",
        examples=["2025-11-03"],
    ),
]

Text = Annotated[str, FieldType(_parse_text, type="string", maxLength=TEXT_CHARACTERS_MAX)]
"""One line of printable text."""
