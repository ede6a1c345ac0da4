"""The schema lint: each rule has a schema that breaks it and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from consentry.wire.lint import lint_schema


def field(name: str, kind: Any = "string", **changed: Any) -> dict[str, Any]:
    """A field that breaks no rule, changed; `...` takes a key away."""
    plain = {"name": name, "type": kind, "default": "", "doc": "Why it is there.", "pii": "none"} | changed
    return {key: value for key, value in plain.items() if value is not ...}


def record(*fields: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """A record that breaks no rule, changed."""
    plain = {"type": "record", "name": "Thing", "namespace": "consentry", "doc": "A thing.", "fields": list(fields)}
    return {key: value for key, value in (plain | changed).items() if value is not ...}


def symbols(*names: str, **changed: Any) -> dict[str, Any]:
    """A field whose type is an enum that breaks no rule, changed."""
    kind = {"type": "enum", "name": "Word", "symbols": list(names), "default": names[0], "doc": "Words."} | changed
    return field("word", {key: value for key, value in kind.items() if value is not ...}, default=names[0])


MEMBER = field("member_id")
FIXED = {"type": "fixed", "name": "Id", "size": 16, "doc": "An id."}

BREAKS: list[tuple[str, dict[str, Any], bool]] = [
    ("L03", record(MEMBER, doc=...), False),
    ("L03", record(field("a", doc="")), False),
    ("L03", record(symbols("OUT", "UNKNOWN", doc=...)), False),
    ("L04", record(), False),
    ("L04", record(field("a", {"type": "array", "items": "null"}, default=[])), False),
    ("L05", record(field("a", pii=...)), False),
    ("L05", record(field("a", pii="some")), False),
    ("L06", record(field("a", default=...)), False),
    ("L07", record(field("granted", "boolean", default=True)), False),
    ("L07", record(field("choice", default="OPT_IN")), False),
    ("L08", record(field("score", "double", default=0.0)), False),
    ("L08", record(field("scores", {"type": "array", "items": "float"}, default=[])), False),
    ("L09", record(field("next", ["null", "Thing"], default=None)), False),
    ("L09", record(field("next", ["null", "consentry.Thing"], default=None)), False),
    ("L10", record(field("at", {"type": "long", "logicalType": "timestamp-micros"}, default=0)), False),
    ("L11", record(field("tags", {"type": "map", "values": "string"}, default={}), MEMBER), True),
    ("L12", record(symbols("OPT_IN", "UNKNOWN", default="OPT_IN")), False),
    ("L13", record(symbols("UNKNOWN", "OPT_OUT")), False),
    ("L14", record(symbols("OPT_OUT", "UNKNOWN", default=...)), False),
    ("L15", record(MEMBER, field("source")), True),
    ("L16", record(field("source"), field("id", FIXED), MEMBER), True),
]


def test_a_schema_that_breaks_no_rule_has_no_findings() -> None:
    """A lint that always complains is soon switched off."""
    good = record(field("id", FIXED), symbols("OPT_OUT", "OPT_IN", "UNKNOWN"), field("source"), MEMBER)

    assert lint_schema(good, is_member_event=True) == []


@pytest.mark.parametrize(("code", "schema", "is_member_event"), BREAKS)
def test_a_schema_that_breaks_a_rule_is_found(code: str, schema: dict[str, Any], is_member_event: bool) -> None:
    """Each rule stands for an input that was read as a grant, or that ended the process."""
    codes = {finding.code for finding in lint_schema(schema, is_member_event=is_member_event)}

    # A permissive enum default breaks the rule for defaults as well.
    assert codes - {"L07"} == {code} - {"L07"}
    assert code in codes


def test_the_fields_of_member_events_stand_in_the_order_of_the_columns_only_there() -> None:
    """Controls are few and read one by one: the rule is not theirs."""
    schema = record(field("source"), field("id", FIXED), field("tags", {"type": "map", "values": "string"}, default={}))

    assert lint_schema(schema, is_member_event=False) == []


def test_schemas_and_topics_that_do_not_know_each_other_are_found(tmp_path: Path) -> None:
    """A schema of no topic is checked by nobody; a topic of no schema stops the stack."""
    package = tmp_path / "consentry_schemas"
    shutil.copytree(str(files("consentry_schemas")), package)
    (package / "avro" / "Thing.avsc").write_text(json.dumps(record(MEMBER)))
    receipts = package / "topics" / "receipts.yaml"
    receipts.write_text(receipts.read_text().replace("[Receipt]", "[Receipt, Nothing]"))
    program = "from consentry.wire.lint import lint_package\nfor finding in lint_package(): print(finding)"

    told = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )

    assert [line.split(":")[0] for line in told.stdout.splitlines()] == ["L01  Thing", "L02  Nothing"]
