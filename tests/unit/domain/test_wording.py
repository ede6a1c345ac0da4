"""Words: terms and lengths of time as whoever signs a policy reads them."""

from __future__ import annotations

import pytest
from tests.strategies import day, terms

from consentry.domain.controls import Minors, Regime, Terms
from consentry.domain.values import DAY_MICROS, Micros
from consentry.domain.wording import duration_text, place_text, terms_summary


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (None, "no terms"),
        (terms("HK"), "default on"),
        (terms("HK", regime=Regime.NOT_OFFERED), "not offered"),
        (terms("HK", regime=Regime.UNKNOWN), "a regime that is not understood"),
        (
            terms(
                "HK",
                basis="LEGITIMATE_INTEREST",
                notice_until=day(40),
                categories=("posts", "profile"),
                collected_from=day(0),
                minors=Minors.EXCLUDE,
                purge_on_opt_out=True,
                purge_within=Micros(10 * DAY_MICROS),
            ),
            "default on, legitimate interest; notice until 10 Feb 2024; categories posts, profile; "
            "collected from 1 Jan 2024 on; no minors; purge on opt-out; purge within 10 days",
        ),
        (terms("HK", minors=Minors.UNKNOWN), "default on; only members known to be of age"),
    ],
)
def test_terms_are_told_with_every_limit_they_have(one: Terms | None, said: str) -> None:
    """A limit that is not told is a limit that nobody misses when the next version drops it."""
    assert terms_summary(one) == said


@pytest.mark.parametrize(
    ("minutes", "said"),
    [
        (1, "1 minute"),
        (90, "90 minutes"),
        (60, "1 hour"),
        (720, "12 hours"),
        (1440, "1 day"),
        (43200, "30 days"),
    ],
)
def test_a_length_of_time_is_told_in_the_largest_unit_that_fits(minutes: int, said: str) -> None:
    """A deadline of 720 hours is worked out wrongly by somebody."""
    assert duration_text(Micros(minutes * 60_000_000)) == said


def test_a_place_has_its_name_and_its_code() -> None:
    """Who reads GE thinks of Georgia or of Germany."""
    assert place_text("HK", {"HK": "Hong Kong"}.get) == "Hong Kong (HK)"
    assert place_text("EEA", {"HK": "Hong Kong"}.get) == "EEA"
    assert place_text("HK") == "HK"
