"""Pairs of an old and a new schema: by hand for each rule that refuses, by Hypothesis for what is
allowed.
"""

from __future__ import annotations

import copy
import json
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

Json = dict[str, Any]


def field(name: str, kind: Any, default: Any, **more: Any) -> Json:
    """A field as the lint wants it."""
    return {
        "name": name,
        "type": kind,
        "default": default,
        "doc": "Why it is there.",
        "pii": "none",
    } | more


def enum(name: str, *symbols: str) -> Json:
    """An enum whose first symbol protects."""
    return {
        "type": "enum",
        "name": name,
        "symbols": list(symbols),
        "default": symbols[0],
        "doc": "Words.",
    }


OLD: Final[Json] = {
    "type": "record",
    "name": "Thing",
    "namespace": "consentry",
    "doc": "A thing.",
    "fields": [
        field("choice", enum("Choice", "OPT_OUT", "OPT_IN", "UNKNOWN"), "OPT_OUT"),
        field("tainted", "boolean", True),
        field("rows", "long", 0),
        field("purpose", "string", "", pattern="^[a-z]+$"),
        field("evidence", ["null", "string"], None, text="free"),
        field("member_id", "string", "", pattern="^[a-z0-9]+$"),
    ],
}
"""A member event that keeps every rule."""


def changed(**fields: Json | None) -> Json:
    """OLD with these fields' entries changed (None: without the field)."""
    new = copy.deepcopy(OLD)
    new["fields"] = [
        one | (fields.get(one["name"]) or {})
        for one in new["fields"]
        if one["name"] not in fields or fields[one["name"]] is not None
    ]
    return new


def with_field(place: int, added: Json) -> Json:
    """OLD with one more field at a place."""
    new = copy.deepcopy(OLD)
    new["fields"].insert(place, added)
    return new


def in_order(*names: str) -> Json:
    """OLD with its fields in another order."""
    by_name = {one["name"]: one for one in OLD["fields"]}
    return {**copy.deepcopy(OLD), "fields": [copy.deepcopy(by_name[name]) for name in names]}


def with_choice(*symbols: str, **more: Any) -> Json:
    """OLD with other symbols of its enum."""
    return changed(choice={"type": {**enum("Choice", *symbols), "default": "OPT_OUT"} | more})


LOOP: Final = {
    "type": "record",
    "name": "Part",
    "doc": "A part.",
    "fields": [field("part", ["null", "Part"], None)],
}


class Refusal(NamedTuple):
    """A new version that our gate refuses, with the code it gives, and whether a registry refuses
    it as well.
    """

    name: str
    new: Json
    code: str
    by_registry: bool
    """With FULL_TRANSITIVE, as measured by tests/integration/test_schema_gate.py on Apicurio."""


B17: Final = (
    Refusal(
        "boolean default true",
        with_field(5, field("shared", ["boolean", "null"], True)),
        "L07",
        False,
    ),
    Refusal("default becomes OPT_IN", changed(choice={"default": "OPT_IN"}), "L07", False),
    Refusal(
        "enum default becomes OPT_IN",
        with_choice("OPT_OUT", "OPT_IN", "UNKNOWN", default="OPT_IN"),
        "L14",
        False,
    ),
    Refusal("symbol removed", with_choice("OPT_OUT", "UNKNOWN"), "E05", False),
    Refusal("symbols reordered", with_choice("OPT_IN", "OPT_OUT", "UNKNOWN"), "E06", False),
    Refusal("field removed", changed(evidence=None), "E02", False),
    Refusal("type narrowed", changed(rows={"type": "int"}), "E04", True),
    Refusal("recursive", with_field(5, field("part", ["null", LOOP], None)), "L09", False),
    Refusal(
        "array in a member event",
        with_field(5, field("tags", {"type": "array", "items": "string"}, [])),
        "L11",
        False,
    ),
)
"""The cases of B-17."""

MORE_REFUSALS: Final = (
    Refusal("field renamed", changed(evidence={"name": "proof"}), "E02", False),
    Refusal(
        "field renamed by alias",
        changed(evidence={"name": "proof", "aliases": ["evidence"]}),
        "E02",
        False,
    ),
    Refusal(
        "fields reordered",
        in_order("choice", "tainted", "rows", "evidence", "purpose", "member_id"),
        "E03",
        False,
    ),
    Refusal("field before the head's end", with_field(1, field("more", "long", 0)), "E03", False),
    Refusal(
        "field after the last", with_field(6, field("more", ["null", "string"], None)), "E03", False
    ),
    Refusal("type widened", changed(rows={"type": "double"}), "E04", False),
    Refusal("union widened", changed(evidence={"type": ["null", "string", "long"]}), "E04", False),
    Refusal(
        "enum renamed",
        changed(choice={"type": enum("Choices", "OPT_OUT", "OPT_IN", "UNKNOWN")}),
        "E04",
        False,
    ),
    Refusal("symbol renamed", with_choice("OPT_OUT", "AGREED", "UNKNOWN"), "E05", False),
    Refusal("symbol first", with_choice("MINOR", "OPT_OUT", "OPT_IN", "UNKNOWN"), "E07", False),
    Refusal("symbol last", with_choice("OPT_OUT", "OPT_IN", "UNKNOWN", "LATER"), "E07", False),
    Refusal("default changed", changed(rows={"default": 1}), "E08", False),
    Refusal("default false for true", changed(tainted={"default": False}), "E08", False),
    Refusal("default 0 for false", changed(tainted={"default": 1}), "E08", False),
    Refusal(
        "new field without default", with_field(5, {"name": "a", "type": "string"}), "E09", False
    ),
    Refusal("new field of bytes", with_field(5, field("a", "bytes", "")), "E14", False),
    Refusal(
        "new field of fixed size",
        with_field(5, field("a", {"type": "fixed", "name": "A", "size": 1}, "\u0000")),
        "E14",
        False,
    ),
    Refusal("pattern changed", changed(purpose={"pattern": "^.*$"}), "E11", False),
)
"""What the evolution rules refuse beyond these."""

_TYPES: Final = st.sampled_from(
    [
        ("string", ""),
        ("long", 0),
        ("boolean", False),
        (["null", "long"], None),
        (["null", "string"], None),
        ({"type": "array", "items": "string"}, []),
    ]
)
_OLD_TYPES: Final = _TYPES | st.just(({"type": "fixed", "name": "Tag", "size": 2}, "\u0000\u0000"))
"""A new field is not of bytes (E14)."""


@st.composite
def allowed_pairs(draw: st.DrawFn) -> tuple[Json, Json]:
    """An old schema and a new one that the gate lets pass: more fields, more symbols, other
    words.
    """
    names = iter(f"f{number}" for number in range(20))

    def drawn_field(prefix: str) -> Json:
        kind, default = draw(_OLD_TYPES if prefix == "old_" else _TYPES)
        name = f"{prefix}{next(names)}"
        kind = json.loads(json.dumps(kind).replace('"Tag"', f'"Tag_{name}"'))
        return field(name, kind, default)

    symbols = ["OPT_OUT", *draw(st.lists(st.sampled_from(["A", "B", "C"]), unique=True)), "UNKNOWN"]
    fields = [drawn_field("old_") for _ in range(draw(st.integers(0, 4)))]
    fields.insert(
        draw(st.integers(0, len(fields))), field("choice", enum("Choice", *symbols), "OPT_OUT")
    )
    part: Json = {
        "type": "record",
        "name": "Part",
        "doc": "A part.",
        "fields": [drawn_field("part_")],
    }
    fields.append(field("part", ["null", part], None))
    old: Json = {
        "type": "record",
        "name": "Thing",
        "namespace": "consentry",
        "doc": "A thing.",
        "fields": fields,
    }

    new = copy.deepcopy(old)
    new["doc"] = "The same thing, told otherwise."
    choice = next(one for one in new["fields"] if one["name"] == "choice")
    choice["type"]["symbols"][-1:-1] = draw(st.lists(st.sampled_from(["X", "Y"]), unique=True))
    for _ in range(draw(st.integers(0, 3))):
        new["fields"].insert(draw(st.integers(0, len(new["fields"]))), drawn_field("new_"))
    if draw(st.booleans()):
        found = next(one for one in new["fields"] if one["name"] == "part")
        found["type"][1]["fields"].append(drawn_field("more_"))
    return old, new


def values(schema: Json) -> st.SearchStrategy[Json]:
    """Values of a record schema of these pairs."""
    return st.fixed_dictionaries({one["name"]: _value(one["type"]) for one in schema["fields"]})


def _value(kind: Any) -> st.SearchStrategy[Any]:
    if isinstance(kind, list):
        return st.one_of(*map(_value, kind))
    if isinstance(kind, dict):
        match kind["type"]:
            case "enum":
                return st.sampled_from(kind["symbols"])
            case "array":
                return st.lists(_value(kind["items"]), max_size=3)
            case "fixed":
                return st.binary(min_size=kind["size"], max_size=kind["size"])
            case _:
                return values(kind)
    return {
        "null": st.none(),
        "string": st.text(max_size=5),
        "long": st.integers(-(2**63), 2**63 - 1),
        "boolean": st.booleans(),
    }[kind]
