"""Which places hold which: countries and their parts, groups with dates, and what a scope stands
for.
"""

from __future__ import annotations

import pytest
from tests.strategies import day

from consentry.domain.jurisdictions import Jurisdictions, Membership

CODES = frozenset({"HK", "US", "US-CA", "DE", "GB", "GB-SCT"})


@pytest.fixture
def world() -> Jurisdictions:
    """Two groups that share a country; one that another country joins on day 10 and leaves on day
    20.
    """
    return Jurisdictions(
        codes=CODES,
        groups={
            "EEA": (
                Membership(country="DE"),
                Membership(country="GB", since=day(10), until=day(20)),
            ),
            "G7": (Membership(country="DE", since=day(5)), Membership(country="US")),
        },
    )


class TestHolders:
    def test_a_part_of_a_country_is_held_by_itself_its_country_its_groups_and_anywhere(
        self, world: Jurisdictions
    ) -> None:
        """A pause on the country that did not hold its parts would leave most of its people in."""
        assert world.holders("US-CA", at=day(1)) == {"*", "US-CA", "US", "G7"}
        assert world.holders("HK", at=day(1)) == {"*", "HK"}

    def test_a_country_is_held_by_every_group_that_it_is_in(self, world: Jurisdictions) -> None:
        """A country whose second group hid the first would be out of a pause on the first."""
        assert world.holders("DE", at=day(7)) == {"*", "DE", "EEA", "G7"}

    @pytest.mark.parametrize(
        ("on", "inside"), [(9.99999, False), (10, True), (19.99999, True), (20, False)]
    )
    def test_a_group_holds_a_country_from_its_first_instant_to_before_its_last(
        self, world: Jurisdictions, on: float, inside: bool
    ) -> None:
        """A treaty begins and ends at midnight, and a question may be asked of just that
        instant.
        """
        assert ("EEA" in world.holders("GB", at=day(on))) == inside
        assert ("EEA" in world.holders("GB-SCT", at=day(on))) == inside


class TestExpanded:
    @pytest.mark.parametrize(
        ("on", "countries"),
        [(9.99999, {"DE"}), (10, {"DE", "GB"}), (19.99999, {"DE", "GB"}), (20, {"DE"})],
    )
    def test_a_group_is_its_countries_of_that_time(
        self, world: Jurisdictions, on: float, countries: set[str]
    ) -> None:
        """The date of a purge is reckoned from their terms, and a country that left promised
        nothing for the group.
        """
        assert world.expanded(["EEA"], at=day(on)) == countries

    def test_anywhere_is_every_country_and_no_part_of_one(self, world: Jurisdictions) -> None:
        """Each is asked for its terms; to ask every part of every country as well takes seconds."""
        assert world.expanded(["*"], at=day(1)) == {"HK", "US", "DE", "GB"}

    def test_a_scope_is_all_that_its_entries_are(self, world: Jurisdictions) -> None:
        """What only the last entry said would forget the others' promises."""
        assert world.expanded(["EEA", "US-CA", "HK"], at=day(1)) == {"DE", "US-CA", "HK"}
        assert world.expanded([], at=day(1)) == frozenset()


class TestWords:
    def test_a_member_can_be_in_a_code_and_in_nothing_else(self, world: Jurisdictions) -> None:
        """Somebody who lived in a group, or anywhere, would be asked about in no country's
        terms.
        """
        assert [
            code for code in (*sorted(CODES), "EEA", "*", "XX", "us", "") if world.is_code(code)
        ] == sorted(CODES)

    def test_what_is_neither_code_nor_group_nor_anywhere_is_named_in_the_order_of_the_scope(
        self, world: Jurisdictions
    ) -> None:
        """The desk has to see which word it misspelt; a pause with one of them covers
        everything.
        """
        assert world.unknown(["US", "XX", "EEA", "eea", "*", "US-ZZ", "US-CA"]) == (
            "XX",
            "eea",
            "US-ZZ",
        )
        assert world.unknown([]) == ()

    def test_it_tells_every_time_at_which_some_country_joins_or_leaves(
        self, world: Jurisdictions
    ) -> None:
        """Answers are remembered between these times; without one of them an old answer stands for
        a new one.
        """
        within_a_lifetime = {time for time in world.changes if day(-36_500) < time < day(36_500)}

        assert within_a_lifetime == {day(5), day(10), day(20)}
