"""The schema lint: rules that readability checks of a registry cannot know. One rule, one code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, Final, NamedTuple

from consentry.wire.schemas import MEMBER_EVENTS, topics

PII_CLASSES: Final = frozenset({"none", "pseudonym", "location", "reference"})
PERMISSIVE_SYMBOLS: Final = frozenset({"OPT_IN", "OPTED_IN", "DEFAULT_ON", "ALLOW", "KEEP", "ADULT", "RELEASED"})
_VARIABLE: Final = frozenset({"string", "bytes", "array", "map", "union"})


class Finding(NamedTuple):
    """A rule that a schema breaks, and where."""

    code: str
    place: str
    detail: str

    def __str__(self) -> str:
        return f"{self.code}  {self.place}: {self.detail}"


def lint_package() -> list[Finding]:
    """Lint every schema of the data package, and that each is listed for exactly one topic."""
    findings: list[Finding] = []
    listed = [name for topic in topics().values() for name in topic.records]
    names = []
    for entry in sorted((files("consentry_schemas") / "avro").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".avsc"):
            text = json.loads(entry.read_text())
            names.append(text["name"])
            findings += lint_schema(text, is_member_event=text["name"] in topics()[MEMBER_EVENTS].records)
    findings += [
        Finding("L01", name, "is listed for no topic, or for several") for name in names if listed.count(name) != 1
    ]
    findings += [
        Finding("L02", name, "is listed for a topic but does not exist") for name in listed if name not in names
    ]
    return findings


def lint_schema(text: Mapping[str, Any], *, is_member_event: bool) -> list[Finding]:
    """Lint one record schema, given as parsed JSON."""
    findings = list(_lint_record(text, text["name"], (text["name"],), is_member_event))
    if is_member_event:
        findings += _lint_order(text)
    return findings


def _lint_record(
    record: Mapping[str, Any], place: str, inside: tuple[str, ...], is_member_event: bool
) -> Iterator[Finding]:
    if not record.get("doc"):
        yield Finding("L03", place, "has no doc")
    if not record["fields"]:
        yield Finding("L04", place, "has no fields: an array of it would have items of no size")
    for field in record["fields"]:
        where = f"{place}.{field['name']}"
        if not field.get("doc"):
            yield Finding("L03", where, "has no doc")
        if field.get("pii") not in PII_CLASSES:
            yield Finding("L05", where, f"has no pii annotation of {', '.join(sorted(PII_CLASSES))}")
        if "default" not in field:
            yield Finding("L06", where, "has no default")
        yield from _lint_default(field, where)
        yield from _lint_type(field["type"], where, inside, is_member_event)


def _lint_default(field: Mapping[str, Any], where: str) -> Iterator[Finding]:
    default = field.get("default")
    if isinstance(default, str) and default in PERMISSIVE_SYMBOLS:
        yield Finding("L07", where, f"defaults to {default}, which allows")
    if field["type"] == "boolean" and default is True and not field["name"].startswith(("purge", "tainted", "exclude")):
        yield Finding("L07", where, "is a flag that defaults to true")


def _lint_type(types: Any, where: str, inside: tuple[str, ...], is_member_event: bool) -> Iterator[Finding]:
    for kind in types if isinstance(types, list) else [types]:
        yield from _lint_plain(kind, where, inside)
        if isinstance(kind, Mapping):
            yield from _lint_complex(kind, where, inside, is_member_event)


def _lint_plain(kind: Any, where: str, inside: tuple[str, ...]) -> Iterator[Finding]:
    name = kind["type"] if isinstance(kind, Mapping) else kind
    if name in ("float", "double"):
        yield Finding("L08", where, "is a float: NaN compares with nothing")
    if isinstance(name, str) and name.rsplit(".", 1)[-1] in inside:  # also by its full name
        yield Finding("L09", where, f"contains {name} again: a deep value would end the process")
    if isinstance(kind, Mapping) and kind.get("logicalType", "").startswith("timestamp"):
        yield Finding("L10", where, "is a logical timestamp; instants are plain longs of microseconds")


def _lint_complex(
    kind: Mapping[str, Any], where: str, inside: tuple[str, ...], is_member_event: bool
) -> Iterator[Finding]:
    name = kind["type"]
    if name in ("array", "map"):
        if is_member_event:
            yield Finding("L11", where, f"is {name} in a member event: six bytes could claim millions of items")
        items = kind.get("items", kind.get("values"))
        if items == "null":
            yield Finding("L04", where, "has items of no size")
        yield from _lint_type(items, where, inside, is_member_event)
    elif name == "record":
        if kind["name"] in inside:
            yield Finding("L09", where, f"contains {kind['name']} again: a deep value would end the process")
        else:
            yield from _lint_record(kind, where, (*inside, kind["name"]), is_member_event)
    elif name == "enum":
        yield from _lint_enum(kind, where)


def _lint_enum(kind: Mapping[str, Any], where: str) -> Iterator[Finding]:
    symbols = kind["symbols"]
    if not kind.get("doc"):
        yield Finding("L03", where, "is an enum without doc")
    if symbols[0] in PERMISSIVE_SYMBOLS:
        yield Finding("L12", where, f"has {symbols[0]} first; the protective symbol comes first")
    if symbols[-1] != "UNKNOWN":
        yield Finding("L13", where, "does not end in UNKNOWN")
    if kind.get("default") != symbols[0]:
        yield Finding("L14", where, "has no enum default equal to its first symbol, the protective one")


def _lint_order(record: Mapping[str, Any]) -> Iterator[Finding]:
    """Fixed-width fields first, member_id last: so that a batch can be read column by column."""
    fields = record["fields"]
    if fields[-1]["name"] != "member_id":
        yield Finding("L15", record["name"], "does not end in member_id")
    seen_variable = False
    for field in fields:
        kind = field["type"]
        name = "union" if isinstance(kind, list) else kind["type"] if isinstance(kind, Mapping) else kind
        if name in _VARIABLE:
            seen_variable = True
        elif seen_variable:
            yield Finding(
                "L16", f"{record['name']}.{field['name']}", "is of fixed width but comes after a variable field"
            )
