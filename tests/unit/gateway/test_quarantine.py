"""What may be sent again from quarantine, and what came after it that forbids to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import pytest
from tests.strategies import MEMBER, PURPOSE, chose, day, erased, moved
from tests.unit.gateway.in_memory import CATALOG

from consentry.domain.events import SentEvent
from consentry.domain.values import Choice
from consentry.gateway.quarantine import described, overtaken
from consentry.wire.events import write_event
from consentry.wire.messages import StoredMessage
from consentry.wire.quarantine import QuarantineEntry

OPT_IN: Final = chose(Choice.OPT_IN, 1, on=1, observed=0)
GARBAGE: Final = b"\0\0\0\0\1garbage"


def why_not(event: SentEvent, *since: SentEvent | bytes, key: bytes = MEMBER.encode()) -> str:
    """Why the event may not be sent again after these."""
    entry = QuarantineEntry(
        partition=0,
        offset=0,
        appended_at=day(1),
        error_class="x",
        schema_id=1,
        key=MEMBER.encode(),
        value=write_event(event, CATALOG),
    )
    values = [one if isinstance(one, bytes) else write_event(one, CATALOG) for one in since]
    messages: Sequence[StoredMessage] = [
        StoredMessage(0, number, key, value, day(2)) for number, value in enumerate(values, start=1)
    ]
    return overtaken(event, entry, messages, CATALOG)


@pytest.mark.parametrize("choice", list(Choice))
def test_an_opt_in_is_not_sent_again_after_another_choice(choice: Choice) -> None:
    """They took it back while it lay in quarantine; sent again it would come last, and count."""
    assert "chose again" in why_not(OPT_IN, chose(choice, 2, on=2, observed=0))


def test_an_opt_in_is_not_sent_again_after_what_cannot_be_read() -> None:
    """It may be the choice by which they took it back."""
    assert "may have" in why_not(OPT_IN, GARBAGE)


def test_an_opt_in_is_overtaken_by_nothing_else() -> None:
    """A member who moved, or another member, said nothing about this."""
    other = replace(chose(Choice.OPT_OUT, 2, on=2), purpose="another")

    assert why_not(OPT_IN, other, moved("DE", 3, on=2), OPT_IN) == ""
    assert why_not(OPT_IN, chose(Choice.OPT_OUT, 2, on=2), GARBAGE, key=b"m:other") == ""
    assert why_not(OPT_IN) == ""


@pytest.mark.parametrize(
    "event", [chose(Choice.OPT_OUT, 1, on=1), chose(Choice.UNKNOWN, 1, on=1), erased(1, on=1)]
)
def test_what_excludes_may_always_be_said_again(event: SentEvent) -> None:
    """Refused, an opt-out of which nobody else knows would be lost."""
    assert why_not(event, chose(Choice.OPT_IN, 2, on=2, observed=0), GARBAGE) == ""


def test_a_relocation_is_overtaken_by_another_or_by_what_cannot_be_read() -> None:
    """Sent again it would move the member back, perhaps out from under a pause."""
    move = moved("HK", 1, on=1)

    assert "relocated again" in why_not(move, moved("US", 2, on=2))
    assert why_not(move, GARBAGE)
    assert why_not(move, chose(Choice.OPT_OUT, 2, on=2), move) == ""


def test_what_is_replayed_is_told_to_who_approves_it() -> None:
    """A second person who sees a number only cannot say that it must not be."""
    assert described(OPT_IN).startswith(f"a consent change: OPT_IN for {PURPOSE}, effective ")
    assert described(moved("HK", 1, on=1)).startswith("a relocation: HK, age band ")
    assert described(erased(1, on=1)).startswith("an erasure")
    assert MEMBER not in described(OPT_IN)
