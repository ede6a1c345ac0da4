"""The headers of messages: read with care, refused beyond a number, bounded when they are kept."""

from __future__ import annotations

from typing import Any

import pytest

from consentry.kafka.headers import headers_of, headers_of_all
from consentry.wire.headers import (
    HEADER_NAME_BYTES_MAX,
    HEADER_VALUE_BYTES_MAX,
    HEADERS_MAX,
    UNREADABLE,
    Headers,
    are_refused,
    kept_headers,
)


class Message:
    """A message as the client hands it out; None for one whose header names are no text."""

    def __init__(
        self, headers: list[tuple[str, bytes | None]] | None, *, is_bad: bool = False
    ) -> None:
        self._headers, self._is_bad = headers, is_bad
        self.asked = 0

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        """Fails the first time as the real one does; the second time it would hand out a hole."""
        self.asked += 1
        if self._is_bad:
            raise SystemError("returned a result with an exception set")
        return self._headers


class TestReading:
    def test_headers_are_given_as_they_are_and_none_as_none(self) -> None:
        """Nearly every message has few or none; nothing may be made of that."""
        some: Any = Message([("a", b"1"), ("a", None)])
        none: Any = Message(None)
        empty: Any = Message([])

        assert headers_of(some) == [("a", b"1"), ("a", None)]
        assert (headers_of(none), headers_of(empty)) == (None, None)

    def test_names_that_are_no_text_are_asked_for_once_and_end_nothing(self) -> None:
        """Asked again, the client gives a list with a hole in it, and whoever touches that is
        ended.
        """
        bad: Any = Message(None, is_bad=True)
        good: Any = Message([("a", b"1")])

        assert headers_of(bad) is UNREADABLE
        assert headers_of_all([good, bad, good]) == [[("a", b"1")], UNREADABLE, [("a", b"1")]]
        assert bad.asked == 2


class TestRefusing:
    @pytest.mark.parametrize(
        ("count", "refused"), [(1, False), (32, False), (33, True), (10_000, True)]
    )
    def test_more_than_32_are_refused(self, count: int, refused: bool) -> None:
        """Our own producers send about six; thousands are there to make somebody work."""
        assert are_refused([("a", b"")] * count) is refused

    def test_none_are_fine_and_unreadable_ones_are_refused(self) -> None:
        """Whoever cannot be read may have said anything."""
        assert not are_refused(None)
        assert are_refused(UNREADABLE)


class TestKeeping:
    def test_the_first_are_kept_cut_to_their_bounds_and_ours_come_last(self) -> None:
        """Quarantine has to take whatever is refused, and an operator has to know where it came
        from.
        """
        many: Headers = [("n" * 200, b"v" * 600), ("none", None), *[("more", b"")] * 10_000]

        kept = kept_headers(many, {"orig.offset": "7", "error_class": "headers"})

        assert kept[0] == ("n" * HEADER_NAME_BYTES_MAX, b"v" * HEADER_VALUE_BYTES_MAX)
        assert kept[1] == ("none", None)
        assert kept[HEADERS_MAX:] == [("orig.offset", b"7"), ("error_class", b"headers")]

    def test_no_original_header_passes_for_one_of_ours(self) -> None:
        """A reader that takes the first of two would look at another message, and release the wrong
        member.
        """
        forged: Headers = [("orig.offset", b"999"), ("a", b"1")]

        assert kept_headers(forged, {"orig.offset": "7"}) == [("a", b"1"), ("orig.offset", b"7")]

    def test_a_name_is_never_cut_within_a_character(self) -> None:
        """It would be no text any more, and nobody could read the message in quarantine."""
        [(name, _)] = kept_headers([("é" * 100, b"")], {})

        assert name == "é" * (HEADER_NAME_BYTES_MAX // 2)

    def test_of_none_and_of_unreadable_ones_nothing_is_kept(self) -> None:
        """What is kept is what could be read."""
        assert kept_headers(None, {}) == kept_headers(UNREADABLE, {}) == []
