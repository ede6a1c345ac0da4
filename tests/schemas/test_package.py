"""The data package: schemas that keep the lint's rules, topics that use each of them once, examples
that are true.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import fastavro
import pytest

from consentry.domain.events import FactKind
from consentry.domain.jurisdictions import ANYWHERE
from consentry.domain.values import MEMBER_ID_PATTERN, NAME_PATTERN, MemberId
from consentry.schema_gate.lint import PERMISSIVE_WORDS, WINDOW, lint_package
from consentry.wire.avro_bytes import long_bytes
from consentry.wire.catalog import InMemoryRegistry, load_catalog, register_all
from consentry.wire.controls import read_control
from consentry.wire.events import INSTANT_MAX, INSTANT_MIN, read_event
from consentry.wire.frontiers import read_frontier
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.purge_orders import read_order, read_receipt
from consentry.wire.records import (
    read_record,
)
from consentry.wire.schemas import schema, schemas, topics

PACKAGE = Path(str(files("consentry_schemas")))
RECORDS = [(topic.name, name) for topic in topics().values() for name in topic.records]
EXAMPLES = sorted(
    path.relative_to(PACKAGE / "examples") for path in (PACKAGE / "examples").rglob("*.json")
)


def decoded(path: Path) -> dict[str, Any]:
    """An example in the form that fastavro takes: hex becomes bytes where the schema says bytes."""
    value: dict[str, Any] = json.loads((PACKAGE / "examples" / path).read_text())
    found = with_bytes(value, schema(path.stem).parsed)
    assert isinstance(found, dict)
    return found


def with_bytes(value: Any, kind: Any) -> Any:
    """The value with hex text turned into bytes."""
    if isinstance(kind, list):
        return (
            None if value is None else with_bytes(value, next(one for one in kind if one != "null"))
        )
    name = kind["type"] if isinstance(kind, dict) else kind
    if name == "record":
        assert set(value) == {field["name"] for field in kind["fields"]}
        return {
            field["name"]: with_bytes(value[field["name"]], field["type"])
            for field in kind["fields"]
        }
    if name == "array":
        return [with_bytes(item, kind["items"]) for item in value]
    return bytes.fromhex(value) if name in ("fixed", "bytes") else value


def enums(kind: Any) -> list[dict[str, Any]]:
    """Every enum inside of a type."""
    if isinstance(kind, list):
        return [found for one in kind for found in enums(one)]
    if not isinstance(kind, dict):
        return []
    inner = [field["type"] for field in kind.get("fields", [])] + [kind.get("items")]
    return [kind] * (kind["type"] == "enum") + [found for one in inner for found in enums(one)]


class TestSchemas:
    def test_every_schema_keeps_the_rules(self) -> None:
        """Each rule stands for an input that was once read as a grant."""
        assert lint_package() == []

    def test_every_schema_is_used_by_exactly_one_topic(self) -> None:
        """An id on two topics could be carried from the one to the other."""
        assert Counter(name for _, name in RECORDS) == Counter(list(schemas()))

    def test_no_two_schemas_read_the_same_bytes(self) -> None:
        """Ids are pinned by fingerprint: equal ones could not be told apart."""
        assert len({known.fingerprint for known in schemas().values()}) == len(schemas())

    @pytest.mark.parametrize("name", schemas())
    def test_what_a_reader_fills_in_never_widens_use(self, name: str) -> None:
        """A field that an older producer did not send must not become consent."""
        for enum in enums(schema(name).parsed):
            assert enum["default"] == enum["symbols"][0]
            assert enum["symbols"][0] not in PERMISSIVE_WORDS
            assert enum["symbols"][-1] == "UNKNOWN"

    def test_the_kinds_of_facts_stand_in_the_order_of_the_schema(self) -> None:
        """The codec writes the number, every other reader the name."""
        fact = schema("ConsentRecord").parsed["fields"][1]["type"]["items"]
        symbols = next(field for field in fact["fields"] if field["name"] == "kind")["type"][
            "symbols"
        ]

        assert symbols == [kind.name for kind in FactKind]

    def test_instants_take_eight_bytes_in_the_whole_window(self) -> None:
        """The columnar reader looks for them at fixed places."""
        for instant in (INSTANT_MIN, 1_704_067_200_000_000, INSTANT_MAX - 1):
            buffer = io.BytesIO()
            fastavro.schemaless_writer(buffer, "long", instant)
            assert buffer.getvalue() == long_bytes(instant)
            assert len(buffer.getvalue()) == 8
        assert len(long_bytes(INSTANT_MIN - 1)) == 7
        assert len(long_bytes(INSTANT_MAX)) == 9


def fields_of(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and declaration of every field of a record, those of inner records included."""

    def visit(record: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for field in record["fields"]:
            where = f"{path}.{field['name']}"
            yield where, field
            for kind in field["type"] if isinstance(field["type"], list) else [field["type"]]:
                inside = kind.get("items", kind) if isinstance(kind, dict) else kind
                if isinstance(inside, dict) and inside["type"] == "record":
                    yield from visit(inside, where)

    return visit(json.loads(schema(name).text), name)


PATTERNS = {
    where: field["pattern"]
    for name in schemas()
    for where, field in fields_of(name)
    if "pattern" in field
}


class TestPatterns:
    """What a schema says of its texts is what our own readers and makers hold to."""

    @pytest.mark.parametrize("where", [where for where in PATTERNS if where.endswith(".member_id")])
    def test_a_member_id_has_the_pattern_that_the_readers_check(self, where: str) -> None:
        """A producer that keeps to the schema must never have a member held for it."""
        assert PATTERNS[where] == f"^{MEMBER_ID_PATTERN.pattern}$"

    @pytest.mark.parametrize(
        "where",
        [
            where
            for where in PATTERNS
            if where.endswith((".purpose", ".purposes", ".categories", ".pause_id", ".subscriber"))
        ],
    )
    def test_a_name_has_the_pattern_that_the_readers_check(self, where: str) -> None:
        """A purpose becomes a key, a label and a log field."""
        assert PATTERNS[where] == f"^{NAME_PATTERN.pattern}$"

    def test_every_place_that_we_know_fits_the_patterns_of_places(self) -> None:
        """A code that no producer may send is a member that is quarantined for living there."""
        known = iso_jurisdictions()

        for where, pattern in PATTERNS.items():
            if where.endswith((".jurisdiction", ".jurisdictions", ".facts.name")):
                assert [code for code in known.codes if not re.fullmatch(pattern, code)] == []
            if where.endswith(".jurisdictions"):
                assert [
                    scope for scope in (*known.groups, ANYWHERE) if not re.fullmatch(pattern, scope)
                ] == []

    @pytest.mark.parametrize("path", EXAMPLES, ids=str)
    def test_the_texts_of_an_example_fit_their_patterns(self, path: Path) -> None:
        """Producers start from the examples."""

        def visit(value: Any, where: str) -> None:
            if isinstance(value, dict):
                for name, inner in value.items():
                    visit(inner, f"{where}.{name}")
            elif isinstance(value, list):
                for inner in value:
                    visit(inner, where)
            elif where in PATTERNS and value is not None:
                assert re.fullmatch(PATTERNS[where], value), where

        visit(json.loads((PACKAGE / "examples" / path).read_text()), path.stem)

    def test_ids_of_purge_orders_fit_their_pattern(self) -> None:
        """They are record keys, and receipts name them."""
        member = "m" * 64

        for order in (
            f"erasure:{bytes(8).hex()}:{member}",
            f"opt_out:{bytes(8).hex()}:a:b",
            "pause:hk-2024:2147483647",
        ):
            assert re.fullmatch(PATTERNS["PurgeOrder.order_id"], order)
        assert PATTERNS["Receipt.order_id"] == PATTERNS["PurgeOrder.order_id"]

    def test_the_window_that_member_events_state_is_the_one_their_reader_has(self) -> None:
        """An instant that a schema allows and a reader refuses holds a member."""
        begin, end = (
            int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000 for year in (1979, 3111)
        )

        assert WINDOW == "between 1979 and 3111"
        assert begin >= INSTANT_MIN
        assert end < INSTANT_MAX


class TestTopics:
    @pytest.mark.parametrize("name", topics())
    def test_a_topic_that_is_kept_for_ever_or_compacted_says_so(self, name: str) -> None:
        """The broker's default deletes after a week, and a week-old opt-out is gone."""
        config = topics()[name].config_for("production")

        assert config["cleanup.policy"] in ("delete", "compact")
        assert config["cleanup.policy"] == "compact" or config["retention.ms"] == "-1"
        assert config["min.insync.replicas"] == "2"

    @pytest.mark.parametrize("name", topics())
    def test_paired_topics_declare_equal_partition_counts(self, name: str) -> None:
        """A member's events and record have to share a partition's order."""
        topic = topics()[name]

        if topic.same_partitions_as is not None:
            assert topic.partitions == topics()[topic.same_partitions_as].partitions


class TestExamples:
    def test_every_record_has_an_example_in_its_topics_folder(self) -> None:
        """Producers in other languages start from these."""
        assert {(path.parent.name, path.stem) for path in EXAMPLES} == set(RECORDS)

    @pytest.mark.parametrize("path", EXAMPLES, ids=str)
    def test_an_example_encodes_decodes_and_encodes_to_the_same_bytes(self, path: Path) -> None:
        """An example that is not true teaches the mistake."""
        value, known = decoded(path), schema(path.stem)

        raw = known.encode(value)

        read: Any = fastavro.schemaless_reader(io.BytesIO(raw), known.parsed, None)
        assert read == value
        assert known.encode(read) == raw

    @pytest.mark.parametrize("path", EXAMPLES, ids=str)
    def test_an_example_is_accepted_by_our_own_readers(self, path: Path) -> None:
        """What the documentation shows must not end in quarantine."""
        registry = InMemoryRegistry()
        register_all(registry, "consentry")
        catalog = load_catalog(registry, "consentry")
        value = decoded(path)
        raw = catalog.frame_of(path.stem) + schema(path.stem).encode(value)

        match path.parent.name:
            case "member-events":
                assert (
                    read_event(raw, value["member_id"].encode(), catalog).member
                    == value["member_id"]
                )
            case "controls":
                assert read_control(raw, catalog).event_id == value["event_id"]
            case "purge-orders":
                assert read_order(raw, catalog).order_id == value["order_id"]
            case "receipts":
                assert read_receipt(raw, catalog).order_id == value["order_id"]
            case "frontiers":
                assert read_frontier(raw, catalog).partition == value["partition"]
            case "records":
                framed = b"\x00\x00\x00\x00\x01" + schema(path.stem).encode(
                    value
                )  # as its checksum was made
                assert read_record(framed, b"urn:li:member:4711").member == MemberId(
                    "urn:li:member:4711"
                )
            case topic:
                assert topic == "quarantine"
