"""The schema lint: each rule has a schema that breaks it and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from consentry.schema_gate import lint
from consentry.schema_gate.lint import Finding, lint_package, lint_schema

INSTANT_DOC = "When, in microseconds since 1970-01-01 UTC, between 1979 and 3111."


def field(name: str, kind: Any = "string", **changed: Any) -> dict[str, Any]:
    """A field that breaks no rule, changed; `...` takes a key away."""
    plain = {
        "name": name,
        "type": kind,
        "default": "",
        "doc": "Why it is there.",
        "pii": "none",
        "pattern": "^[a-z]+$",
    }
    return {key: value for key, value in (plain | changed).items() if value is not ...}


def record(*fields: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """A record that breaks no rule, changed."""
    plain = {
        "type": "record",
        "name": "Thing",
        "namespace": "consentry",
        "doc": "A thing.",
        "fields": list(fields),
    }
    return {key: value for key, value in (plain | changed).items() if value is not ...}


def inner(name: str, *fields: dict[str, Any]) -> dict[str, Any]:
    """A record inside of another."""
    return {"type": "record", "name": name, "doc": "A part.", "fields": list(fields)}


def array(items: Any) -> dict[str, Any]:
    """An array of something."""
    return {"type": "array", "items": items}


def symbols(*names: str, **changed: Any) -> dict[str, Any]:
    """A field of an enum that breaks no rule, changed."""
    kind = {
        "type": "enum",
        "name": "Word",
        "symbols": list(names),
        "default": names[0],
        "doc": "Words.",
    } | changed
    return field(
        "word", {key: value for key, value in kind.items() if value is not ...}, default=names[0]
    )


def instant(doc: str, name: str = "effective_at") -> dict[str, Any]:
    """A field that is an instant."""
    return field(name, "long", default=0, doc=doc)


MEMBER = field("member_id")
FIXED = {"type": "fixed", "name": "Id", "size": 16, "doc": "An id."}
CHOICE = symbols("OPT_OUT", "OPT_IN", "UNKNOWN")
NOTHING = inner("Nothing", field("a", "null", default=None))
PAIR = inner(
    "Pair",
    field(
        "other",
        ["null", inner("Other", field("pair", ["null", "Pair"], default=None))],
        default=None,
    ),
)

BREAKS: list[tuple[str, str, dict[str, Any], bool]] = [
    ("a record without doc", "L03", record(MEMBER, doc=...), False),
    ("a field without doc", "L03", record(field("a", doc="")), False),
    ("an enum without doc", "L03", record(symbols("OPT_OUT", "UNKNOWN", doc=...)), False),
    ("an empty record", "L04", record(), False),
    ("items of null", "L04", record(field("a", array("null"), default=[]), MEMBER), False),
    (
        "items of an empty record",
        "L04",
        record(field("a", array(inner("No")), default=[]), MEMBER),
        False,
    ),
    (
        "items of a record of null",
        "L04",
        record(field("a", array(NOTHING), default=[]), MEMBER),
        False,
    ),
    (
        "items of no size, by name",
        "L04",
        record(field("a", {**FIXED, "size": 0}), field("b", array("Id"), default=[]), MEMBER),
        False,
    ),
    ("no pii annotation", "L05", record(field("a", pii=...)), False),
    ("an unknown pii annotation", "L05", record(field("a", pii="some")), False),
    ("no default", "L06", record(field("a", default=...)), False),
    (
        "a flag that defaults to true",
        "L07",
        record(field("granted", "boolean", default=True)),
        False,
    ),
    (
        "a union that defaults to true",
        "L07",
        record(field("granted", ["boolean", "null"], default=True)),
        False,
    ),
    ("an enum that defaults to OPT_IN", "L07", record(CHOICE | {"default": "OPT_IN"}), False),
    (
        "a named enum that defaults to OPT_IN",
        "L07",
        record(CHOICE, field("again", "Word", default="OPT_IN")),
        False,
    ),
    ("a string that defaults to OPT_IN", "L07", record(field("choice", default="OPT_IN")), False),
    (
        "a jurisdiction that defaults to everywhere",
        "L07",
        record(field("jurisdiction", default="*")),
        False,
    ),
    (
        "a jurisdiction that defaults to a country",
        "L07",
        record(field("jurisdiction", default="US")),
        False,
    ),
    (
        "places that default to a country",
        "L07",
        record(field("jurisdictions", array("string"), default=["US"])),
        False,
    ),
    ("a float", "L08", record(field("score", "double", default=0.0)), False),
    ("an array of floats", "L08", record(field("scores", array("float"), default=[])), False),
    ("a record in itself", "L09", record(field("next", ["null", "Thing"], default=None)), False),
    (
        "a record in itself by full name",
        "L09",
        record(field("next", ["null", "consentry.Thing"], default=None)),
        False,
    ),
    (
        "a record in itself by way of an array",
        "L09",
        record(field("next", array("Thing"), default=[]), MEMBER),
        False,
    ),
    (
        "two records in each other",
        "L09",
        record(field("pair", ["null", PAIR], default=None)),
        False,
    ),
    (
        "a logical timestamp",
        "L10",
        record(field("a", {"type": "long", "logicalType": "timestamp-micros"}, default=0)),
        False,
    ),
    (
        "a logical date",
        "L10",
        record(field("a", {"type": "int", "logicalType": "date"}, default=0)),
        False,
    ),
    (
        "a map in a member event",
        "L11",
        record(field("tags", {"type": "map", "values": "string"}, default={}), MEMBER),
        True,
    ),
    (
        "an array in a member event",
        "L11",
        record(field("tags", ["null", array("string")], default=None), MEMBER),
        True,
    ),
    ("a permissive symbol first", "L12", record(symbols("OPT_IN", "UNKNOWN")), False),
    ("a symbol first that nobody judged", "L12", record(symbols("MAYBE", "UNKNOWN")), False),
    ("an enum without UNKNOWN last", "L13", record(symbols("OPT_OUT", "UNKNOWN", "OPT_IN")), False),
    ("an enum without default", "L14", record(symbols("OPT_OUT", "UNKNOWN", default=...)), False),
    (
        "an enum that defaults to UNKNOWN",
        "L14",
        record(symbols("OPT_OUT", "UNKNOWN", default="UNKNOWN")),
        False,
    ),
    ("a member that is not last", "L15", record(MEMBER, field("source")), True),
    (
        "a fixed width after a variable one",
        "L16",
        record(field("source"), field("id", FIXED), MEMBER),
        True,
    ),
    (
        "a flag after a number, whose bytes differ in count",
        "L16",
        record(field("rows", "long", default=0), field("tainted", "boolean", default=True), MEMBER),
        True,
    ),
    ("an instant without unit", "L17", record(instant("When it holds.")), False),
    (
        "an optional instant without unit",
        "L17",
        record(field("until", ["null", "long"], default=None)),
        False,
    ),
    (
        "an instant without window",
        "L18",
        record(instant(INSTANT_DOC.replace("1979", "1980")), MEMBER),
        True,
    ),
    ("a string without pattern", "L19", record(field("a", pattern=...)), False),
    (
        "items without pattern",
        "L19",
        record(field("a", ["null", array("string")], pattern=..., default=None)),
        False,
    ),
    (
        "a key that is free text",
        "L19",
        record(field("subscriber", pattern=..., text="free")),
        False,
    ),
    (
        "a spelt-out string without pattern",
        "L19",
        record(field("a", {"type": "string"}, pattern=...)),
        False,
    ),
    (
        "items of items without pattern",
        "L19",
        record(field("a", array(array("string")), pattern=..., default=[])),
        False,
    ),
    ("a pattern that begins anywhere", "L19", record(field("a", pattern="[a-z]+$")), False),
    ("a pattern that is none", "L19", record(field("a", pattern="^[a-z$")), False),
    (
        "an enum at the top",
        "L21",
        {"type": "enum", "name": "Thing", "symbols": ["OPT_OUT", "UNKNOWN"]},
        False,
    ),
    ("a type that does not exist", "L21", record(field("a", "strin")), False),
]


def test_a_schema_that_breaks_no_rule_has_no_findings() -> None:
    """A lint that always complains is soon switched off."""
    good = record(
        field("id", FIXED),
        CHOICE,
        instant(INSTANT_DOC),
        field("note", text="free", pattern=...),
        field("seen_version", ["null", "long"], default=None),
        MEMBER,
    )

    assert lint_schema(good, is_member_event=True) == []


@pytest.mark.parametrize(
    ("code", "schema", "is_member_event"),
    [case[1:] for case in BREAKS],
    ids=[case[0] for case in BREAKS],
)
def test_a_schema_that_breaks_a_rule_is_found(
    code: str, schema: dict[str, Any], is_member_event: bool
) -> None:
    """Each rule stands for an input that was read as a grant, or that ended the process."""
    codes = {finding.code for finding in lint_schema(schema, is_member_event=is_member_event)}

    # A permissive enum default breaks the rule for defaults as well.
    assert codes - {"L07"} == {code} - {"L07"}
    assert code in codes


def test_the_fields_of_member_events_stand_in_the_order_of_the_columns_only_there() -> None:
    """Controls are few and read one by one: the rule is not theirs."""
    schema = record(
        field("source"),
        field("id", FIXED),
        field("tags", {"type": "map", "values": "string"}, default={}),
    )

    assert lint_schema(schema, is_member_event=False) == []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the data package, to be broken."""
    copy = tmp_path / "consentry_schemas"
    shutil.copytree(str(files("consentry_schemas")), copy)
    return copy


def new_findings(package: Path) -> list[tuple[str, str]]:
    """Code and place of what the lint finds there and not in the real package."""
    return [finding[:2] for finding in lint_package(package) if finding not in lint_package()]


class TestPackage:
    def test_schemas_and_topics_that_do_not_know_each_other_are_found(self, package: Path) -> None:
        """A schema of no topic is checked by nobody; a topic of no schema stops the stack."""
        (package / "avro" / "Thing.avsc").write_text(json.dumps(record(MEMBER)))
        receipts = package / "topics" / "receipts.yaml"
        receipts.write_text(receipts.read_text().replace("[Receipt]", "[Receipt, Nothing]"))

        assert new_findings(package) == [("L01", "Thing"), ("L02", "Nothing")]

    def test_a_schema_of_two_topics_is_found(self, package: Path) -> None:
        """Its id on the one topic could be carried to the other."""
        receipts = package / "topics" / "receipts.yaml"
        receipts.write_text(receipts.read_text().replace("[Receipt]", "[Receipt, Frontier]"))

        assert new_findings(package) == [("L01", "Frontier")]

    def test_a_member_event_is_known_by_its_topic(self, package: Path) -> None:
        """The stricter rules hold for what anybody who produces may send, whatever it is called."""
        file = package / "avro" / "MemberErased.avsc"
        schema = json.loads(file.read_text())
        schema["fields"].insert(-1, field("tags", array("string"), default=[]))
        file.write_text(json.dumps(schema))

        assert new_findings(package) == [("L11", "MemberErased.tags")]

    @pytest.mark.parametrize(
        "part",
        [
            inner("Terms", field("a")),
            {"type": "enum", "name": "Choice", "symbols": ["OPT_OUT", "UNKNOWN"]},
        ],
    )
    def test_one_name_for_two_things_is_found(self, package: Path, part: dict[str, Any]) -> None:
        """A record is resolved by its name: two of one name are read for each other."""
        file = package / "avro" / "Receipt.avsc"
        schema = json.loads(file.read_text())
        part = part | (
            {"default": "OPT_OUT", "doc": "Two words."} if part["type"] == "enum" else {}
        )
        schema["fields"].append(field("part", ["null", part], default=None))
        file.write_text(json.dumps(schema))

        assert {code for code, _ in new_findings(package)} == {"L20"}

    @pytest.mark.parametrize("changed", [{"name": "Recipt"}, {"namespace": "consentri"}])
    def test_a_file_that_holds_another_record_than_its_name_says_is_found(
        self, package: Path, changed: dict[str, str]
    ) -> None:
        """Topics name files, subjects name records; the two have to be one."""
        file = package / "avro" / "Receipt.avsc"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))

        assert ("L20", "Receipt") in new_findings(package)


def test_a_finding_tells_rule_place_and_reason_on_one_line() -> None:
    """It is read in the output of a build."""
    assert str(Finding("L03", "Thing.a", "has no doc")) == "L03  Thing.a: has no doc"


def test_every_rule_of_the_lint_has_a_schema_that_breaks_it() -> None:
    """A rule without one could be switched off, and nobody would notice."""
    rules = set(re.findall(r'"(L\d\d)"', Path(lint.__file__).read_text()))
    of_the_package = {"L01", "L02", "L20"}  # TestPackage

    assert {case[1] for case in BREAKS} | of_the_package == rules
