"""The sentences that `consentry demo` prints; a test compares docs/demo.svg with them.

The picture shows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from consentry.cli.demo.story import PURPOSE, ChangeEvent, Chapter
from consentry.domain.controls import Controls
from consentry.domain.decisions import decide
from consentry.domain.events import ConsentChanged, MemberErased
from consentry.domain.explain import date_text, sentences
from consentry.domain.records import Record
from consentry.domain.values import Choice, Micros
from consentry.forms.fields import parse_instant

_INDENT: Final = " " * 13
_PAST_DAY: Final = "2024-10-12"
_KNOWN_DAYS: Final = ("2024-10-12", "2024-10-15")
_NOUNS: Final = {
    "opt-out": ("opt-out or objection", "opt-outs and objections"),
    "opt-in": ("opt-in", "opt-ins"),
    "move": ("move", "moves"),
    "erasure": ("erasure", "erasures"),
}
"""Kind of change → its noun for one, and for several."""

CHECKING: Final = "Checking every row of every data set and every member against the pure rules …"
PAST_QUESTION: Final = (
    "May data of a Hong Kong member who never chose be used on 12 October 2024? The table answers:"
)
RESULT_TITLE: Final = "What the demo checked"
RIGHT: Final = "Everything is as the rules say."
WRONG: Final = "Something is not as the rules say."


def size_text(members: int, rows: int) -> str:
    """Return the demo's line about how much data it plays with."""
    return f"{members:,} members, {rows:,} rows in 3 data sets of 3 trainers."


def arrival_text(members: int, *, at: Micros, per_second: float) -> str:
    """Return the demo's line for members' first residences, and their speed to the trainers."""
    return (
        f"{_day(at)}  {members:,} members report where they live "
        f"({per_second:,.0f} a second, all the way to the trainers)"
    )


def chapter_text(chapter: Chapter, delays_ms: Mapping[str, float]) -> tuple[str, str]:
    """Return the demo's line for a chapter: its day and title, when each trainer obeyed it.

    The times are in milliseconds.
    """
    trainers = [f"{name} {delay:.0f} ms" for name, delay in sorted(delays_ms.items())]
    return (
        f"[bold]{_day(chapter.control.recorded_at)}[/]  {chapter.title}",
        f"{_INDENT}obeyed after: {'  '.join(trainers)}",
    )


def purged_text(rows: int) -> str:
    """Return the demo's line for rows that purge orders have removed since the last chapter."""
    count = f"{rows:,} rows are"
    if rows == 1:
        count = "1 row is"
    return f"{_INDENT}{count} deleted by purge orders, with receipts"


def changes_text(changes: Iterable[ChangeEvent], took: Mapping[str, float | None]) -> str:
    """Return the demo's line for what members did after a chapter.

    `took` has p50 and p99 in ms.
    """
    return (
        f"{_INDENT}then {_counted(changes)}: "
        f"p50 {took['p50']} ms, p99 {took['p99']} ms to every trainer"
    )


def past_answers(record: Record | None, controls: Controls) -> Iterator[str]:
    """Give the demo's answers to PAST_QUESTION: as known that day, and as known since.

    Each answer has two lines.
    """
    at = parse_instant(_PAST_DAY, what="at")
    for day in _KNOWN_DAYS:
        known_at = parse_instant(day, what="known_at")
        decision = decide(record, None, controls, purpose=PURPOSE, at=at, known_at=known_at)
        outcome = "excluded"
        if decision.allowed:
            outcome = "allowed"
        yield f"  by what was known on {date_text(known_at)}: {outcome}, {decision.reason}"
        yield f"    {sentences(decision)[0]}"


def result_rows(result: Mapping[str, Any], *, rows: int) -> Iterator[tuple[str, str]]:
    """Give the rows of the demo's closing table: a promise, and what was measured.

    `result` is what `consentry demo --json` prints; `rows` is how many rows were compared.
    """
    yield (
        "rows and members answered as the rules say",
        f"{result['members']:,} members, {rows:,} rows",
    )
    yield (
        "wrongly allowed / wrongly excluded",
        f"{result['wrong_allowed']} / {result['wrong_excluded']}",
    )
    yield (
        "rows deleted / left of deleted members",
        f"{result['purged_rows']:,} / {result['rows_left_of_purged_members']}",
    )
    for name, title in (
        ("event_to_table_ms", "event → table, ms (p50, p99)"),
        ("event_to_trainer_ms", "event → trainer, ms (p50, p99)"),
        ("pause_to_trainer_ms", "pause → trainer, ms (p50, p99)"),
    ):
        yield title, f"{result[name]['p50']}, {result[name]['p99']}"


def _day(instant: Micros) -> str:
    """Return the day of an instant, without its time, as wide as every other."""
    return f"{date_text(instant).split(' 00:')[0]:>11}"


def _counted(changes: Iterable[ChangeEvent]) -> str:
    """Return how many changes of each kind there are, the most frequent kind first."""
    counts = Counter(_kind(change) for change in changes)
    parts: list[str] = []
    for kind, count in counts.most_common():
        singular, plural = _NOUNS[kind]
        noun = plural
        if count == 1:
            noun = singular
        parts.append(f"{count} {noun}")
    return ", ".join(parts)


def _kind(change: ChangeEvent) -> str:
    if isinstance(change, ConsentChanged):
        if change.choice is Choice.OPT_OUT:
            return "opt-out"
        return "opt-in"
    if isinstance(change, MemberErased):
        return "erasure"
    return "move"
