"""The base of all documents: what does not fit is refused with its path, and never guessed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BeforeValidator, Field

from consentry.domain.errors import InvalidInput
from consentry.domain.values import parse_member_id
from consentry.forms.document import Document, InvalidDocument, ListOf, as_validator, refuse


def parse_even(value: Any) -> Any:
    """Refuse a list with an odd number in it."""
    for index, number in enumerate(value if isinstance(value, list) else ()):
        if isinstance(number, int) and number % 2:
            refuse(f"[{index}]", number, "is odd", "write an even one")
    return value


class Leaf(Document):
    """A document inside of one."""

    number: int
    word: Literal["A", "B"] = "A"


class Sheet(Document):
    """A document with one field of each type."""

    name: str
    leaf: Leaf
    leaves: ListOf[Leaf] = ()
    on: bool = False
    member: Annotated[str, BeforeValidator(as_validator(parse_member_id))] = "m"
    even: Annotated[ListOf[int], BeforeValidator(as_validator(parse_even))] = ()
    small: int = Field(1, le=3)

    @classmethod
    def check_fields(cls, fields: Any) -> None:
        """Refuse a sheet called `whole` that has leaves."""
        if fields.get("name") == "whole" and "leaves" in fields:
            refuse("leaves", fields["leaves"], "does not go with the name", "leave it out")


class Note(Document):
    """A document in which null means the same as nothing."""

    null_is_absent: ClassVar[bool] = True
    text: str
    count: int = 1


GOOD: dict[str, Any] = {"name": "a", "leaf": {"number": 1}}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*Sheet.model_fields, *Leaf.model_fields]) | st.integers(),
            inner,
            max_size=4,
        )
    ),
)


def refusal(changed: dict[str, Any], path: str = "") -> str:
    """What is said to the good sheet with these fields changed."""
    with pytest.raises(InvalidDocument) as refused:
        Sheet.read({**GOOD, **changed}, name="the sheet", path=path)
    return refused.value.message


class TestReading:
    def test_what_fits_is_read_and_cannot_be_changed(self) -> None:
        """A document that changes after its check is not the one that was checked."""
        sheet = Sheet.read({**GOOD, "leaves": [{"number": 2, "word": "B"}]}, name="the sheet")

        assert sheet.leaves == (Leaf(number=2, word="B"),)
        with pytest.raises(ValueError, match="frozen"):
            sheet.name = "b"

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"leaf": None}, "In leaf: 'None' is not a mapping of fields."),
            ({"leaf": {}}, "In leaf: 'number' is missing."),
            ({"leaf": {"number": True}}, "In leaf.number: 'True' is not a whole number."),
            ({"leaf": {"number": "1"}}, "In leaf.number: '1' is not a whole number."),
            (
                {"leaf": {"number": 1, "word": "C"}},
                "In leaf.word: 'C' is not one of the known words.",
            ),
            ({"leaves": 5}, "In leaves: '5' is not a list."),
            ({"leaves": [{"number": 1}, {}]}, "In leaves[1]: 'number' is missing."),
            (
                {"leaves": [{"number": 1, "n": 2}]},
                "In leaves[0].n: 'n' is not a field of leaves[0].",
            ),
            ({"name": 5}, "In name: '5' is not a text."),
            ({"leaf": "\ud800"}, "In leaf: '\\ud800' is not a mapping of fields."),
            ({"on": 1}, "In on: '1' is neither true nor false."),
            ({"even": [2, 3]}, "In even[1]: '3' is odd."),
            ({"name": "whole", "leaves": []}, "In leaves: '[]' does not go with the name."),
            ({"x": 1}, "In x: 'x' is not a field of the sheet."),
            ({"\ud800": 1}, "In \ud800: '\\ud800' is not a field of the sheet."),
            ({5: 1}, "In 5: '5' is not a field of the sheet."),
        ],
    )
    def test_each_slip_is_refused_with_the_path_of_its_field(
        self, changed: dict[str, Any], message: str
    ) -> None:
        """Whoever wrote the document finds the slip where it is."""
        assert refusal(changed) == message

    def test_a_misspelt_field_is_reported_before_the_one_that_it_leaves_missing(self) -> None:
        """Told that `number` is missing, a person who wrote `nummer` looks for long."""
        assert (
            refusal({"leaf": {"nummer": 1}}) == "In leaf.nummer: 'nummer' is not a field of leaf."
        )

    def test_the_path_of_the_text_around_it_stands_before_the_fields(self) -> None:
        """The line in a file is found by it."""
        assert refusal({"leaf": {}}, "entry[2]").startswith("In entry[2].leaf: ")
        assert refusal({"x": 1}, "entry[2]").endswith("is not a field of entry[2].")

    def test_a_document_that_is_no_mapping_is_called_by_its_name(self) -> None:
        """An empty file has no field that could be named."""
        with pytest.raises(
            InvalidDocument, match="In the sheet: 'None' is not a mapping"
        ) as refused:
            Sheet.read(None, name="the sheet")

        assert refused.value.fix == "write fields such as name, leaf, leaves"

    def test_what_the_domain_refuses_is_reported_at_the_field(self) -> None:
        """The rules have no idea of paths, and need none."""
        message = refusal({"member": "a b"})

        assert message.startswith("In member: The member id 'a b' is not a pseudonym")
        assert message.endswith(".")
        assert not message.endswith("..")

    def test_a_bound_that_has_no_sentence_of_ours_is_refused_all_the_same(self) -> None:
        """A type that a later model uses first must not end in a traceback."""
        assert refusal({"small": 4}).startswith("In small: '4' does not fit: ")

    @given(anything)
    def test_any_value_is_read_or_refused(self, data: object) -> None:
        """Whatever a file holds, it is said what is wrong with it."""
        for document in (data, {**GOOD, "leaf": data}, {**GOOD, "leaves": [data]}):
            try:
                Sheet.read(document, name="the sheet")
            except InvalidInput as error:
                assert error.code == "input.form"  # noqa: PT017 - either outcome is right


class TestNull:
    def test_null_is_read_as_left_out_where_the_document_says_so(self) -> None:
        """Generated files write null for what they do not say."""
        assert Note.read({"text": "a", "count": None}, name="the note").count == 1
        with pytest.raises(InvalidDocument, match="'text' is missing"):
            Note.read({"text": None}, name="the note")

    def test_null_is_a_value_elsewhere(self) -> None:
        """Where a program writes every field, one that is null by mistake is damage."""
        assert refusal({"on": None}) == "In on: 'None' is neither true nor false."
