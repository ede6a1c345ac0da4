"""A scenario of the rules as data: what was recorded, in order, and what must be answered.

Source: docs/scenarios.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from consentry.domain.controls import Control, Controls
from consentry.domain.decisions import Decision, Row, decide
from consentry.domain.events import ConsentChanged, MemberEvent, MemberReleased
from consentry.domain.explain import date_text, sentences
from consentry.domain.jurisdictions import Jurisdictions
from consentry.domain.orders import PurgeOrder, PurgeReason, order_for_fact, order_for_pause
from consentry.domain.records import Record, fold
from consentry.domain.values import MemberId, Micros, Reason


class TimelineEntry(NamedTuple):
    """One entry in the timeline of a scenario of the rules.

    `observed_entry`: the number, from 1, of the entry that a choice or release had seen.
    """

    what: MemberEvent | Control
    observed_entry: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """A scenario's question to the rules and its right answer; times in microseconds."""

    member: MemberId
    purpose: str
    at: Micros
    known_at: Micros
    row: Row | None
    allowed: bool
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedOrder:
    """A purge order that must be open at the end of a scenario of the rules.

    `jurisdictions` are those of a pause's scope, in any order.
    """

    because: PurgeReason
    member: MemberId | None = None
    pause: str | None = None
    jurisdictions: frozenset[str] = frozenset()
    due_at: Micros | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario of the rules: a timeline in log order, the questions, and the open orders.

    Orders that are None are not looked at.
    """

    name: str
    timeline: tuple[TimelineEntry, ...]
    expect: tuple[Expectation, ...]
    expect_orders: tuple[ExpectedOrder, ...] | None

    @property
    def controls(self) -> tuple[Control, ...]:
        """The scenario's pauses, lifts and policies, in log order."""
        return tuple(one.what for one in self.timeline if isinstance(one.what, Control))

    @property
    def end(self) -> Micros:
        """The time at which the scenario's last entry was recorded; 0 for an empty timeline."""
        if not self.timeline:
            return Micros(0)
        return self.timeline[-1].what.recorded_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A scenario's expectation that did not hold by the rules.

    `where` is its place in the file, such as `expect[3]`.
    """

    where: str
    question: str
    expected: str
    got: str
    because: tuple[str, ...] = ()


class History(NamedTuple):
    """The result of a scenario's timeline by the rules: records, controls, events, orders.

    There is a record of each member.

    The events carry the versions that had been seen.
    """

    records: dict[MemberId, Record]
    controls: Controls
    events: tuple[MemberEvent, ...]
    orders: tuple[PurgeOrder, ...]


def history(scenario: Scenario, jurisdictions: Jurisdictions) -> History:
    """Fold a scenario's timeline by the rules.

    An observed entry becomes the version that the member's record had at that entry.
    """
    controls = Controls(jurisdictions).after(*scenario.controls)
    records: dict[MemberId, Record] = {}
    versions: dict[MemberId, list[tuple[int, int]]] = {}
    events: list[MemberEvent] = []
    orders: list[PurgeOrder] = []
    for number, (what, observed_entry) in enumerate(scenario.timeline, start=1):
        if isinstance(what, Control):
            continue
        seen = versions.setdefault(what.member, [])
        event = what
        if isinstance(what, ConsentChanged | MemberReleased) and observed_entry is not None:
            event = replace(what, observed_version=_version_at(seen, observed_entry))
        record = fold(records.get(event.member), event)
        records[event.member] = record
        seen.append((number, record.version))
        events.append(event)
        order = order_for_fact(event.member, event.fact(), record, controls)
        if order is not None:
            orders.append(order)
    for pause in controls.pauses:
        order = order_for_pause(pause, controls)
        if order is not None:
            orders.append(order)
    return History(records, controls, tuple(events), tuple(orders))


def _version_at(versions: Sequence[tuple[int, int]], entry: int) -> int:
    highest = 0
    for number, version in versions:
        if number <= entry:
            highest = max(highest, version)
    return highest


def answers(scenario: Scenario, jurisdictions: Jurisdictions) -> tuple[Decision, ...]:
    """Return the answer of the rules to each question of a scenario."""
    folded = history(scenario, jurisdictions)
    return tuple(_answer(question, folded) for question in scenario.expect)


def _answer(question: Expectation, folded: History) -> Decision:
    return decide(
        folded.records.get(question.member),
        question.row,
        folded.controls,
        purpose=question.purpose,
        at=question.at,
        known_at=question.known_at,
    )


def open_orders(scenario: Scenario, jurisdictions: Jurisdictions) -> tuple[PurgeOrder, ...]:
    """The purge orders that a scenario's timeline opens by the rules."""
    return history(scenario, jurisdictions).orders


def run(scenario: Scenario, jurisdictions: Jurisdictions) -> tuple[Failure, ...]:
    """Hold the rules against a scenario; no failures means that every expectation holds."""
    folded = history(scenario, jurisdictions)
    decisions = [_answer(question, folded) for question in scenario.expect]
    return (*failed_answers(scenario, decisions), *failed_orders(scenario, folded.orders))


def failed_answers(scenario: Scenario, decisions: Sequence[Decision | None]) -> Iterator[Failure]:
    """The questions of a scenario that the rules answered otherwise than expected.

    None stands for one that was not asked.
    """
    for place, (question, got) in enumerate(zip(scenario.expect, decisions, strict=True)):
        if got is not None and (got.allowed, got.reason) != (question.allowed, question.reason):
            yield Failure(
                where=f"expect[{place}]",
                question=_question_words(question),
                expected=_words(question.allowed, question.reason),
                got=_words(got.allowed, got.reason),
                because=sentences(got),
            )


def failed_orders(scenario: Scenario, orders: Sequence[PurgeOrder]) -> Iterator[Failure]:
    """The purge orders of a scenario that are missing, and those that nobody expects."""
    if scenario.expect_orders is None:
        return
    left = list(orders)
    missing = []
    for place, wanted in enumerate(scenario.expect_orders):
        found = next((order for order in left if _fits(wanted, order)), None)
        if found is None:
            missing.append((place, wanted))
        else:
            left.remove(found)
    opened = "no other order is open"
    if left:
        opened = "; ".join(_order_words(order) for order in left)
    for place, wanted in missing:
        yield Failure(
            where=f"expect_orders[{place}]",
            question="open orders",
            expected=_order_words(wanted),
            got=opened,
        )
    if left and not missing:
        yield Failure(
            where="expect_orders", question="open orders", expected="no other order", got=opened
        )


def _fits(wanted: ExpectedOrder, order: PurgeOrder) -> bool:
    if wanted.because != order.because:
        return False
    if (wanted.member, wanted.pause) != (order.member, order.pause):
        return False
    if wanted.jurisdictions and wanted.jurisdictions != _places(order):
        return False
    return wanted.due_at is None or wanted.due_at == order.due_at


def _places(order: ExpectedOrder | PurgeOrder) -> frozenset[str]:
    if isinstance(order, ExpectedOrder):
        return order.jurisdictions
    if order.scope is not None and order.pause:
        return frozenset(order.scope.jurisdictions)
    return frozenset()


def _order_words(order: ExpectedOrder | PurgeOrder) -> str:
    text = f"{order.because} of {order.member or order.pause}"
    places = sorted(_places(order))
    if places:
        text += f" in {', '.join(places)}"
    if order.due_at is not None:
        text += f", due {date_text(order.due_at)}"
    return text


def _question_words(question: Expectation) -> str:
    row = question.row
    text = f"{question.member}, {question.purpose}"
    if row is not None:
        text += f", row {row.jurisdiction or '?'}/{row.category or '?'}"
        if row.collected is not None:
            text += f" of {date_text(row.collected)}"
    text += f", at {date_text(question.at)}"
    if question.known_at != question.at:
        text += f", known {date_text(question.known_at)}"
    return text


def _words(allowed: bool, reason: Reason) -> str:
    if allowed:
        return f"allowed, {reason}"
    return f"excluded, {reason}"
