"""The lint of our Avro schemas: rules beyond a registry's readability checks, a code for each.

How a schema may change from one version to the next is not asked here but in evolution.py.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from typing import Any, Final, NamedTuple

import fastavro

from consentry.schema_gate.published import package_root, read_schemas, read_topics
from consentry.wire.schemas import MEMBER_EVENTS, NAMESPACE

PII_CLASSES: Final = frozenset({"none", "pseudonym", "location", "reference"})
PROTECTIVE_SYMBOLS: Final = frozenset(
    {
        *(
            "OPT_OUT",
            "CONSENT",
            "MINOR",
            "ERASED",
            "VOID",
            "NOT_OFFERED",
            "EXCLUDE_UNLESS_ADULT",
            "ORDER",
        ),
        *("PRIOR_AND_FUTURE", "ERASURE", "OPEN", "FAILED"),
    }
)
"""What may stand first in an enum.

A closed list: whether a new word protects is decided here, by a person.
"""
PERMISSIVE_WORDS: Final = frozenset(
    {
        *(
            "OPT_IN",
            "OPTED_IN",
            "DEFAULT_ON",
            "ALLOW",
            "ALLOWED",
            "KEEP",
            "ADULT",
            "RELEASED",
            "LIFTED",
            "GRANTED",
        ),
        *("CONSENTED", "ACCEPTED", "YES", "TRUE", "ON", "*", "WORLD", "GLOBAL"),
    }
)
"""What no default says, in capitals or not."""
PROTECTIVE_FLAGS: Final = frozenset({"tainted", "purge_on_opt_out"})
"""The flags whose `true` excludes or deletes; no other flag defaults to true."""
KEY_NAMES: Final = frozenset(
    {
        *(
            "member_id",
            "order_id",
            "pause_id",
            "subscriber",
            "dataset",
            "purpose",
            "purposes",
            "categories",
        ),
        *("jurisdiction", "jurisdictions", "topic", "error_class", "generation", "version", "name"),
    }
)
"""Strings that become record keys, metric labels, log fields or file names: never free text."""
WINDOW: Final = "between 1979 and 3111"
"""How a member event's schema states the window outside of which its reader refuses an instant."""

_ONE_BYTE_SYMBOLS: Final = 64
_INSTANT_NAME: Final = re.compile(r"(?:.*_)?(?:at|until|from|since|before|after|time|timestamp)")
_INSTANT_UNIT: Final = re.compile(r"(?:micro|milli)seconds since 1970-01-01 UTC")
_CALENDAR: Final = ("timestamp", "local-timestamp", "date", "time-")


class Finding(NamedTuple):
    """A rule of the schema gate that an Avro schema breaks, and the place in the schema."""

    code: str
    place: str
    detail: str

    def __str__(self) -> str:
        return f"{self.code}  {self.place}: {self.detail}"


def lint_package(root: Traversable | None = None) -> list[Finding]:
    """Lint every Avro schema of a data package, and how schemas and topics fit together.

    By default the package is the installed one.
    """
    root = root or package_root()
    schemas, topics = read_schemas(root), read_topics(root)
    member_events = topics.get(MEMBER_EVENTS, ())
    findings: list[Finding] = []
    for name, text in schemas.items():
        findings += lint_schema(text, is_member_event=name in member_events)
    findings += _lint_topics(schemas, topics)
    findings += _lint_names(schemas)
    return findings


def _lint_topics(
    schemas: Mapping[str, Mapping[str, Any]], topics: Mapping[str, Sequence[str]]
) -> Iterator[Finding]:
    """Every schema is listed for one topic, and every name that is listed has a schema."""
    listed: Counter[str] = Counter()
    for records in topics.values():
        listed.update(records)
    for name in schemas:
        if listed[name] != 1:
            yield Finding("L01", name, "is listed for no topic, or for several")
    for name in listed:
        if name not in schemas:
            yield Finding("L02", name, "is listed for a topic but does not exist")


def lint_schema(text: Mapping[str, Any], *, is_member_event: bool) -> list[Finding]:
    """Lint one Avro record schema, given as parsed JSON."""
    place = str(text.get("name"))
    if text.get("type") != "record":
        return [Finding("L21", place, "is not a record")]
    try:
        fastavro.parse_schema(json.loads(json.dumps(text)))
    except Exception as error:  # noqa: BLE001 - fastavro has no one class for what is not a schema
        return [Finding("L21", place, f"is not an Avro schema ({type(error).__name__}: {error})")]
    types = named_types(text)
    findings = list(_lint_record(text, place, is_member_event, types))
    findings += _lint_recursion(text, place, (), types)
    if is_member_event:
        findings += _lint_order(text, types)
    return findings


def named_types(text: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every record, enum and fixed in an Avro schema that is linted, by its name.

    The name is the full one and, where that is not taken, also the short one.
    """
    definitions: dict[str, Mapping[str, Any]] = {}

    def visit(kind: Any, namespace: str) -> None:
        for branch in _branches(kind):
            if not isinstance(branch, Mapping):
                continue
            if "name" in branch and branch["type"] in ("record", "enum", "fixed"):
                name = _full_name(branch, namespace)
                namespace, _, short_name = name.rpartition(".")
                definitions[name] = branch
                definitions.setdefault(short_name, branch)
            for field in branch.get("fields", ()):
                visit(field["type"], namespace)
            visit(branch.get("items", branch.get("values")), namespace)
            if isinstance(branch["type"], Mapping | list):
                visit(branch["type"], namespace)

    visit(text, "")
    return definitions


def _full_name(definition: Mapping[str, Any], namespace: str) -> str:
    """The full name of a record, enum or fixed that stands in a namespace."""
    name: str = definition["name"]
    if "." in name:
        return name
    return f"{definition.get('namespace', namespace)}.{name}"


def _branches(kind: Any) -> list[Any]:
    """The types of a union; of any other type, the type alone."""
    if isinstance(kind, list):
        return kind
    return [kind]


Types = Mapping[str, Mapping[str, Any]]


def _resolved(kind: Any, types: Types) -> Any:
    """The definition behind a reference by name, however it is written; anything else as it is."""
    while isinstance(kind, Mapping) and isinstance(kind["type"], Mapping | list):
        kind = kind["type"]
    if isinstance(kind, Mapping) and kind["type"] in types:
        kind = kind["type"]
    if isinstance(kind, str):
        return types.get(kind, kind)
    return kind


def _word(kind: Any) -> str:
    """The Avro word for a type: union, string, record …"""
    if isinstance(kind, list):
        return "union"
    if isinstance(kind, Mapping):
        return str(kind["type"])
    return str(kind)


def _lint_names(schemas: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Full names decide what bytes mean: a record has one file, and a shared enum or fixed is
    everywhere the same.
    """
    first: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for file, text in schemas.items():
        if text.get("name") != file or text.get("namespace") != NAMESPACE:
            yield Finding("L20", file, f"does not hold the record {NAMESPACE}.{file}")
        for name, kind in named_types(text).items():
            if "." not in name:
                continue
            where, known = first.setdefault(name, (file, kind))
            if where != file and (kind["type"] == "record" or kind != known):
                yield Finding("L20", file, f"defines {name}, which {where} defines as well")


def _lint_record(
    record: Mapping[str, Any], place: str, is_member_event: bool, types: Types
) -> Iterator[Finding]:
    if not record.get("doc"):
        yield Finding("L03", place, "has no doc")
    if _has_no_size(record, types, ()):
        yield Finding(
            "L04",
            place,
            "takes no bytes: an array of it would cost nothing to send and all memory to read",
        )
    for field in record["fields"]:
        where = f"{place}.{field['name']}"
        if not field.get("doc"):
            yield Finding("L03", where, "has no doc")
        if field.get("pii") not in PII_CLASSES:
            yield Finding(
                "L05", where, f"has no pii annotation of {', '.join(sorted(PII_CLASSES))}"
            )
        if "default" not in field:
            yield Finding("L06", where, "has no default")
        else:
            yield from _lint_default(field, where, types)
        yield from _lint_instant(field, where, is_member_event)
        yield from _lint_string(field, where)
        yield from _lint_type(field["type"], where, is_member_event, types)


def _lint_default(field: Mapping[str, Any], where: str, types: Types) -> Iterator[Finding]:
    default = field["default"]
    if isinstance(default, str) and _may_allow(default, field["type"], types):
        yield Finding("L07", where, f"defaults to {default}, which may allow")
    if default is True and field["name"] not in PROTECTIVE_FLAGS:
        yield Finding("L07", where, "is a flag that defaults to true")
    if isinstance(default, list | dict) and default:
        yield Finding("L07", where, "has a default with something in it; nobody said that")
    if "jurisdiction" in field["name"] and default:
        yield Finding(
            "L07", where, f"defaults to the jurisdiction {default}; an unknown one excludes"
        )


def _may_allow(default: str, kind: Any, types: Types) -> bool:
    """Return True if a default is a permissive word, or a later symbol than its enum's first."""
    if default.upper() in PERMISSIVE_WORDS:
        return True
    for branch in _branches(kind):
        enum = _resolved(branch, types)
        if _word(enum) != "enum" or default not in enum["symbols"]:
            continue
        if default != enum["symbols"][0]:
            return True
    return False


def _lint_instant(field: Mapping[str, Any], where: str, is_member_event: bool) -> Iterator[Finding]:
    words = map(_word, _branches(field["type"]))
    if "long" not in words or not _INSTANT_NAME.fullmatch(field["name"]):
        return
    doc = field.get("doc", "")
    if not _INSTANT_UNIT.search(doc):
        yield Finding(
            "L17", where, "is an instant whose doc does not say 'microseconds since 1970-01-01 UTC'"
        )
    if is_member_event and WINDOW not in doc:
        yield Finding("L18", where, f"is an instant whose doc does not state the window '{WINDOW}'")


def _lint_string(field: Mapping[str, Any], where: str) -> Iterator[Finding]:
    if not _holds_text(field["type"]):
        return
    pattern = field.get("pattern")
    if pattern is None and field.get("text") == "free" and field["name"] not in KEY_NAMES:
        return
    if pattern is None:
        yield Finding(
            "L19",
            where,
            "is a string without pattern; only what is no key, label or log field is free text",
        )
    elif not _is_anchored(pattern):
        yield Finding(
            "L19", where, f"has the pattern {pattern!r}, which is no regular expression from ^ to $"
        )


def _holds_text(kind: Any) -> bool:
    """Return True if a type has a string in it.

    A string inside a record does not count: the fields of that record are checked themselves.
    """
    if isinstance(kind, list):
        return any(map(_holds_text, kind))
    if not isinstance(kind, Mapping):
        return bool(kind == "string")
    inner = kind.get("items", kind.get("values", kind["type"]))
    return kind["type"] != "record" and _holds_text(inner)


def _is_anchored(pattern: object) -> bool:
    if not isinstance(pattern, str):
        return False
    if not pattern.startswith("^") or not pattern.endswith("$"):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _lint_type(
    type_of_field: Any, where: str, is_member_event: bool, types: Types
) -> Iterator[Finding]:
    for kind in _branches(type_of_field):
        name = _word(kind)
        if name in ("float", "double"):
            yield Finding("L08", where, "is a float: NaN compares with nothing")
        if not isinstance(kind, Mapping):
            continue
        if str(kind.get("logicalType", "")).startswith(_CALENDAR):
            yield Finding(
                "L10", where, "is a logical time; instants are plain longs of microseconds"
            )
        if isinstance(kind["type"], Mapping | list):
            yield from _lint_type(kind["type"], where, is_member_event, types)
        elif name in ("array", "map"):
            yield from _lint_items(kind, where, is_member_event, types)
        elif name == "record":
            yield from _lint_record(kind, where, is_member_event, types)
        elif name == "enum":
            yield from _lint_enum(kind, where)


def _lint_items(
    kind: Mapping[str, Any], where: str, is_member_event: bool, types: Types
) -> Iterator[Finding]:
    if is_member_event:
        yield Finding(
            "L11",
            where,
            f"is {kind['type']} in a member event: six bytes could claim millions of items",
        )
    items = kind.get("items", kind.get("values"))
    if kind["type"] == "array" and _has_no_size(items, types, ()) and _word(items) != "record":
        yield Finding(
            "L04", where, "has items that take no bytes: six bytes could claim millions of them"
        )
    yield from _lint_type(items, where, is_member_event, types)


def _has_no_size(kind: Any, types: Types, inside: tuple[str, ...]) -> bool:
    """Return True if a value takes no bytes: null, a fixed of size 0, a record of only such."""
    kind = _resolved(kind, types)
    if _word(kind) == "fixed":
        return bool(kind["size"] == 0)
    if _word(kind) == "record" and kind["name"] not in inside:
        deeper = (*inside, kind["name"])
        return all(_has_no_size(field["type"], types, deeper) for field in kind["fields"])
    return _word(kind) == "null"


def _lint_recursion(
    kind: Any, where: str, inside: tuple[str, ...], types: Types
) -> Iterator[Finding]:
    """A record that contains itself, also by way of others: a deep value would end the process, not
    raise.
    """
    if isinstance(kind, list):
        for one in kind:
            yield from _lint_recursion(one, where, inside, types)
        return
    definition = _resolved(kind, types)
    if not isinstance(definition, Mapping):
        return
    if definition["type"] in ("array", "map"):
        items = definition.get("items", definition.get("values"))
        yield from _lint_recursion(items, where, inside, types)
    elif definition["type"] == "record":
        name = definition["name"]
        if name in inside:
            yield Finding(
                "L09", where, f"contains {name} again: a deep value would end the process"
            )
            return
        for field in definition["fields"]:
            yield from _lint_recursion(
                field["type"], f"{where}.{field['name']}", (*inside, name), types
            )


def _lint_enum(kind: Mapping[str, Any], where: str) -> Iterator[Finding]:
    symbols = kind["symbols"]
    if not kind.get("doc"):
        yield Finding("L03", where, "is an enum without doc")
    if symbols[0] not in PROTECTIVE_SYMBOLS:
        yield Finding(
            "L12",
            where,
            f"has {symbols[0]} first, which is not known to protect (lint.PROTECTIVE_SYMBOLS)",
        )
    if symbols[-1] != "UNKNOWN":
        yield Finding("L13", where, "does not end in UNKNOWN")
    if kind.get("default") != symbols[0]:
        yield Finding(
            "L14", where, "has no enum default equal to its first symbol, the protective one"
        )


def is_fixed_width(field: Mapping[str, Any], types: Types) -> bool:
    """Return True if all values of a field of a linted Avro schema take equally many bytes.

    Then a batch can be read by column. An enum of less than 64 symbols does, and a long that is an
    instant within the window: eight bytes.
    """
    kind = _resolved(field["type"], types)
    word = _word(kind)
    if word == "enum":
        return len(kind["symbols"]) < _ONE_BYTE_SYMBOLS
    if word == "long":
        return _INSTANT_NAME.fullmatch(field["name"]) is not None
    return word in ("fixed", "boolean")


def _lint_order(record: Mapping[str, Any], types: Types) -> Iterator[Finding]:
    """Fixed-width fields first, member_id last: so that a batch can be read column by column."""
    fields = record["fields"]
    if not fields or fields[-1]["name"] != "member_id":
        yield Finding("L15", record["name"], "does not end in member_id")
    seen_variable = False
    for field in fields:
        if not is_fixed_width(field, types):
            seen_variable = True
        elif seen_variable:
            yield Finding(
                "L16",
                f"{record['name']}.{field['name']}",
                "is of fixed width but comes after a variable field",
            )
