"""What a control would change: counted right before anybody sends it, and every opening of use said
plainly.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
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
)

from consentry.domain.controls import Control, Controls, Minors, OptIns, PauseLifted, Regime, Terms
from consentry.domain.decisions import Row, decide
from consentry.domain.events import MemberEvent
from consentry.domain.impact import (
    ANY_PURPOSE,
    Census,
    Impact,
    ReasonChange,
    moments_of,
    purposes_of,
    scope_of,
)
from consentry.domain.openings import freed, in_force, terms_changes, widenings
from consentry.domain.records import Record
from consentry.domain.values import AgeBand, Choice, Micros, Reason
from consentry.domain.wording import named

OPEN = Controls(WORLD).after(
    policy(900, terms("*"), terms("*", purpose="ads", regime=Regime.OPT_IN), on=0)
)
NOW = day(30)
EARLIER: list[Control] = [
    pause(1, "HK", on=5, name="hk"),
    pause(2, "EEA", on=6, name="eea", purposes=None),
    lift(3, on=9, name="eea"),
    lift(4, on=9, name="hk", opt_ins=OptIns.KEEP),
    policy(5, terms("HK", "US", regime=Regime.OPT_IN), on=8),
]
NEW: list[Control] = [
    pause(10, "US", on=30, name="us"),
    pause(11, "*", on=30, name="all", purposes=None),
    pause(12, "EEA", on=30, name="eea", version=2),
    lift(13, on=30, name="hk"),
    lift(14, on=30, name="eea", version=2),
    policy(
        15,
        terms("EEA", minors=Minors.EXCLUDE_UNLESS_ADULT),
        terms("*", regime=Regime.NOT_OFFERED),
        on=30,
    ),
]


def records_of(*stories: list[MemberEvent]) -> list[Record]:
    """The record of each story."""
    return [record for record in (folded(*story) for story in stories) if record is not None]


def impact_of(
    control: Control, records: list[Record], before: Controls = OPEN, at: Micros = NOW
) -> Impact:
    """What a control changes for these members."""
    after = before.after(control)
    census = Census(after, purposes=purposes_of(control, after), at=at, known_at=NOW)
    for record in records:
        census.add(record)
    return census.compare(before, after, scope_of(control, after))


class TestCounting:
    def test_a_pause_tells_whom_it_covers_and_for_whom_it_changes_the_answer(self) -> None:
        """The desk would pause on a guess, and a regulator be told a number that nobody counted."""
        found = impact_of(
            pause(1, "HK", on=30),
            records_of(
                [moved("HK", 1, on=1)],
                [moved("HK", 1, on=1)],
                [moved("HK", 1, on=1), chose(Choice.OPT_OUT, 2, on=2)],
                [moved("HK", 1, on=1), erased(2, on=2)],
                [moved("HK", 1, on=1), moved("US", 2, on=2)],
                [chose(Choice.OPT_IN, 1, on=1)],
            ),
        )

        assert (found.members, found.covered, found.unplaced) == (6, {"HK": 4}, 1)
        assert found.excluded() == {PURPOSE: 2}
        assert found.opened() == {}
        assert found.changes == (
            ReasonChange(PURPOSE, "HK", Reason.DEFAULT_ON, Reason.PAUSED, True, False, 2),
            ReasonChange(PURPOSE, "HK", Reason.OPTED_OUT, Reason.PAUSED, False, False, 1),
        )
        assert found.unchanged == {(PURPOSE, Reason.ERASED): 1}

    def test_a_lift_that_voids_opt_ins_tells_members_apart_by_when_they_opted_in(self) -> None:
        """Members who agreed to the old terms would be counted as open under the new ones."""
        before = Controls(WORLD).after(
            policy(900, terms("*", regime=Regime.OPT_IN), on=0), pause(1, "HK", on=5)
        )
        records = records_of(
            [moved("HK", 1, on=1), chose(Choice.OPT_IN, 2, on=2)],
            [moved("HK", 1, on=1), chose(Choice.OPT_IN, 2, on=29)],
        )

        void = impact_of(lift(2, on=10, effective_at=day(30)), records, before)
        kept = impact_of(lift(2, on=10, effective_at=day(30), opt_ins=OptIns.KEEP), records, before)

        assert void.opened() == {PURPOSE: 1}
        assert kept.opened() == {PURPOSE: 2}

    @given(
        st.lists(histories(), max_size=6),
        st.lists(st.sampled_from(EARLIER), unique=True),
        st.sampled_from(NEW),
    )
    def test_the_numbers_are_those_of_asking_member_by_member(
        self, stories: list[list[MemberEvent]], earlier: list[Control], control: Control
    ) -> None:
        """Members who only seemed alike would be counted by each other's answer."""
        settled = [
            [moved("HK" if place % 2 else "DE", 1000, on=0), *story]
            for place, story in enumerate(stories)
        ]
        records, before = records_of(*stories, *settled), OPEN.after(*earlier)
        after = before.after(control)
        plain: Counter[tuple[str, Reason, Reason]] = Counter()
        for purpose in purposes_of(control, after):
            for record in records:
                question: dict[str, Any] = {"purpose": purpose, "at": NOW, "known_at": NOW}
                was = decide(record, None, before, **question)
                now = decide(record, None, after, **question)
                plain[purpose, was.reason, now.reason] += 1

        found = impact_of(control, records, before)

        counted: Counter[tuple[str, Reason, Reason]] = Counter()
        for change in found.changes:
            counted[change.purpose, change.before, change.after] += change.members
        assert counted == {key: members for key, members in plain.items() if key[1] is not key[2]}
        assert found.members == len(records)

    def test_a_member_who_is_taken_back_was_never_counted(self) -> None:
        """Someone whose events came on two partitions would be counted as allowed, who is
        quarantined.
        """
        [record] = records_of([moved("HK", 1, on=1)])
        census = Census(OPEN, purposes=(PURPOSE,), at=NOW, known_at=NOW)

        census.add(record)
        census.add(record, -1)
        found = census.compare(OPEN, OPEN.after(pause(1, "HK", on=30)), ("HK",))

        assert (found.members, sum(found.covered.values()), found.excluded()) == (0, 0, {})

    def test_a_repeated_imposition_changes_nothing(self) -> None:
        """The desk sends it again to be sure, and has to be told that it was sure already."""
        before = OPEN.after(pause(1, "HK", on=5))

        assert (
            impact_of(pause(2, "HK", on=30), records_of([moved("HK", 1, on=1)]), before).changes
            == ()
        )


class TestWhatIsAsked:
    def test_a_control_is_asked_about_the_purposes_and_places_it_speaks_of(self) -> None:
        """A pause of everything would be shown for one purpose, and the others come as a
        surprise.
        """
        everything = pause(1, "*", on=5, purposes=None)
        after = OPEN.after(everything, pause(2, "HK", on=6, name="hk"))

        assert purposes_of(everything, after) == (PURPOSE, "ads")
        assert purposes_of(everything, Controls(WORLD).after(everything)) == (ANY_PURPOSE,)
        assert purposes_of(lift(3, on=7, name="hk"), after) == (PURPOSE,)
        assert scope_of(lift(3, on=7, name="hk"), after) == ("HK",)
        assert scope_of(policy(4, terms("EEA", "HK"), terms("HK", purpose="ads"), on=5), after) == (
            "EEA",
            "HK",
        )

    def test_a_policy_is_asked_again_when_its_notice_ends(self) -> None:
        """On the first day a notice hides everything that the policy opens on the last."""
        published = policy(
            1, terms("HK", notice_until=day(50)), terms("US", notice_until=day(10)), on=30
        )

        assert moments_of(published, now=NOW) == (NOW, day(50))
        assert moments_of(policy(1, terms("HK"), on=30, effective=40), now=NOW) == (day(40),)
        assert moments_of(pause(1, "HK", on=30, effective_at=day(1)), now=NOW) == (NOW,)


class TestFreed:
    PAUSED = OPEN.after(
        pause(1, "GB", on=5, name="gb"), pause(2, "GB-SCT", on=6, name="sct"), pause(3, "HK", on=6)
    )

    def freed_by(self, ending: PauseLifted, before: Controls) -> dict[str, list[str]]:
        """Where rows may be used again after a lift."""
        return dict(freed(ending, before, before.after(ending), at=NOW, known_at=NOW))

    def test_a_lift_frees_rows_of_its_place_although_no_member_lives_there(self) -> None:
        """The desk must not read *opens nothing* where a row of somebody elsewhere is used from
        then on.
        """
        assert self.freed_by(lift(9, on=30, name="gb"), self.PAUSED) == {PURPOSE: ["GB"]}

    def test_what_another_pause_or_no_terms_keep_closed_is_not_freed(self) -> None:
        """A warning that is always there is read by nobody."""
        again = self.PAUSED.after(pause(4, "GB", on=7, name="gb-2"))
        not_offered = self.PAUSED.after(policy(901, terms("GB", regime=Regime.NOT_OFFERED), on=8))

        assert self.freed_by(lift(9, on=30, name="gb"), again) == {}
        assert self.freed_by(lift(9, on=30, name="gb"), not_offered) == {}
        assert self.freed_by(lift(9, on=30, name="other"), self.PAUSED) == {}
        assert (
            self.freed_by(lift(9, on=30, name="gb"), self.PAUSED.after(lift(8, on=20, name="gb")))
            == {}
        )


class TestTerms:
    def test_old_and_new_terms_stand_side_by_side_where_they_differ(self) -> None:
        """A policy that opens one country among thirty is signed for the twenty-nine."""
        published = policy(1, terms("HK", "US"), terms("DE", regime=Regime.NOT_OFFERED), on=30)
        before = Controls(WORLD).after(
            policy(900, terms("US"), terms("DE", "HK", regime=Regime.OPT_IN), on=0),
            pause(2, "HK", on=5),
        )

        found = terms_changes(published, before, before.after(published), at=NOW, known_at=NOW)

        assert {change.jurisdictions: change.opens for change in found} == {
            ("DE",): (),
            ("HK",): ("members who have not chosen are used too",),
        }
        assert {change.jurisdictions: change.paused for change in found} == {
            ("DE",): (),
            ("HK",): ("HK",),
        }

    def test_a_part_of_a_country_with_terms_of_its_own_is_told_by_itself(self) -> None:
        """California's stricter terms would be read as those of the United States."""
        before = Controls(WORLD).after(policy(900, terms("US-CA", regime=Regime.NOT_OFFERED), on=0))
        published = policy(1, terms("US"), on=30)

        found = terms_changes(published, before, before.after(published), at=NOW, known_at=NOW)

        assert [(change.jurisdictions, change.old and change.old.regime) for change in found] == [
            (("US",), None),
            (("US-CA",), Regime.NOT_OFFERED),
        ]
        assert all(change.opens for change in found)

    def test_a_policy_that_a_later_one_outranks_changes_no_terms(self) -> None:
        """It would be announced, and bind nobody."""
        before = Controls(WORLD).after(policy(900, terms("*"), on=20))
        published = policy(1, terms("HK", regime=Regime.OPT_IN), on=30, effective=10)

        assert terms_changes(published, before, before.after(published), at=NOW, known_at=NOW) == ()

    def test_where_a_policy_is_in_force_leaves_out_what_later_ones_took(self) -> None:
        """Two versions in force in one country, and nobody knows which text to read."""
        old, new = policy(900, terms("*"), on=0), policy(1, terms("EEA", "HK"), on=10)
        controls = Controls(WORLD).after(old, new)

        assert in_force(old, controls, at=NOW, known_at=NOW) == {PURPOSE: ["CH", "GB", "US"]}
        assert in_force(new, controls, at=NOW, known_at=NOW) == {PURPOSE: ["DE", "HK"]}
        assert in_force(new, controls, at=day(5), known_at=NOW) == {}


ONE = terms("HK")


class TestWidenings:
    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            (None, ONE, "it is offered, which it was not"),
            (terms("HK", regime=Regime.NOT_OFFERED), ONE, "it is offered, which it was not"),
            (
                None,
                terms("HK", notice_until=day(40)),
                "it is offered, which it was not (before 10 Feb 2024 only to who opted in)",
            ),
            (terms("HK", regime=Regime.OPT_IN), ONE, "members who have not chosen are used too"),
            (terms("HK", notice_until=day(40)), ONE, "the notice ends at once"),
            (
                terms("HK", notice_until=day(40)),
                terms("HK", notice_until=day(35)),
                "the notice ends on 5 Feb 2024",
            ),
            (terms("HK", minors=Minors.EXCLUDE), ONE, "minors are used too"),
            (
                terms("HK", minors=Minors.EXCLUDE_UNLESS_ADULT),
                terms("HK", minors=Minors.EXCLUDE),
                "members of unknown age are used too",
            ),
            (
                terms("HK", categories=("posts",)),
                terms("HK", categories=("posts", "groups")),
                "more categories are used: groups",
            ),
            (terms("HK", categories=("posts",)), ONE, "more categories are used: all"),
            (terms("HK", collected_from=day(5)), ONE, "older data is used: from any time"),
        ],
    )
    def test_each_way_of_opening_a_use_is_said(
        self, old: Terms | None, new: Terms, said: str
    ) -> None:
        """Whoever signs has to read it in words, and not work it out from two lists of fields."""
        assert widenings(old, new) == (said,)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (ONE, None),
            (ONE, ONE),
            (ONE, terms("HK", regime=Regime.OPT_IN)),
            (ONE, terms("HK", regime=Regime.NOT_OFFERED)),
            (ONE, terms("HK", regime=Regime.UNKNOWN)),
            (ONE, terms("HK", minors=Minors.EXCLUDE, categories=("posts",), collected_from=day(5))),
            (terms("HK", minors=Minors.EXCLUDE), terms("HK", minors=Minors.UNKNOWN)),
            (ONE, terms("HK", notice_until=day(40))),
            (terms("HK", basis="CONSENT"), terms("HK", basis="OTHER")),
        ],
    )
    def test_what_only_narrows_is_no_opening(self, old: Terms | None, new: Terms | None) -> None:
        """A warning on every policy is read on none."""
        assert widenings(old, new) == ()

    @given(st.data())
    def test_nobody_is_let_in_by_terms_that_are_said_to_open_nothing(
        self, data: st.DataObject
    ) -> None:
        """The one line that a second pair of eyes looks at would be wrong."""
        drawn = st.builds(
            Terms,
            jurisdictions=st.just(("HK",)),
            purpose=st.just(PURPOSE),
            regime=st.sampled_from(Regime),
            notice_until=st.sampled_from([None, day(20), day(40)]),
            categories=st.sampled_from([None, ("a",), ("a", "b"), ("b",)]),
            collected_from=st.sampled_from([None, day(3), day(6)]),
            minors=st.sampled_from(Minors),
        )
        old, new = data.draw(st.none() | drawn), data.draw(drawn)
        before = Controls(WORLD).after(
            *(policy(900, one, on=0) for one in (old,) if one is not None)
        )
        after = Controls(WORLD).after(policy(901, new, on=0))
        member = folded(
            moved("HK", 1, on=1, age_band=data.draw(st.sampled_from(AgeBand))),
            *data.draw(
                st.sampled_from(
                    [[], [chose(Choice.OPT_IN, 2, on=2)], [chose(Choice.OPT_OUT, 2, on=2)]]
                )
            ),
        )
        row = data.draw(
            st.none()
            | st.builds(
                Row,
                category=st.sampled_from([None, "a", "b"]),
                collected=st.sampled_from([None, day(2), day(5)]),
            )
        )
        question: dict[str, Any] = {
            "purpose": PURPOSE,
            "at": data.draw(st.sampled_from([day(10), day(30), day(50)])),
        }

        was = decide(member, row, before, known_at=NOW, **question)
        now = decide(member, row, after, known_at=NOW, **question)

        if now.allowed and not was.allowed:
            assert widenings(old, new) != ()


class TestNames:
    @pytest.mark.parametrize(
        ("codes", "text"),
        [
            (("HK", "US"), "HK, US"),
            (("DE", "GB", "HK"), "EEA, GB, HK"),
            (("HK", "US", "DE", "GB", "CH"), "everywhere"),
            (("US", "DE", "GB", "CH", "US-CA"), "everywhere but HK, US-CA"),
        ],
    )
    def test_codes_are_told_as_a_person_would_write_them(
        self, codes: tuple[str, ...], text: str
    ) -> None:
        """Thirty codes in a row hide the one that does not belong there."""
        assert named(codes, WORLD, at=NOW) == text

    def test_a_long_list_is_cut_and_says_so(self) -> None:
        """A list that ends without a word looks complete."""
        from consentry.wire.jurisdictions import iso_jurisdictions

        countries = sorted(code for code in iso_jurisdictions().codes if "-" not in code)

        assert named(countries[:40], iso_jurisdictions(), at=NOW).endswith(" and 28 more")
