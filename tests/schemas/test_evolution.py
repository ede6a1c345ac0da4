"""How schemas may change: what the gate refuses, that it keeps both sides readable, and what was
published for ever.
"""

from __future__ import annotations

import copy
import io
import json
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.schemas.pairs import (
    B17,
    MORE_REFUSALS,
    OLD,
    Json,
    Refusal,
    allowed_pairs,
    changed,
    field,
    values,
    with_choice,
    with_field,
)
from tests.schemas.test_package import EXAMPLES, with_bytes

from consentry.domain.errors import Refused
from consentry.schema_gate import evolution
from consentry.schema_gate.evolution import (
    GateRefused,
    check_package,
    compare,
    publish,
    require_package,
)
from consentry.schema_gate.lint import lint_schema
from consentry.schema_gate.published import package_root, read_pins, read_published, read_schemas
from consentry.wire.schemas import canonical_fingerprint

PACKAGE = Path(str(files("consentry_schemas")))
STOP: Json = {
    "type": "record",
    "name": "Stop",
    "namespace": "consentry",
    "doc": "A control.",
    "fields": [field("rows", "long", 0)],
}


def gate(old: Json, new: Json) -> set[str]:
    """The codes of lint and evolution for a change of a member event."""
    findings = [*lint_schema(new, is_member_event=True), *compare(old, new, is_member_event=True)]
    return {finding.code for finding in findings}


def written(schema: Json, value: Json) -> bytes:
    """Avro bytes by a schema."""
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(copy.deepcopy(schema)), value)
    return buffer.getvalue()


def read(raw: bytes, *, writer: Json, reader: Json) -> Json:
    """What a reader makes of bytes that another schema wrote."""
    found: Any = fastavro.schemaless_reader(
        io.BytesIO(raw),
        fastavro.parse_schema(copy.deepcopy(writer)),
        fastavro.parse_schema(copy.deepcopy(reader)),
    )
    assert isinstance(found, dict)
    return found


class TestCompare:
    def test_a_schema_that_keeps_every_rule_may_stay_as_it_is(self) -> None:
        """The cases below are OLD with one thing changed: it must not itself be refused."""
        assert gate(OLD, copy.deepcopy(OLD)) == set()

    @pytest.mark.parametrize("refusal", B17, ids=lambda refusal: refusal.name)
    def test_b17_every_version_that_could_turn_a_withdrawal_into_a_grant_is_refused(
        self, refusal: Refusal
    ) -> None:
        """The registry takes nearly all of these: nothing behind the gate would notice."""
        assert refusal.code in gate(OLD, refusal.new)

    @pytest.mark.parametrize("refusal", MORE_REFUSALS, ids=lambda refusal: refusal.name)
    def test_a_change_of_meaning_or_place_is_refused(self, refusal: Refusal) -> None:
        """Old logs are read for ever, and whole batches by the place of their bytes."""
        assert {finding.code for finding in compare(OLD, refusal.new, is_member_event=True)} == {
            refusal.code
        }

    @pytest.mark.parametrize(
        "new",
        [
            changed(purpose={"doc": "Told better.", "pii": "location"}) | {"doc": "Told better."},
            with_choice("OPT_OUT", "OPT_IN", "LATER", "UNKNOWN"),
            with_field(5, field("reference", ["null", "string"], None, text="free")),
            with_field(4, field("reference", "string", "", text="free")),
            changed(rows={"type": {"type": "long"}}),
            changed(choice={"type": {**OLD["fields"][0]["type"], "name": "consentry.Choice"}}),
        ],
        ids=[
            "words",
            "symbol",
            "field before the member",
            "field after the head",
            "long spelt out",
            "full name",
        ],
    )
    def test_what_both_sides_can_read_may_change(self, new: Json) -> None:
        """A gate that refuses what is safe is gone around."""
        assert gate(OLD, new) == set()

    def test_only_what_is_read_by_column_keeps_its_head_and_end(self) -> None:
        """Controls are read one by one: a field may go anywhere in them."""
        assert compare(OLD, with_field(0, field("more", "long", 0))) == []

    def test_a_frozen_record_changes_but_for_words(self) -> None:
        """The folded record is read byte by byte, whatever its schema id says."""
        told = changed(purpose={"doc": "Told better."})
        added = with_field(5, field("reference", ["null", "string"], None))

        assert compare(OLD, told, is_frozen=True) == []
        assert {finding.code for finding in compare(OLD, added, is_frozen=True)} == {"E10"}

    def test_inner_records_keep_the_same_rules(self) -> None:
        """Terms are inside of a policy, facts inside of a record."""
        old, new = copy.deepcopy(OLD), copy.deepcopy(OLD)
        for schema, kind in ((old, "long"), (new, "int")):
            part = {
                "type": "record",
                "name": "Part",
                "doc": "A part.",
                "fields": [field("rows", kind, 0)],
            }
            schema["fields"].insert(0, field("parts", {"type": "array", "items": part}, []))

        assert [finding[:2] for finding in compare(old, new)] == [("E04", "Thing.parts.rows")]


class TestResolution:
    @given(st.data())
    def test_whatever_the_gate_lets_pass_both_sides_can_read(self, data: st.DataObject) -> None:
        """A producer and a trainer upgrade in any order; the log holds what both of them wrote."""
        old, new = data.draw(allowed_pairs())
        assert compare(old, new) == []

        for writer, reader in ((old, new), (new, old)):
            value = data.draw(values(writer))
            found = read(written(writer, value), writer=writer, reader=reader)
            assert found == expected(value, writer, reader)


def expected(value: Json, writer: Json, reader: Json) -> Json:
    """What Avro's rules make of a value: what both know as it was, an unknown symbol and a new
    field as the default.
    """
    known = {one["name"]: one for one in writer["fields"]}
    found = {}
    for one in reader["fields"]:
        name, kind = one["name"], one["type"]
        if name not in known:
            found[name] = one["default"]
        elif name == "choice":
            found[name] = value[name] if value[name] in kind["symbols"] else "OPT_OUT"
        elif name == "part" and value[name] is not None:
            found[name] = expected(value[name], known[name]["type"][1], kind[1])
        else:
            found[name] = value[name]
    return found


PAST = [
    (path, number)
    for path in EXAMPLES
    for number in range(1, len(read_published(package_root()).get(path.stem, ())) + 1)
]


class TestPublished:
    def test_every_schema_is_published(self) -> None:
        """What was never frozen can change without anybody noticing."""
        assert set(read_published(package_root())) == set(read_schemas(package_root()))

    @pytest.mark.parametrize(("path", "number"), PAST, ids=str)
    def test_an_example_written_with_a_published_version_is_read_with_the_present_one_and_the_reverse(
        self, path: Path, number: int
    ) -> None:
        """The log is kept for ever; what was said in the first year still counts."""
        old, new = (
            read_published(package_root())[path.stem][number - 1],
            read_schemas(package_root())[path.stem],
        )
        example = json.loads((PACKAGE / "examples" / path).read_text())
        value = with_bytes(example, fastavro.parse_schema(copy.deepcopy(new)))
        known = {one["name"] for one in old["fields"]}
        past = {name: one for name, one in value.items() if name in known}

        now = read(written(old, past), writer=old, reader=new)
        then = read(written(new, value), writer=new, reader=old)

        assert {name: now[name] for name in known} == past
        assert then == past


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A data package with one member event and one control, nothing published."""
    root = tmp_path / "consentry_schemas"
    for folder in ("avro", "topics"):
        (root / folder).mkdir(parents=True)
    save(root, OLD)
    save(root, STOP)
    for topic, name in (("member-events", "Thing"), ("controls", "Stop")):
        (root / "topics" / f"{topic}.yaml").write_text(f"name: {topic}\nrecords: [{name}]\n")
    return root


def save(root: Path, schema: Json) -> None:
    """Write the present version of a schema."""
    (root / "avro" / f"{schema['name']}.avsc").write_text(json.dumps(schema))


class TestPublish:
    def test_the_first_publication_makes_version_1_of_everything(self, package: Path) -> None:
        """From then on nothing may be lost."""
        written_files = publish(package)

        assert [str(file.relative_to(package)) for file in written_files] == [
            "published/Stop/1.avsc",
            "published/Thing/1.avsc",
        ]
        assert check_package(package) == []
        assert read_pins(package)["member-events"] == {
            "Thing": [canonical_fingerprint(json.dumps(OLD))]
        }

    def test_only_what_changed_gets_a_next_version_and_the_earlier_ones_stay(
        self, package: Path
    ) -> None:
        """A version that is rewritten makes old events unreadable."""
        publish(package)
        first = (package / "published" / "Thing" / "1.avsc").read_bytes()
        save(package, with_choice("OPT_OUT", "OPT_IN", "LATER", "UNKNOWN"))

        written_files = publish(package)

        assert [str(file.relative_to(package)) for file in written_files] == [
            "published/Thing/2.avsc"
        ]
        assert (package / "published" / "Thing" / "1.avsc").read_bytes() == first
        assert len(read_pins(package)["member-events"]["Thing"]) == 2
        assert check_package(package) == []
        assert publish(package) == []

    @pytest.mark.parametrize("refusal", [*B17, *MORE_REFUSALS], ids=lambda refusal: refusal.name)
    def test_what_breaks_a_rule_is_not_published(self, package: Path, refusal: Refusal) -> None:
        """Published is for ever: there is no taking back."""
        publish(package)
        save(package, refusal.new)

        with pytest.raises(GateRefused) as caught:
            publish(package)

        # What is no schema at all (L21) is not compared any more.
        assert {finding.code for finding in caught.value.findings} & {refusal.code, "L21"}
        assert not (package / "published" / "Thing" / "2.avsc").exists()

    def test_a_change_is_held_against_every_version_not_only_the_last(self, package: Path) -> None:
        """Removed in version 2 by force, a field that comes back otherwise would give old events
        another meaning.
        """
        publish(package)
        second = changed(evidence=None)
        (package / "published" / "Thing" / "2.avsc").write_text(json.dumps(second))
        save(
            package,
            with_field(5, field("more", ["null", "string"], None, text="free")) | {"doc": "Third."},
        )
        save(package, changed(evidence={"type": ["null", "long"]}))

        assert ("E04", "Thing.evidence") in {finding[:2] for finding in check_package(package)}

    def test_a_record_that_is_gone_is_refused(self, package: Path) -> None:
        """Its events stay in the log."""
        publish(package)
        (package / "avro" / "Thing.avsc").unlink()
        (package / "topics" / "member-events.yaml").unlink()

        assert {finding[:2] for finding in check_package(package)} == {("E01", "Thing")}

    def test_a_record_that_moves_to_another_topic_is_refused(self, package: Path) -> None:
        """Ids are pinned by topic: what it wrote on the old one could no more be read."""
        publish(package)
        for topic, name in (("member-events", "Stop"), ("controls", "Thing")):
            (package / "topics" / f"{topic}.yaml").write_text(f"name: {topic}\nrecords: [{name}]\n")

        assert {finding[:2] for finding in check_package(package)} >= {
            ("E12", "Thing"),
            ("E12", "Stop"),
        }

    def test_a_published_version_that_was_touched_is_noticed(self, package: Path) -> None:
        """History that is rewritten reads old events otherwise."""
        publish(package)
        (package / "published" / "Thing" / "1.avsc").write_text(
            json.dumps(with_choice("OPT_OUT", "UNKNOWN"))
        )

        assert ("E12", "Thing") in {finding[:2] for finding in check_package(package)}

    def test_a_published_version_that_is_missing_is_noticed(self, package: Path) -> None:
        """A gap would make the next publication take the number of an earlier version."""
        publish(package)
        file = package / "published" / "Thing" / "1.avsc"
        file.rename(file.with_name("2.avsc"))

        with pytest.raises(Refused, match="not numbered 1 to 1"):
            check_package(package)

    def test_what_was_changed_and_not_published_is_noticed(self, package: Path) -> None:
        """Events written with it could not be read once it changes again."""
        publish(package)
        save(package, changed(purpose={"doc": "Told better."}))

        with pytest.raises(GateRefused, match=r"E13  Thing.*schemas\.gate"):
            require_package(package)

    def test_what_is_no_schema_is_told_and_not_compared(self, package: Path) -> None:
        """A typing error gives a finding, not a traceback."""
        publish(package)
        save(package, changed(rows={"type": "lon"}))

        assert [finding.code for finding in check_package(package)] == ["L21"]


def test_the_real_package_would_lose_its_findings_if_it_were_not_published(tmp_path: Path) -> None:
    """Hurt when this breaks: whoever trusts that the gate looks at the real package."""
    copied = tmp_path / "consentry_schemas"
    shutil.copytree(PACKAGE, copied)
    shutil.rmtree(copied / "published", ignore_errors=True)

    assert {finding.code for finding in check_package(copied)} == {"E13"}


def test_every_rule_of_evolution_has_a_case_that_breaks_it() -> None:
    """A rule without one could be switched off, and nobody would notice."""
    rules = set(re.findall(r'"(E\d\d)"', Path(evolution.__file__).read_text()))
    of_their_own = {"E01", "E10", "E12", "E13"}  # tests of this file

    assert {
        refusal.code for refusal in (*B17, *MORE_REFUSALS) if refusal.code.startswith("E")
    } | of_their_own == rules
