"""What a control would change, at its edges: who is counted with whom, what is told first, and what
opens nothing.
"""

from __future__ import annotations

import pytest
from tests.strategies import PURPOSE, WORLD, chose, day, folded, moved, pause, policy, terms

from consentry.domain.controls import Control, Controls, Minors, Regime, Terms
from consentry.domain.events import MemberEvent
from consentry.domain.impact import Census, Impact, moments_of, purposes_of, scope_of
from consentry.domain.jurisdictions import Jurisdictions
from consentry.domain.openings import in_force, terms_changes
from consentry.domain.openings import widenings as opened_by
from consentry.domain.records import Record
from consentry.domain.values import Choice, Micros, Reason
from consentry.domain.wording import named

NOW = {"at": day(30), "known_at": day(30)}
OPEN = Controls(WORLD).after(policy(900, terms("*"), on=0))


def record(*events: MemberEvent) -> Record:
    """The record after these events."""
    found = folded(*events)
    assert found is not None
    return found


def impact_of(control: Control, records: list[Record], before: Controls) -> Impact:
    """What a control changes for these members on day 30."""
    after = before.after(control)
    census = Census(after, purposes=purposes_of(control, after), **NOW)
    for one in records:
        census.add(one)
    return census.compare(before, after, scope_of(control, after))


class TestCounting:
    def test_a_kind_of_which_all_were_taken_back_hides_no_other(self) -> None:
        """The members who were counted after it would be left out of the number that the desk
        signs.
        """
        census = Census(OPEN, purposes=(PURPOSE,), **NOW)
        taken_back, kept = record(moved("US", 1, on=1)), record(moved("HK", 1, on=1))

        census.add(taken_back)
        census.add(kept)
        census.add(taken_back, -1)

        found = census.compare(OPEN, OPEN.after(pause(1, "*", on=30)), ("*",))
        assert (found.members, found.covered, found.excluded()) == (1, {"HK": 1}, {PURPOSE: 1})

    def test_members_of_several_places_are_added_up(self) -> None:
        """A pause of two countries would be told as large as the second."""
        found = impact_of(
            pause(1, "HK", "US", on=30),
            [
                record(moved("HK", 1, on=1)),
                record(moved("US", 1, on=1)),
                record(moved("US", 1, on=1)),
            ],
            OPEN,
        )

        assert found.excluded() == {PURPOSE: 3}


class TestOrder:
    def test_what_opens_use_is_told_first_and_then_what_closes_it(self) -> None:
        """Whoever signs reads the first lines."""
        before = Controls(WORLD).after(
            policy(
                900,
                terms("HK", "CH"),
                terms("US", regime=Regime.NOT_OFFERED),
                terms("DE", regime=Regime.OPT_IN),
                on=0,
            )
        )
        published = policy(
            1, terms("US"), terms("HK", "CH", "DE", regime=Regime.NOT_OFFERED), on=30
        )

        found = impact_of(
            published, [record(moved(code, 1, on=1)) for code in ("CH", "DE", "HK", "US")], before
        )

        assert [(one.jurisdiction, one.was_allowed, one.is_allowed) for one in found.changes] == [
            ("US", False, True),
            ("CH", True, False),
            ("HK", True, False),
            ("DE", False, False),
        ]

    def test_of_one_place_the_change_of_most_members_is_told_first(self) -> None:
        """Three members in a hundred thousand come after the others."""
        before = Controls(WORLD).after(policy(900, terms("*", regime=Regime.OPT_IN), on=0))
        home = moved("HK", 1, on=1)
        records = [record(home), record(home), record(home, chose(Choice.OPT_OUT, 2, on=2))]

        found = impact_of(pause(1, "HK", on=30), records, before)

        assert [(one.before, one.members) for one in found.changes] == [
            (Reason.OPT_IN_REQUIRED, 2),
            (Reason.OPTED_OUT, 1),
        ]


class TestMoments:
    def test_a_notice_that_ends_as_the_policy_begins_is_no_other_moment(self) -> None:
        """The same numbers would be told twice, and look like a change."""
        published = policy(
            1,
            terms("HK", notice_until=day(40)),
            terms("US", notice_until=day(50)),
            on=30,
            effective=40,
        )

        assert moments_of(published, now=day(30)) == (day(40), day(50))


class TestTerms:
    def test_a_group_is_the_countries_of_the_day_that_is_asked_about(self) -> None:
        """A country that has left it would be announced terms that do not bind there."""
        published = policy(1, terms("EEA", regime=Regime.OPT_IN), on=1)
        after = OPEN.after(published)

        for on, countries in ((10, ("DE", "GB")), (30, ("DE",))):
            [change] = terms_changes(published, OPEN, after, at=day(on), known_at=day(30))
            assert change.jurisdictions == countries

    def test_a_change_has_its_purpose_and_both_terms_without_their_places(self) -> None:
        """The same terms said of other countries are no other terms."""
        [change] = terms_changes(
            published := policy(1, terms("HK", regime=Regime.OPT_IN), on=30),
            OPEN,
            OPEN.after(published),
            **NOW,
        )

        assert (change.purpose, change.jurisdictions) == (PURPOSE, ("HK",))
        assert change.old == terms()
        assert change.new == terms(regime=Regime.OPT_IN)

    def test_where_a_policy_is_in_force_does_not_depend_on_pauses(self) -> None:
        """Its terms bind there, whether or not they can be used at present."""
        published = policy(1, terms("HK"), on=1)
        controls = OPEN.after(published, pause(2, "HK", on=2, purposes=("ads",)))

        assert in_force(published, controls, **NOW) == {PURPOSE: ["HK"]}


LIMITED = terms("HK", notice_until=day(40), categories=("posts",), collected_from=day(5))


class TestOpenings:
    @pytest.mark.parametrize("regime", [Regime.NOT_OFFERED, Regime.UNKNOWN])
    @pytest.mark.parametrize(
        "old", [None, terms("HK", regime=Regime.NOT_OFFERED), terms("HK", regime=Regime.OPT_IN)]
    )
    def test_what_is_not_offered_opens_nothing(self, old: Terms | None, regime: Regime) -> None:
        """A warning before a policy that shuts a use makes people ignore the next one."""
        assert opened_by(old, terms("HK", regime=regime)) == ()

    @pytest.mark.parametrize("minors", Minors)
    def test_a_limit_that_stays_as_it_was_opens_nothing(self, minors: Minors) -> None:
        """Most policies repeat most of the one before."""
        assert opened_by(LIMITED, LIMITED) == ()
        assert opened_by(terms("HK", minors=minors), terms("HK", minors=minors)) == ()
        assert (
            opened_by(
                terms("HK", minors=Minors.EXCLUDE_UNLESS_ADULT), terms("HK", minors=Minors.UNKNOWN)
            )
            == ()
        )
        assert (
            opened_by(
                terms("HK", minors=Minors.UNKNOWN), terms("HK", minors=Minors.EXCLUDE_UNLESS_ADULT)
            )
            == ()
        )

    def test_every_limit_that_gives_way_is_told_with_what_it_now_is(self) -> None:
        """Three openings in one sentence of a policy are three things to sign."""
        new = terms(
            "HK",
            notice_until=day(39),
            categories=("posts", "groups", "events"),
            collected_from=day(4),
        )

        assert opened_by(LIMITED, new) == (
            "the notice ends on 9 Feb 2024",
            "more categories are used: events, groups",
            "older data is used: from 5 Jan 2024",
        )

    def test_fewer_categories_and_later_data_open_nothing(self) -> None:
        """They are what a regulator asked for."""
        new = terms("HK", notice_until=day(41), categories=(), collected_from=day(6))

        assert opened_by(LIMITED, new) == ()


class TestNames:
    def test_a_scope_that_is_one_group_is_told_by_its_name(self) -> None:
        """Thirty codes where three letters say the same."""
        assert named(("DE",), WORLD, at=day(30)) == "EEA"
        assert named(("DE",), WORLD, at=day(10)) == "DE"

    def test_everywhere_names_the_parts_that_have_terms_of_their_own(self) -> None:
        """They are told apart because they differ."""
        countries = ("HK", "US", "DE", "GB", "CH")

        assert (
            named((*countries, "US-CA", "GB-SCT"), WORLD, at=day(30)) == "everywhere, GB-SCT, US-CA"
        )

    @pytest.mark.parametrize(("count", "end"), [(11, "C10"), (12, "C11"), (13, "C11 and 1 more")])
    def test_twelve_names_are_told_in_full_and_of_more_how_many_are_left_out(
        self, count: int, end: str
    ) -> None:
        """A list that ends without a word looks complete."""
        world = Jurisdictions(codes=frozenset(f"C{number:02}" for number in range(90)))
        codes = [f"C{number:02}" for number in range(count)]

        found = named(codes, world, at=Micros(0))

        assert found == f"{', '.join(codes[: min(count, 12) - 1])}, {end}"
