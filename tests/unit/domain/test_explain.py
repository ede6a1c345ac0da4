"""Explaining: a decision in words that a privacy officer can read out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from tests.strategies import (
    PURPOSE,
    WORLD,
    chose,
    day,
    erased,
    folded,
    histories,
    lift,
    moved,
    pause,
    policy,
    terms,
    unreadable,
)

from consentry.domain.controls import Controls, Minors, Regime
from consentry.domain.decisions import decide
from consentry.domain.events import MemberEvent
from consentry.domain.explain import date_text, sentences
from consentry.domain.values import Choice

OPEN = Controls(WORLD).after(policy(900, terms("*"), on=0))
HK = moved("HK", 1, on=1)


def said(*events: MemberEvent, controls: Controls = OPEN) -> str:
    """The first sentence about the member on day 30."""
    return sentences(decide(folded(*events), None, controls, purpose=PURPOSE, at=day(30), known_at=day(30)))[0]


def policies(**more: Any) -> Controls:
    """Terms everywhere."""
    return Controls(WORLD).after(policy(900, terms("*", **more), on=0))


class TestSentences:
    def test_a_pause_tells_both_of_its_dates(self) -> None:
        """The regulator asks since when, and since when we knew."""
        controls = OPEN.after(pause(1, "HK", on=14, name="hk-2024", effective_at=day(11), authority="PCPD"))

        assert said(HK, controls=controls) == (
            "HK is paused since 12 Jan 2024 by PCPD unknown (hk-2024 v1), recorded 15 Jan 2024"
        )

    def test_a_members_own_act_is_told_as_theirs(self) -> None:
        """Members ask what they are held to have said."""
        assert said(HK, chose(Choice.OPT_OUT, 2, on=2.5)) == (
            "the member opted out of genai_training on 3 Jan 2024 12:00Z"
        )
        assert said(HK, erased(2, on=3)) == "the member was erased on 4 Jan 2024"
        assert said(HK, unreadable(2, on=3)) == "the member is held: an event could not be read on 4 Jan 2024"

    @pytest.mark.parametrize(
        ("more", "end"),
        [
            ({}, "DEFAULT_ON"),
            ({"notice_until": day(40)}, "DEFAULT_ON, but its notice is open until 10 Feb 2024"),
            ({"regime": Regime.NOT_OFFERED}, "NOT_OFFERED"),
            ({"minors": Minors.EXCLUDE_UNLESS_ADULT}, "DEFAULT_ON"),
        ],
    )
    def test_a_policy_is_named_by_version_place_and_regime(self, more: dict[str, Any], end: str) -> None:
        """The officer looks the text of that version up."""
        assert said(HK, controls=policies(**more)) == f"policy 900 for HK: {end}"

    def test_a_voided_opt_in_is_told_by_the_lift_that_voided_it(self) -> None:
        """The member remembers having agreed, and deserves to hear why that no longer counts."""
        controls = policies(regime=Regime.OPT_IN).after(pause(1, "HK", on=3), lift(2, on=4))

        decision = decide(
            folded(HK, chose(Choice.OPT_IN, 2, on=2)), None, controls, purpose=PURPOSE, at=day(30), known_at=day(30)
        )

        assert sentences(decision)[-1] == "the lift of pause-1 on 5 Jan 2024 voided the earlier opt-in"

    @given(histories())
    def test_every_decision_can_be_explained(self, history: list[MemberEvent]) -> None:
        """An answer without a reason is one that nobody can stand up for."""
        decision = decide(folded(*history), None, OPEN, purpose=PURPOSE, at=day(30), known_at=day(30))

        assert all(sentences(decision))

    def test_a_time_of_day_is_told_only_where_there_is_one(self) -> None:
        """Dates with midnight on them read as if something happened at midnight."""
        assert date_text(day(0)) == "1 Jan 2024"
        assert date_text(day(0.25)) == "1 Jan 2024 06:00Z"
