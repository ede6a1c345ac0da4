"""Names that people and files give, and the errors that tell them what is wrong with one."""

from __future__ import annotations

import pytest

from consentry.domain.errors import ConsentryError, InvalidInput, Refused, UndecodableEvent
from consentry.domain.values import Reason, parse_member_id, parse_name


class TestMemberIds:
    @pytest.mark.parametrize("text", ["a", "A-z_0:9", "x" * 64])
    def test_a_pseudonym_is_taken_as_it_is(self, text: str) -> None:
        """The Kafka key is exactly these bytes; any change would start a second record of the same
        person.
        """
        assert parse_member_id(text) == text

    @pytest.mark.parametrize(
        "text", ["", "x" * 65, "a b", "a/b", "jane@example.org", "ä", "٣", "a\n"]
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        """A name or an address must not become a key that is copied to every trainer."""
        with pytest.raises(InvalidInput) as refused:
            parse_member_id(text)

        assert refused.value.code == "input.member_id"
        assert f"The member id {text!r} is" in refused.value.message
        assert "pseudonym, not a name" in refused.value.fix

    @pytest.mark.parametrize(
        ("given", "kind"), [(None, "NoneType"), (7, "int"), (b"a", "bytes"), (["a"], "list")]
    )
    def test_what_is_no_text_is_refused_like_any_other(self, given: object, kind: str) -> None:
        """A null in a data frame is asked about as readily as a name."""
        with pytest.raises(InvalidInput) as refused:
            parse_member_id(given)

        assert (refused.value.code, f"of type {kind} is" in refused.value.message) == (
            "input.member_id",
            True,
        )

    def test_no_more_than_80_characters_of_it_are_told(self) -> None:
        """Somebody's letter that got into the wrong column does not belong into a log."""
        with pytest.raises(InvalidInput) as refused:
            parse_member_id("x" * 90)

        assert f"'{'x' * 80}'" in str(refused.value)


class TestNames:
    @pytest.mark.parametrize("text", ["a", "0", "hk-2024", "genai_training", "x.y", "x" * 64])
    def test_a_name_is_taken_as_it_is(self, text: str) -> None:
        """It is compared letter by letter with what policies and rows say."""
        assert parse_name(text, what="purpose") == text

    @pytest.mark.parametrize(
        "text", ["", "x" * 65, "Ads", "-a", ".a", "_a", "a b", "a:b", "ä", "٣", "a\n"]
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        """A pause of `Ads` would cover nothing where rows say `ads`."""
        with pytest.raises(InvalidInput) as refused:
            parse_name(text, what="data set")

        assert refused.value.code == "input.data_set"
        assert f"The data set {text!r} is" in refused.value.message

    def test_no_more_than_80_characters_of_it_are_told(self) -> None:
        """Whatever was pasted by mistake."""
        with pytest.raises(InvalidInput) as refused:
            parse_name("x" * 90, what="pause")

        assert f"'{'x' * 80}'" in str(refused.value)

    @pytest.mark.parametrize(
        ("what", "example"),
        [
            ("purpose", "genai_training"),
            ("category", "posts"),
            ("pause", "hk-2024"),
            ("subscriber", "ranker-2"),
        ],
    )
    def test_the_refusal_shows_a_right_one(self, what: str, example: str) -> None:
        """People learn a format from one example, not from a rule."""
        with pytest.raises(InvalidInput, match=f"Fix: use a {what} such as {example}"):
            parse_name("", what=what)


class TestReasons:
    def test_two_reasons_allow_and_every_other_one_excludes(self) -> None:
        """A reason that is added later must not allow anybody by itself."""
        allowing = [reason for reason in Reason if reason.allows]

        assert allowing == [Reason.OPTED_IN, Reason.DEFAULT_ON]


class TestErrors:
    def test_an_error_tells_what_failed_its_code_and_the_fix(self) -> None:
        """Scripts go by the code, people by the sentence and what they can do."""
        error = Refused("The value is wrong.", code="input.value", fix="correct it")

        assert str(error) == "The value is wrong. [input.value] Fix: correct it"
        assert (error.message, error.code, error.fix) == (
            "The value is wrong.",
            "input.value",
            "correct it",
        )
        assert error.args == ("The value is wrong.",)

    def test_an_error_without_a_fix_promises_none(self) -> None:
        """`Fix:` and then nothing reads like a fault of the program."""
        assert str(ConsentryError("It is so.", code="state.so")) == "It is so. [state.so]"

    def test_an_unreadable_event_names_its_class_and_where_the_bytes_are(self) -> None:
        """The class is a label on a graph that wakes somebody; the bytes are what they then look
        for.
        """
        error = UndecodableEvent("frame", "The frame is cut off.")

        assert (error.error_class, error.code) == ("frame", "undecodable.frame")
        assert (
            str(error)
            == "The frame is cut off. [undecodable.frame] Fix: the raw bytes are in quarantine"
        )
