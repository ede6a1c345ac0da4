"""The demo's sentences, and the picture of them in the README, which must say what they say today."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from tests.strategies import folded, moved

from consentry.cli.demo import texts
from consentry.cli.demo.story import StoryMaker
from consentry.domain.controls import Controls
from consentry.wire.jurisdictions import iso_jurisdictions

PICTURE = Path(__file__).parents[3] / "docs" / "demo.svg"
CHAPTERS = StoryMaker(100).chapters(3)


def words(text: str) -> str:
    """A text without its numbers and line breaks: what is measured differs from run to run."""
    without_numbers = re.sub(r"\d[\d,.]*", "#", text)
    return " ".join(without_numbers.split())


def picture_words() -> str:
    """All words of the picture, line after line."""
    lines = re.findall(r"<text [^>]*>(.*?)</text>", PICTURE.read_text(), flags=re.DOTALL)
    return words(unescape(" ".join(lines)))


def past_answers() -> list[str]:
    """The answers about a member in Hong Kong of whom nothing else is known."""
    controls = Controls(iso_jurisdictions()).after(*(chapter.control for chapter in CHAPTERS))
    return list(texts.past_answers(folded(moved("HK", 1, on=244, member="m")), controls))


def demo_lines() -> list[str]:
    """What a run prints, but for the numbers and for what members happen to do."""
    result = {
        "members": 20_000,
        "wrong_allowed": 0,
        "wrong_excluded": 0,
        "purged_rows": 7_000,
        "rows_left_of_purged_members": 0,
        "event_to_table_ms": {"p50": 1.5, "p99": 2.5},
        "event_to_trainer_ms": {"p50": 1.5, "p99": 2.5},
        "pause_to_trainer_ms": {"p50": 1.5, "p99": 2.5},
    }
    lines = [
        texts.size_text(20_000, 70_000),
        texts.arrival_text(20_000, at=CHAPTERS[0].control.recorded_at, per_second=9.0).split("  ")[
            1
        ],
    ]
    for chapter in CHAPTERS:
        lines.append(chapter.title)
    lines += [texts.purged_text(7_000), texts.CHECKING, texts.PAST_QUESTION, *past_answers()]
    lines.append(texts.RESULT_TITLE)
    for promise, _ in texts.result_rows(result, rows=70_000):
        lines.append(promise)
    return [*lines, texts.RIGHT]


class TestPicture:
    @pytest.mark.parametrize("line", demo_lines())
    def test_the_picture_says_what_the_demo_says_today(self, line: str) -> None:
        """A reader of the README would look for words that nothing prints any more.

        `consentry demo --picture docs/demo.svg` makes it anew.
        """
        assert words(line) in picture_words()

    def test_the_picture_loads_nothing_from_the_network(self) -> None:
        """GitHub shows a picture only from itself."""
        assert "url(http" not in PICTURE.read_text()
        assert "@font-face" not in PICTURE.read_text()


class TestTexts:
    def test_one_is_not_several(self) -> None:
        """`1 rows` reads like a fault of the whole."""
        assert texts.purged_text(1).strip() == "1 row is deleted by purge orders, with receipts"
        assert texts.purged_text(1200).strip().startswith("1,200 rows are deleted")

    def test_what_members_did_is_counted_by_kind(self) -> None:
        """Each kind takes another way through the rules."""
        changes = [change for chapter in CHAPTERS for change in chapter.changes]

        text = texts.changes_text(changes, {"p50": 1.0, "p99": 2.0})

        assert "opt-outs and objections" in text
        assert text.endswith("p50 1.0 ms, p99 2.0 ms to every trainer")

    def test_the_past_has_two_answers(self) -> None:
        """On 12 October the pause of the 11th was not recorded yet: both answers are right."""
        then, _, since, because = past_answers()

        assert then.endswith("12 Oct 2024: allowed, DEFAULT_ON")
        assert since.endswith("15 Oct 2024: excluded, PAUSED")
        assert "recorded 14 Oct 2024" in because

    def test_the_story_is_the_same_in_every_run(self) -> None:
        """Numbers of two runs could not be compared."""
        again = StoryMaker(100).chapters(3)

        assert [chapter.changes for chapter in again] == [chapter.changes for chapter in CHAPTERS]
