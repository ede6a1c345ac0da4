"""Scenario files and their JSON Schema: editor and product must refuse the same slips, and take the
same files.
"""

from __future__ import annotations

import copy
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from ruamel.yaml import YAML

from consentry.domain.errors import InvalidInput
from consentry.domain.scenarios import run
from consentry.domain.values import Reason
from consentry.forms.scenarios import read_scenario, schema_text
from consentry.wire.jurisdictions import iso_jurisdictions

PACKAGE = Path(str(files("consentry_schemas")))
ROOT = Path(__file__).parents[3]
STORIES = sorted((PACKAGE / "scenarios").glob("*.yaml"))
SCHEMA: dict[str, Any] = json.loads(
    (PACKAGE / "forms" / "scenario.schema.json").read_text(encoding="utf-8")
)
DOCS_LINES_MAX = 150

GOOD = """
name: whole
timeline:
  - recorded: 2025-01-01T00:00:00Z
    policy_published:
      version: "1"
      effective: 2025-01-01
      terms:
        - {jurisdictions: [EEA, "*"], purpose: genai_training, regime: DEFAULT_ON, basis: OTHER,
           notice_until: 2025-01-02, categories: [posts], collected_from: 2020-01-01, minors: EXCLUDE,
           purge: {on_opt_out: true, within: P2WT12H}}
  - recorded: 2025-01-02T00:00:00Z
    member_relocated: {member: m1, jurisdiction: US-CA, age_band: ADULT, effective: 2024-01-01}
  - recorded: 2025-01-03T00:00:00Z
    consent_changed: {member: m1, purpose: genai_training, choice: OPT_IN, observed: 2}
  - recorded: 2025-01-04T00:00:00Z
    pause_imposed: {pause: p-1, version: 1, jurisdictions: [NO], purposes: [genai_training], categories: [posts],
                    effective: 2025-01-03, authority: EXAMPLE, basis: ORDER, reach: PRIOR_AND_FUTURE}
  - {recorded: 2025-01-05T00:00:00Z, pause_lifted: {pause: p-1, version: 1, effective: 2025-02-01, opt_ins: KEEP}}
  - {recorded: 2025-01-06T00:00:00Z, unreadable: {member: m1}}
  - {recorded: 2025-01-07T00:00:00Z, released: {member: m1, observed: 6}}
  - {recorded: 2025-01-08T00:00:00Z, member_erased: {member: m1}}
expect:
  - {member: m1, purpose: genai_training, at: 2025-01-05, known_at: 2025-01-05,
     row: {jurisdiction: US, category: posts, collected: 2024-01-01}, allowed: true, reason: OPTED_IN}
expect_orders:
  - {because: PAUSE, pause: p-1, jurisdictions: [NO], due: 2025-01-18T12:00:00Z}
  - {because: ERASURE, member: m1, due: 2025-01-22T12:00:00Z}
"""
"""Every field of the format once."""

POLICY, MOVE, CHOICE, PAUSE, LIFT, UNREADABLE, RELEASE, ERASURE = range(8)
ENTRIES = {
    **{
        POLICY: "policy_published",
        MOVE: "member_relocated",
        CHOICE: "consent_changed",
        PAUSE: "pause_imposed",
    },
    **{
        LIFT: "pause_lifted",
        UNREADABLE: "unreadable",
        RELEASE: "released",
        ERASURE: "member_erased",
    },
}


def plain(value: Any) -> Any:
    """What YAML made of a file, with dates turned back into text, as an editor sees them."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value.isoformat() if isinstance(value, date) else value


def loaded(text: str) -> Any:
    """The plain values of a YAML 1.2 text."""
    return plain(YAML(typ="safe", pure=True).load(text))


def written(document: Any) -> str:
    """A document as YAML again."""
    out = io.StringIO()
    YAML(typ="safe", pure=True).dump(document, out)
    return out.getvalue()


def complaints(document: Any, schema: dict[str, Any] = SCHEMA) -> list[str]:
    """What the JSON Schema says against a document."""
    validator: Validator = Draft202012Validator(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def part(place: int) -> Callable[[Any], Any]:
    """The content of one entry of the timeline."""
    return lambda document: document["timeline"][place][ENTRIES[place]]


def top(document: Any) -> Any:
    """The document itself."""
    return document


def entry(document: Any) -> Any:
    """The entry that erases."""
    return document["timeline"][ERASURE]


def terms(document: Any) -> Any:
    """The only terms."""
    return part(POLICY)(document)["terms"][0]


def purge(document: Any) -> Any:
    """What the terms say of purges."""
    return terms(document)["purge"]


def question(document: Any) -> Any:
    """The only question."""
    return document["expect"][0]


def row(document: Any) -> Any:
    """Its row."""
    return question(document)["row"]


def order(place: int) -> Callable[[Any], Any]:
    """An expected purge order."""
    return lambda document: document["expect_orders"][place]


TIMELESS = {
    "member": "m1",
    "purpose": "genai_training",
    "allowed": False,
    "reason": "JURISDICTION_UNKNOWN",
}

SLIPS: list[tuple[Callable[[Any], Any], dict[str, Any]]] = [
    # A field that nobody knows, on each level.
    *[
        (where, {"effectiv": "2025-01-01"})
        for where in (top, entry, terms, purge, question, row, order(0))
    ],
    *[(part(place), {"effectiv": "2025-01-01"}) for place in ENTRIES],
    (part(UNREADABLE), {"effective": "2025-01-01"}),
    # A field that is needed.
    (top, {"name": ...}),
    (top, {"timeline": ...}),
    (top, {"expect": ..., "expect_orders": ...}),
    (top, {"expect": [], "expect_orders": ...}),
    (
        top,
        {"timeline": [], "expect": [TIMELESS]},
    ),  # a timeline without entries has no end to ask about
    (entry, {"recorded": ...}),
    (part(POLICY), {"version": ...}),
    (part(POLICY), {"terms": ...}),
    *[(terms, {name: ...}) for name in ("jurisdictions", "purpose", "regime")],
    *[(part(place), {"member": ...}) for place in (MOVE, CHOICE, UNREADABLE, RELEASE, ERASURE)],
    (part(MOVE), {"jurisdiction": ...}),
    (part(CHOICE), {"purpose": ...}),
    (part(CHOICE), {"choice": ...}),
    (part(PAUSE), {"pause": ...}),
    (part(PAUSE), {"jurisdictions": ...}),
    (part(LIFT), {"pause": ...}),
    *[(question, {name: ...}) for name in ("member", "purpose", "allowed", "reason")],
    (order(0), {"because": ...}),
    (order(0), {"pause": ...}),
    (order(1), {"member": ...}),
    # Two kinds in an entry, or none.
    (entry, {"released": {"member": "m1"}}),
    (entry, {"member_erased": ...}),
    # An order with the wrong subject.
    (order(0), {"member": "m1"}),
    (order(1), {"pause": "p-1"}),
    # A list that covers nothing, or is none.
    (part(POLICY), {"terms": []}),
    (terms, {"jurisdictions": []}),
    (terms, {"jurisdictions": "HK"}),
    (terms, {"categories": []}),
    (part(PAUSE), {"jurisdictions": []}),
    (part(PAUSE), {"purposes": []}),
    (part(PAUSE), {"categories": []}),
    (part(PAUSE), {"purposes": "genai_training"}),
    (top, {"timeline": {}}),
    (top, {"expect_orders": {}}),
    (part(ERASURE), {"member": {}}),
    # A word that is not of its list.
    (terms, {"regime": "default_on"}),
    (terms, {"regime": "UNKNOWN"}),
    (terms, {"basis": "BECAUSE"}),
    (terms, {"minors": False}),
    (part(MOVE), {"age_band": "CHILD"}),
    (part(CHOICE), {"choice": "OPTOUT"}),
    (part(PAUSE), {"basis": "UNKNOWN"}),
    (part(PAUSE), {"reach": "PRIOR"}),
    (part(LIFT), {"opt_ins": "VOIDED"}),
    (question, {"reason": "PAUSE"}),
    (question, {"allowed": "yes"}),
    (order(0), {"because": "LIFT"}),
    (purge, {"on_opt_out": "no"}),
    # A name, place, time, length or number in the wrong form.
    (part(MOVE), {"member": "palm@example.com"}),
    (question, {"member": "m" * 65}),
    (question, {"purpose": "GenAI Training"}),
    (part(PAUSE), {"pause": "HK 2024"}),
    (part(PAUSE), {"categories": ["Posts!"]}),
    (row, {"category": "Posts!"}),
    (part(PAUSE), {"jurisdictions": ["hk"]}),
    (part(PAUSE), {"jurisdictions": [False]}),
    (part(MOVE), {"jurisdiction": "EEA"}),
    (part(MOVE), {"jurisdiction": "*"}),
    (row, {"jurisdiction": "Hong Kong"}),
    (entry, {"recorded": "yesterday"}),
    (part(ERASURE), {"effective": "14.10.2024"}),
    (question, {"at": "2025-13-01"}),
    (row, {"collected": 2025}),
    (order(1), {"due": "P30D"}),
    (purge, {"within": "P1M"}),
    (purge, {"within": "P"}),
    (part(CHOICE), {"observed": 0}),
    (part(CHOICE), {"observed": "2"}),
    (part(RELEASE), {"observed": 0}),
    (part(RELEASE), {"observed": "2"}),
    (part(PAUSE), {"version": 0}),
    (part(PAUSE), {"version": True}),
    (part(LIFT), {"version": "1"}),
    (part(PAUSE), {"authority": "x" * 201}),
]

NULLS: list[tuple[Callable[[Any], Any], str]] = [
    *[
        (terms, name)
        for name in ("basis", "notice_until", "categories", "collected_from", "minors", "purge")
    ],
    *[(purge, name) for name in ("on_opt_out", "within")],
    *[(part(place), "effective") for place in ENTRIES if place != UNREADABLE],
    *[
        (part(PAUSE), name)
        for name in ("version", "purposes", "categories", "authority", "basis", "reach")
    ],
    *[(part(LIFT), name) for name in ("version", "opt_ins")],
    *[(part(CHOICE), "observed"), (part(RELEASE), "observed"), (part(MOVE), "age_band")],
    *[(question, name) for name in ("at", "known_at", "row")],
    *[(row, name) for name in ("jurisdiction", "category", "collected")],
    *[(order(1), "due"), (top, "expect"), (top, "expect_orders")],
]


def changed(where: Callable[[Any], Any], values: dict[str, Any]) -> Any:
    """The good scenario with fields changed somewhere; `...` takes a field away."""
    document = copy.deepcopy(loaded(GOOD))
    target = where(document)
    for name, value in values.items():
        if value is ...:
            del target[name]
        else:
            target[name] = value
    return document


def properties(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each field that the schema declares, with the place where it does; conditions only speak of
    declared ones.
    """
    if isinstance(node, dict):
        for field, what in node.get("properties", {}).items():
            yield f"{path}.{field}", what
        for name, inner in node.items():
            if name not in ("if", "then", "else", "anyOf", "oneOf"):
                yield from properties(inner, f"{path}.{name}")


def story_names() -> list[str]:
    """The scenarios of the project, by the names of their files."""
    return sorted(path.stem for path in STORIES)


def in_docs(text: str) -> list[str]:
    """The scenarios that a document's tables list."""
    return re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)


def yaml_of(text: str) -> str:
    """The one YAML example of a document."""
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(example)


@pytest.fixture(scope="module")
def guide() -> str:
    return (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")


class TestSchema:
    def test_the_schema_is_one(self) -> None:
        """An editor that cannot read it shows nothing, and nobody notices."""
        Draft202012Validator.check_schema(SCHEMA)

    def test_the_file_is_what_the_models_say(self) -> None:
        """A field that only one of them has is refused by the product, or by the editor.

        `consentry scenario schema` writes the file.
        """
        path = PACKAGE / "forms" / "scenario.schema.json"

        assert path.read_text(encoding="utf-8") == schema_text()

    def test_every_field_is_described(self) -> None:
        """The description is the only help that whoever writes a scenario sees in the editor."""
        found = dict(properties(SCHEMA))

        assert len(found) > 50
        assert [path for path, what in found.items() if not what.get("description")] == []

    def test_every_object_is_closed(self) -> None:
        """A field that is misspelt, and taken, leaves a pause wider or narrower than it reads."""
        objects = [SCHEMA, *(one for one in SCHEMA["$defs"].values() if "properties" in one)]

        assert [
            one["description"] for one in objects if one["additionalProperties"] is not False
        ] == []

    def test_the_reasons_are_those_of_the_rules(self) -> None:
        """A new reason that no scenario may name could not be specified."""
        reasons = SCHEMA["$defs"]["expectation"]["properties"]["reason"]["enum"]

        assert reasons == [reason.value for reason in Reason if reason is not Reason.STALE]

    def test_the_parts_can_be_used_alone(self) -> None:
        """Policy files are written in editors too."""
        for name, place in (("policy", POLICY), ("pause", PAUSE), ("lift", LIFT)):
            alone = {"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]}
            document = part(place)(loaded(GOOD))

            assert complaints(document, alone) == []
            assert complaints(document | {"effectiv": "2025-01-01"}, alone) != []

    def test_the_policy_of_the_guide_fits(self) -> None:
        """What docs/policies.md shows is copied."""
        text = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
        published = {"recorded": "2025-11-03", "policy_published": loaded(yaml_of(text))}

        assert complaints({"name": "guide", "timeline": [published], "expect_orders": []}) == []

    def test_the_form_to_start_from_fits(self) -> None:
        """`consentry scenario new` hands it to whoever writes their first one."""
        text = (PACKAGE / "forms" / "scenario.template.yaml").read_text(encoding="utf-8")

        assert complaints(loaded(text)) == []
        assert run(read_scenario(text), iso_jurisdictions()) == ()


class TestSlips:
    def test_the_good_one_is_taken(self) -> None:
        """Hurt when this breaks: whoever trusts the tests below."""
        assert complaints(loaded(GOOD)) == []
        assert run(read_scenario(GOOD), iso_jurisdictions()) == ()
        assert read_scenario(written(loaded(GOOD))) == read_scenario(GOOD)

    @pytest.mark.parametrize(
        ("where", "values"), SLIPS, ids=[f"{n}-{'-'.join(v)}" for n, (_, v) in enumerate(SLIPS)]
    )
    def test_a_slip_is_refused_by_editor_and_product(
        self, where: Callable[[Any], Any], values: dict[str, Any]
    ) -> None:
        """What the editor shows as right and the product refuses, or the reverse, costs trust in
        both.
        """
        document = changed(where, values)

        assert complaints(document) != []
        with pytest.raises(InvalidInput):
            read_scenario(written(document))

    @pytest.mark.parametrize(
        ("where", "field"), NULLS, ids=[f"{n}-{field}" for n, (_, field) in enumerate(NULLS)]
    )
    def test_an_optional_field_may_be_null_or_left_out(
        self, where: Callable[[Any], Any], field: str
    ) -> None:
        """Generated files write null; that it means something else than leaving it out nobody would
        guess.
        """
        null = changed(where, {field: None})
        target = where(left_out := changed(where, {}))
        target.pop(field, None)

        assert complaints(null) == complaints(left_out) == []
        assert read_scenario(written(null)) == read_scenario(written(left_out))

    @pytest.mark.parametrize(
        ("allowed", "reason"), [(True, "PAUSED"), (False, "DEFAULT_ON"), (False, "OPTED_IN")]
    )
    def test_the_editor_shows_an_answer_that_cannot_be(self, allowed: bool, reason: str) -> None:
        """It would be looked for in the rules, and is a slip in the file."""
        assert complaints(changed(question, {"allowed": allowed, "reason": reason})) != []


class TestStories:
    @pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
    def test_a_story_fits_the_schema_and_holds(self, path: Path) -> None:
        """They are what a privacy officer reads instead of the code: each has to be true."""
        text = path.read_text(encoding="utf-8")
        scenario = read_scenario(text, file=path.name)

        assert complaints(loaded(text)) == []
        assert scenario.name == path.stem
        assert run(scenario, iso_jurisdictions()) == ()

    @pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
    def test_a_story_says_first_what_it_shows(self, path: Path) -> None:
        """A list of dates that nobody explains is no documentation."""
        first, *rest = path.read_text(encoding="utf-8").splitlines()

        assert first == "# yaml-language-server: $schema=../forms/scenario.schema.json"
        assert len(rest[0]) > 40
        assert rest[0].startswith("# ")

    @pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
    def test_a_story_asks_about_now_too(self, path: Path) -> None:
        """The trainer answers only about the end of a timeline; a story of the past alone never
        reaches it.
        """
        questions = loaded(path.read_text(encoding="utf-8"))["expect"]

        assert sum("at" not in one and "known_at" not in one for one in questions) >= 2

    def test_every_reason_is_told_more_than_once(self) -> None:
        """A reason without a story is one that nobody has thought through."""
        told = Counter(
            question.reason
            for path in STORIES
            for question in read_scenario(path.read_text(encoding="utf-8")).expect
        )

        assert {reason for reason in Reason if told[reason] < 2} == {
            Reason.STALE
        }  # that one is not of the rules


class TestGuide:
    def test_its_tables_list_every_scenario_once(self, guide: str) -> None:
        """Who looks for a case and does not find it there writes it again, or believes it is not
        decided.
        """
        assert sorted(in_docs(guide)) == story_names()

    def test_its_example_is_true(self, guide: str) -> None:
        """It is the first thing that everyone copies."""
        example = yaml_of(guide)

        assert complaints(loaded(example)) == []
        assert run(read_scenario(example), iso_jurisdictions()) == ()

    def test_it_can_be_read_in_one_go(self, guide: str) -> None:
        """A privacy officer has ten minutes."""
        assert len(guide.splitlines()) <= DOCS_LINES_MAX
