"""What needs a second person: no policy lets anybody in, anywhere, without being told to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.strategies import PURPOSE, chose, day, folded, lift, moved, pause, policy, terms

from consentry.domain.control_checks import conflict_of_lift
from consentry.domain.controls import Control, Controls, Minors, Regime, Terms
from consentry.domain.decisions import Row, decide
from consentry.domain.jurisdictions import Jurisdictions, Membership
from consentry.domain.openings import openings
from consentry.domain.values import DAY_MICROS, AgeBand, Choice, Micros
from consentry.domain.wording import named
from consentry.wire.jurisdictions import iso_jurisdictions

TWINS = Jurisdictions(
    codes=frozenset(
        {"FR", "FR-974", "RE", "CN", "CN-HK", "HK", "US", "US-CA", "US-PR", "PR", "DE"}
    ),
    groups={"EEA": (Membership(country="FR"), Membership(country="RE"), Membership(country="DE"))},
    twins={"FR-974": "RE", "CN-HK": "HK", "US-PR": "PR"},
)
NOW = day(30)
MEMBERS = [
    (age, choice)
    for age in (AgeBand.ADULT, AgeBand.MINOR, AgeBand.UNKNOWN)
    for choice in (None, Choice.OPT_IN, Choice.OPT_OUT)
]
ROWS = [None, Row(category="a", collected=day(2)), Row(category="b", collected=day(5))]


def let_in(code: str, controls: Controls, at: Micros) -> set[tuple[int, int]]:
    """Which of MEMBERS, living in `code`, may be used with which of ROWS."""
    found = set()
    for number, (age, choice) in enumerate(MEMBERS):
        choices = [] if choice is None else [chose(choice, 2, on=2)]
        member = folded(moved(code, 1, on=1, age_band=age), *choices)
        for place, row in enumerate(ROWS):
            if decide(
                member, row, controls, purpose=PURPOSE, at=at, known_at=Micros(1 << 62)
            ).allowed:
                found.add((number, place))
    return found


ENTRIES = st.builds(
    Terms,
    jurisdictions=st.lists(
        st.sampled_from(["*", "EEA", *sorted(TWINS.codes)]), min_size=1, max_size=2
    ).map(tuple),
    purpose=st.just(PURPOSE),
    regime=st.sampled_from(
        [Regime.DEFAULT_ON, Regime.DEFAULT_ON, Regime.OPT_IN, Regime.NOT_OFFERED]
    ),
    notice_until=st.sampled_from([None, day(40)]),
    categories=st.sampled_from([None, None, ("a",), ("b",)]),
    minors=st.sampled_from([Minors.ALLOW, Minors.EXCLUDE]),
)
PLAIN = st.builds(
    terms,
    st.sampled_from(["FR", "RE", "*"]),
    regime=st.sampled_from([Regime.DEFAULT_ON, Regime.NOT_OFFERED]),
)
"""So few that what is published is often what binds already."""

VERSIONS = st.lists(PLAIN, min_size=1, max_size=1) | st.lists(
    PLAIN | ENTRIES, min_size=1, max_size=2
)


@example([[terms("FR")], [terms("RE", regime=Regime.NOT_OFFERED)]], [terms("FR")])
@example([[terms("RE")], [terms("FR", regime=Regime.NOT_OFFERED)]], [terms("RE")])
@given(st.lists(VERSIONS, min_size=1, max_size=3), VERSIONS)
def test_a_policy_that_opens_nothing_lets_nobody_in_anywhere(
    log: list[list[Terms]], entries: list[Terms]
) -> None:
    """One person could open Reunion by a policy for France that changes nothing in France."""
    before = Controls(TWINS).after(
        *(policy(900 + place, *one, on=place) for place, one in enumerate(log))
    )
    published = policy(1, *entries, on=30)
    after = before.after(published)

    if not openings(published, before, now=NOW).words:
        for code in TWINS.codes:
            for at in (NOW, day(50)):
                assert let_in(code, after, at) <= let_in(code, before, at)


@pytest.mark.parametrize(
    ("own", "other", "part"),
    [("FR", "RE", "FR-974"), ("CN", "HK", "CN-HK"), ("US", "PR", "US-PR"), ("FI", "AX", "FI-01")],
)
@pytest.mark.parametrize("is_turned", [False, True])
def test_a_part_that_is_a_country_too_is_asked_of_both_sides(
    own: str, other: str, part: str, is_turned: bool
) -> None:
    """Terms that were taken from the part by its other name would come back by one person's
    policy.
    """
    scope, closed = (other, own) if is_turned else (own, other)
    before = Controls(iso_jurisdictions()).after(
        policy(900, terms(scope), on=0), policy(901, terms(closed, regime=Regime.NOT_OFFERED), on=5)
    )

    [opens] = openings(policy(1, terms(scope), on=30), before, now=NOW).words

    assert opens == f"{PURPOSE} in {part}: it is offered, which it was not"


class TestTimes:
    BEFORE = Controls(TWINS).after(policy(900, terms("*"), on=0))

    @pytest.mark.parametrize("regime", [Regime.DEFAULT_ON, Regime.OPT_IN])
    def test_what_offers_later_opens_what_may_be_narrowed_until_then(self, regime: Regime) -> None:
        """One person sends the same terms for next week; what is closed tomorrow would open by
        itself.
        """
        scheduled = policy(1, terms("*", regime=regime), on=30, effective=37)

        assert openings(scheduled, self.BEFORE, now=NOW).words == (
            "takes effect on 7 Feb 2024, when terms may have been narrowed by then",
        )

    def test_what_offered_in_the_past_opens_the_past(self) -> None:
        """Answers about last month, which somebody was told, would change by one person's hand."""
        told = openings(policy(1, terms("*"), on=30, effective=10), self.BEFORE, now=NOW).words

        assert told == ("takes effect in the past, on 11 Jan 2024",)

    def test_a_minute_of_delay_is_no_other_time(self) -> None:
        """A second person for every policy that was typed a moment ago would soon sign anything."""
        minute = policy(1, terms("*"), on=30, effective=30 - 1 / 1440)

        assert openings(minute, self.BEFORE, now=NOW).words == ()

    @pytest.mark.parametrize("effective", [10, 30, 37])
    def test_what_offers_nothing_does_not_wait_whenever_it_takes_effect(
        self, effective: float
    ) -> None:
        """What closes a use must not wait for anybody."""
        closing = policy(1, terms("*", regime=Regime.NOT_OFFERED), on=30, effective=effective)

        assert openings(closing, self.BEFORE, now=NOW).words == ()

    def test_what_somebody_with_a_fast_clock_narrowed_is_seen(self) -> None:
        """Two gateways' clocks differ by half a second: in it a policy would open what was just
        closed.
        """
        closed = policy(901, terms("HK", regime=Regime.NOT_OFFERED), on=30)
        before = self.BEFORE.after(replace(closed, recorded_at=Micros(NOW + 500_000)))

        assert openings(policy(1, terms("*"), on=30), before, now=NOW).words != ()


class TestPurging:
    PURGING = terms("DE", purge_on_opt_out=True, purge_within=Micros(DAY_MICROS))

    @pytest.mark.parametrize("regime", [Regime.DEFAULT_ON, Regime.NOT_OFFERED])
    def test_keeping_what_was_to_be_purged_is_an_opening(self, regime: Regime) -> None:
        """Members who opt out were promised that their data goes; one person could take that
        back.
        """
        before = Controls(TWINS).after(policy(900, self.PURGING, on=0))
        keeping = replace(
            self.PURGING,
            regime=regime,
            purge_on_opt_out=False,
            purge_within=Micros(90 * DAY_MICROS),
        )

        assert openings(policy(1, keeping, on=30), before, now=NOW).words == (
            f"{PURPOSE} in DE: an opt-out no longer has stored data purged",
            f"{PURPOSE} in DE: a purge may take 90 days instead of 1",
        )
        assert openings(policy(1, self.PURGING, on=30), before, now=NOW).words == ()


def digest(entry: Terms, *log: Control) -> str:
    """Of a policy with this entry, after a log."""
    return openings(policy(1, entry, on=30), Controls(TWINS).after(*log), now=NOW).digest


def test_a_digest_tells_terms_apart_that_have_the_same_words() -> None:
    """What a second person agreed to was the step from these terms, not from stricter ones."""
    wide = policy(900, terms("DE", categories=("a", "b")), on=0)
    narrow = policy(901, terms("DE", categories=("a",)), on=5)

    assert digest(terms("DE"), wide) == digest(terms("DE"), wide, pause(2, "DE", on=6))
    assert digest(terms("DE"), wide) != digest(terms("DE"), wide, narrow)


def test_a_digest_of_a_lift_tells_which_pauses_it_ends() -> None:
    """An order that came since would end with it."""
    first, second = pause(2, "DE", on=5, version=3), pause(3, "*", on=6, version=2)
    ending, before = lift(1, on=30, version=3), Controls(TWINS).after(first)

    assert (
        openings(ending, before, now=NOW).digest
        != openings(ending, before.after(second), now=NOW).digest
    )
    assert openings(second, before, now=NOW).digest == openings(first, before, now=NOW).digest


def test_a_lift_tells_which_pauses_end_and_where_use_is_free_again() -> None:
    """The second person signs for exactly this, and for the opt-ins that become void."""
    before = Controls(TWINS).after(policy(900, terms("*"), on=0), pause(2, "DE", on=5))
    ended = before.after(lift(3, on=9))

    assert openings(lift(1, on=30), before, now=NOW).words == (
        "ends the pause pause-1 version 1",
        f"{PURPOSE} is no longer paused in DE",
    )
    assert openings(lift(1, on=30), ended, now=NOW).words == (
        "repeats an earlier lift of the pause pause-1 version 1: the opt-ins since then become "
        "void too",
    )
    assert openings(lift(1, on=30, name="other"), before, now=NOW).words == (
        "ends the pause other",
    )


def test_parts_that_are_countries_too_are_said_only_where_they_differ() -> None:
    """Thirty codes behind "everywhere" hide the one that matters."""
    everything = TWINS.codes - {"US-CA"}

    assert named(everything, TWINS, at=NOW) == "everywhere"
    assert named({"FR", "FR-974"}, TWINS, at=NOW) == "FR, FR-974"


def test_a_lift_ends_no_version_that_is_still_to_come() -> None:
    """A lift that comes first still lifts: the next order would never bind."""
    log = [pause(2, "DE", on=5, version=1), pause(3, "DE", on=6, version=4)]

    assert conflict_of_lift(lift(1, on=30, version=4), log, has_effective=False) is None
    found = conflict_of_lift(lift(1, on=30, version=5), log, has_effective=False)
    assert found is not None
    assert (found.code, found.fix) == ("input.pause_version", "give it the version 4")
