"""Deciding: each reason by an example, and the stories the rules were made for.

More by chance: test_oracle.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from tests.strategies import (
    MEMBER,
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
    released,
    terms,
    unreadable,
)

from consentry.domain.controls import (
    Controls,
    Minors,
    OptIns,
    Regime,
)
from consentry.domain.decisions import NOBODY, Decision, Limit, Row, decide, member_state, stale
from consentry.domain.events import Fact, MemberEvent
from consentry.domain.records import Record
from consentry.domain.values import AgeBand, Choice, Reason
from consentry.forms.fields import parse_instant
from consentry.wire.jurisdictions import iso_jurisdictions

EVERYWHERE = Controls(WORLD).after(policy(900, terms("*"), on=0))
US = moved("US", 1, on=1)


def ask(
    record: Record | None,
    controls: Controls = EVERYWHERE,
    *,
    row: Row | None = None,
    at: float = 10,
    known_at: float | None = None,
    purpose: str = PURPOSE,
) -> Decision:
    """The decision on a day, by what was known that day unless told otherwise."""
    known = at if known_at is None else known_at
    return decide(record, row, controls, purpose=purpose, at=day(at), known_at=day(known))


def with_terms(**more: Any) -> Controls:
    """Controls whose only terms hold everywhere."""
    return Controls(WORLD).after(policy(900, terms("*", **more), on=0))


class TestReasons:
    """One example each; the closed list is what a privacy officer reads out to a member."""

    def test_erased(self) -> None:
        """Hurt when this breaks: a person who asked to be forgotten."""
        decision = ask(folded(US, chose(Choice.OPT_IN, 2, on=2), erased(3, on=3)))

        assert (decision.allowed, decision.reason) == (False, Reason.ERASED)

    def test_held(self) -> None:
        """The unreadable message may have been an opt-out."""
        decision = ask(folded(US, unreadable(2, on=2)))

        assert (decision.allowed, decision.reason) == (False, Reason.QUARANTINED)

    def test_no_longer_held(self) -> None:
        """An operator has seen to it, and the member's own choice counts again."""
        decision = ask(folded(US, unreadable(2, on=2), released(3, on=3)))

        assert (decision.allowed, decision.reason) == (True, Reason.DEFAULT_ON)

    @pytest.mark.parametrize(
        ("observed", "reason"),
        [
            (None, Reason.DEFAULT_ON),
            (3, Reason.DEFAULT_ON),
            (2, Reason.QUARANTINED),
            (1, Reason.QUARANTINED),
            (4, Reason.QUARANTINED),
            (9, Reason.QUARANTINED),
        ],
    )
    def test_a_release_ends_only_the_holds_that_its_operator_had_looked_at(
        self, observed: int | None, reason: Reason
    ) -> None:
        """Between the look and the release another message came that nobody could read: perhaps the
        opt-out.
        """
        held = (unreadable(2, on=2), unreadable(3, on=3))

        assert ask(folded(US, *held, released(4, on=4, observed=observed))).reason is reason

    def test_jurisdiction_unknown(self) -> None:
        """Nobody can say which law protects this member."""
        assert ask(None).reason is Reason.JURISDICTION_UNKNOWN
        assert not ask(None).allowed

    def test_paused(self) -> None:
        """A regulator's stop binds whatever the member said."""
        record = folded(US, chose(Choice.OPT_IN, 2, on=2))

        decision = ask(record, EVERYWHERE.after(pause(901, "US", on=3)))

        assert (decision.allowed, decision.reason) == (False, Reason.PAUSED)

    def test_opted_out(self) -> None:
        """The reason this system exists."""
        decision = ask(folded(US, chose(Choice.OPT_OUT, 2, on=2)))

        assert (decision.allowed, decision.reason) == (False, Reason.OPTED_OUT)

    def test_no_terms(self) -> None:
        """A purpose that no policy speaks of is not thereby free."""
        assert ask(folded(US), purpose="ads").reason is Reason.NO_TERMS
        assert ask(folded(US), Controls(WORLD)).reason is Reason.NO_TERMS

    def test_not_offered(self) -> None:
        """Where there is no training there is no opt-out to miss, and an opt-in changes nothing."""
        record = folded(US, chose(Choice.OPT_IN, 2, on=2))

        for regime in (Regime.NOT_OFFERED, Regime.UNKNOWN):
            assert ask(record, with_terms(regime=regime)).reason is Reason.NOT_OFFERED

    @pytest.mark.parametrize(
        ("conditions", "band", "row"),
        [
            ({"minors": Minors.EXCLUDE}, AgeBand.MINOR, None),
            ({"minors": Minors.EXCLUDE_UNLESS_ADULT}, AgeBand.UNKNOWN, None),
            ({"minors": Minors.UNKNOWN}, AgeBand.MINOR, None),
            ({"categories": ("posts",)}, AgeBand.ADULT, Row(category="messages")),
            ({"collected_from": day(5)}, AgeBand.ADULT, Row(collected=day(4))),
            ({"collected_from": day(5)}, AgeBand.ADULT, Row()),
        ],
    )
    def test_outside_terms(
        self, conditions: dict[str, Any], band: AgeBand, row: Row | None
    ) -> None:
        """Terms that were promised to a regulator hold row by row; what a row does not say is not
        assumed.
        """
        record = folded(moved("US", 1, on=1, age_band=band), chose(Choice.OPT_IN, 2, on=2))

        decision = ask(record, with_terms(**conditions), row=row)

        assert (decision.allowed, decision.reason) == (False, Reason.OUTSIDE_TERMS)

    def test_inside_terms(self) -> None:
        """A condition that is met must not exclude."""
        controls = with_terms(minors=Minors.EXCLUDE, categories=("posts",), collected_from=day(5))

        for row in (None, Row(category="posts", collected=day(5))):
            assert ask(folded(US), controls, row=row).allowed

    def test_opted_in(self) -> None:
        """Members who said yes are believed, also where nobody else is used."""
        record = folded(US, chose(Choice.OPT_IN, 2, on=2))

        decision = ask(record, with_terms(regime=Regime.OPT_IN, notice_until=day(100)))

        assert (decision.allowed, decision.reason) == (True, Reason.OPTED_IN)

    def test_notice_open(self) -> None:
        """Members still have time to object; the minute it ends, it has ended."""
        controls = with_terms(notice_until=day(10))

        assert ask(folded(US), controls, at=9.9).reason is Reason.NOTICE_OPEN
        assert ask(folded(US), controls, at=10).reason is Reason.DEFAULT_ON

    def test_default_on(self) -> None:
        """The policy says so, and nothing speaks against it."""
        assert ask(folded(US)).allowed
        assert ask(folded(US)).reason is Reason.DEFAULT_ON

    def test_opt_in_required(self) -> None:
        """Silence is not consent."""
        decision = ask(folded(US), with_terms(regime=Regime.OPT_IN))

        assert (decision.allowed, decision.reason) == (False, Reason.OPT_IN_REQUIRED)

    def test_stale(self) -> None:
        """A trainer that cannot prove that it is fresh says so, and allows nothing."""
        assert (stale("7 s behind").allowed, stale("7 s behind").reason) == (False, Reason.STALE)

    @given(histories())
    def test_nothing_is_ever_allowed_without_terms(self, history: list[MemberEvent]) -> None:
        """A lost or empty policy topic must not open anything, whatever members said."""
        assert not ask(folded(*history), Controls(WORLD), at=400).allowed


class TestOwnFacts:
    OUT = chose(Choice.OPT_OUT, 2, on=2)
    IN = chose(Choice.OPT_IN, 3, on=6, observed=2)

    @pytest.mark.parametrize(
        ("events", "is_excluded"),
        [
            ([US], False),
            ([US, OUT], True),
            ([US, OUT, IN], False),
            ([US, unreadable(2, on=2)], True),
            ([US, erased(2, on=2)], True),
        ],
    )
    def test_who_is_excluded_by_their_own_facts_is_so_whatever_a_row_says(
        self, events: list[MemberEvent], is_excluded: bool
    ) -> None:
        """Bundles name them without asking about any row: one too few would be trained on."""
        own = member_state(folded(*events), purpose=PURPOSE, at=day(10), known_at=day(10))

        assert own.is_excluded_by_own_facts is is_excluded

    def test_opt_ins_are_told_apart_by_the_lifts_that_came_after_them(self) -> None:
        """A lift would make both void, or neither."""
        records = [folded(US, chose(Choice.OPT_IN, 2, on=on)) for on in (2, 4, 6)]
        states = [
            member_state(record, purpose=PURPOSE, at=day(10), known_at=day(10))
            for record in records
        ]
        first, second, third = [own.equivalence_key([day(5)]) for own in states]

        assert first == second != third


class TestHongKong:
    """A territory is paused on the 11th, and the platform records it on the 14th."""

    controls = Controls(WORLD).after(
        policy(1, terms("EEA", "CH", regime=Regime.NOT_OFFERED), terms("*"), on=0),
        pause(2, "HK", on=14, name="hk", effective_at=day(11)),
    )
    resident = folded(moved("HK", 1, on=1))

    def test_before_the_pause_the_default_holds(self) -> None:
        """An auditor who asks about the 10th must not read today's answer."""
        assert ask(self.resident, self.controls, at=10).reason is Reason.DEFAULT_ON

    def test_what_was_not_yet_recorded_could_not_be_heeded(self) -> None:
        """The platform trained in good faith on the 12th, and has to be able to show it."""
        assert ask(self.resident, self.controls, at=12).allowed

    def test_looking_back_the_pause_covers_what_was_used_before_it_was_recorded(self) -> None:
        """The regulator asks what should have been: its date counts, not ours."""
        assert ask(self.resident, self.controls, at=12, known_at=15).reason is Reason.PAUSED

    def test_others_are_not_touched(self) -> None:
        """A pause that covered too much would teach operators to lift it in a hurry."""
        assert ask(folded(US), self.controls, at=20).reason is Reason.DEFAULT_ON
        assert ask(folded(moved("DE", 1, on=1)), self.controls, at=20).reason is Reason.NOT_OFFERED

    def test_a_row_from_the_paused_place_is_paused_whoever_wrote_it(self) -> None:
        """The stricter of the member's and the row's jurisdiction wins."""
        assert (
            ask(folded(US), self.controls, row=Row(jurisdiction="HK"), at=20).reason
            is Reason.PAUSED
        )
        assert (
            ask(self.resident, self.controls, row=Row(jurisdiction="US"), at=20).reason
            is Reason.PAUSED
        )

    def test_somebody_nobody_knows_is_judged_by_the_row(self) -> None:
        """Data of people without a record is common; only what the row proves can speak for it."""
        assert ask(None, self.controls, at=20).reason is Reason.JURISDICTION_UNKNOWN
        assert (
            ask(None, self.controls, row=Row(jurisdiction="US"), at=20).reason is Reason.DEFAULT_ON
        )


class TestLift:
    """A country is paused, and a year later used again on new terms.

    Who refused before has still refused.
    """

    controls = Controls(WORLD).after(
        policy(1, terms("GB"), on=0),
        pause(2, "GB", on=20, name="gb"),
        policy(
            3,
            terms("GB", notice_until=day(140), collected_from=day(0), minors=Minors.EXCLUDE),
            on=99,
        ),
        lift(4, on=100, name="gb"),
    )
    home = moved("GB", 1, on=1)

    def test_an_opt_out_survives_the_lift(self) -> None:
        """Members had to opt out again elsewhere after such a lift; here once is enough."""
        assert (
            ask(folded(self.home, chose(Choice.OPT_OUT, 2, on=3)), self.controls, at=150).reason
            is Reason.OPTED_OUT
        )

    def test_an_opt_in_counts_until_the_lift_voids_it(self) -> None:
        """Whoever agreed to the old terms has not agreed to the new ones."""
        record = folded(self.home, chose(Choice.OPT_IN, 2, on=3))

        assert ask(record, self.controls, at=10).reason is Reason.OPTED_IN
        assert ask(record, self.controls, at=30).reason is Reason.PAUSED
        assert ask(record, self.controls, at=110).reason is Reason.NOTICE_OPEN

    def test_an_opt_in_after_the_lift_counts(self) -> None:
        """It is given to the new terms."""
        record = folded(self.home, chose(Choice.OPT_IN, 2, on=3), chose(Choice.OPT_IN, 3, on=101))

        assert ask(record, self.controls, at=110).reason is Reason.OPTED_IN

    def test_an_opt_in_recorded_with_the_lift_in_one_moment_does_not_count(self) -> None:
        """A tie is decided for the member."""
        record = folded(self.home, chose(Choice.OPT_IN, 2, on=100))

        assert ask(record, self.controls, at=110).reason is Reason.NOTICE_OPEN

    def test_a_lift_may_keep_opt_ins_and_an_unknown_word_voids_them(self) -> None:
        """Only what the new terms say plainly widens use."""
        record = folded(self.home, chose(Choice.OPT_IN, 2, on=3))

        for opt_ins, reason in (
            (OptIns.KEEP, Reason.OPTED_IN),
            (OptIns.VOID, Reason.OPT_IN_REQUIRED),
            (OptIns.UNKNOWN, Reason.OPT_IN_REQUIRED),
        ):
            controls = Controls(WORLD).after(
                policy(1, terms("GB", regime=Regime.OPT_IN), on=0),
                pause(2, "GB", on=20),
                lift(3, on=100, opt_ins=opt_ins),
            )
            assert ask(record, controls, at=110).reason is reason

    def test_a_lift_voids_opt_ins_only_where_its_pause_was(self) -> None:
        """A lift in one country says nothing to members of another."""
        record = folded(moved("US", 1, on=1), chose(Choice.OPT_IN, 2, on=3))

        assert (
            ask(record, self.controls.after(policy(5, terms("US"), on=0)), at=110).reason
            is Reason.OPTED_IN
        )

    def test_the_silent_are_used_once_the_notice_has_ended(self) -> None:
        """The terms say so, within their limits."""
        silent = folded(self.home)

        assert (
            ask(silent, self.controls, at=150, row=Row(collected=day(1))).reason
            is Reason.DEFAULT_ON
        )
        assert (
            ask(silent, self.controls, at=150, row=Row(collected=day(-5))).reason
            is Reason.OUTSIDE_TERMS
        )


class TestPauses:
    def test_a_lift_that_is_recorded_before_its_pause_still_lifts_it(self) -> None:
        """Two desks, two messages, the wrong order: the country must not stay shut for ever."""
        controls = EVERYWHERE.after(lift(1, on=2), pause(2, "US", on=3))

        assert ask(folded(US), controls).reason is Reason.DEFAULT_ON

    def test_a_repeated_imposition_changes_nothing(self) -> None:
        """A pause that was lifted must not come back because its message did."""
        controls = EVERYWHERE.after(pause(1, "US", on=2), lift(2, on=3), pause(3, "US", on=4))

        assert ask(folded(US), controls).reason is Reason.DEFAULT_ON

    def test_a_higher_version_imposes_again(self) -> None:
        """The regulator came back: an old lift must not reach it."""
        controls = EVERYWHERE.after(
            pause(1, "US", on=2), lift(2, on=3), pause(3, "US", on=4, version=2)
        )

        assert ask(folded(US), controls).reason is Reason.PAUSED
        assert ask(folded(US), controls.after(lift(4, on=5, version=2))).reason is Reason.DEFAULT_ON

    def test_a_lift_of_another_pause_lifts_nothing(self) -> None:
        """A slip of the desk must not open a country."""
        controls = EVERYWHERE.after(pause(1, "US", on=2), lift(2, on=3, name="pause-2"))

        assert ask(folded(US), controls).reason is Reason.PAUSED

    def test_a_pause_covers_the_subdivisions_of_its_country_and_not_the_reverse(self) -> None:
        """Californians live in the United States; the United States does not live in California."""
        californian = folded(moved("US-CA", 1, on=1))

        assert ask(californian, EVERYWHERE.after(pause(1, "US", on=2))).reason is Reason.PAUSED
        assert (
            ask(folded(US), EVERYWHERE.after(pause(1, "US-CA", on=2))).reason is Reason.DEFAULT_ON
        )

    def test_a_group_holds_the_subdivisions_of_its_countries_while_they_belong_to_it(self) -> None:
        """Britain left: before that day a European pause covered Scotland, afterwards it does
        not.
        """
        scot = folded(moved("GB-SCT", 1, on=1))
        controls = EVERYWHERE.after(pause(1, "EEA", on=2))

        assert ask(scot, controls, at=19).reason is Reason.PAUSED
        assert ask(scot, controls, at=20).reason is Reason.DEFAULT_ON

    @pytest.mark.parametrize("scope", [(), ("XX",), ("HK", "Atlantis")])
    def test_a_scope_that_nobody_understands_pauses_everything(
        self, scope: tuple[str, ...]
    ) -> None:
        """A typing error in a regulator's order must not leave the country open that was meant."""
        controls = EVERYWHERE.after(
            pause(1, *scope, on=2, purposes=("other",), categories=("posts",))
        )

        assert ask(folded(US), controls, row=Row(category="messages")).reason is Reason.PAUSED

    def test_a_row_without_category_is_covered_by_a_pause_on_any(self) -> None:
        """What a row does not say cannot free it."""
        controls = EVERYWHERE.after(pause(1, "US", on=2, categories=("posts",)))

        assert ask(folded(US), controls, row=Row()).reason is Reason.PAUSED
        assert ask(folded(US), controls, row=Row(category="posts")).reason is Reason.PAUSED
        assert ask(folded(US), controls, row=Row(category="profile")).reason is Reason.DEFAULT_ON

    def test_a_control_given_again_changes_nothing(self) -> None:
        """Followers read the controls from the beginning, and some more than once."""
        imposed = pause(1, "US", on=2)

        assert EVERYWHERE.after(imposed, imposed) == EVERYWHERE.after(imposed)

    def test_a_pause_whose_event_id_was_used_before_still_binds(self) -> None:
        """A producer that gives every control the same id must not have its regulator unheard."""
        controls = EVERYWHERE.after(pause(900, "US", on=2))

        assert ask(folded(US), controls).reason is Reason.PAUSED

    def test_a_lift_whose_event_id_was_used_before_lifts_nothing(self) -> None:
        """Who cannot keep identities apart does not get to open a country."""
        controls = EVERYWHERE.after(pause(1, "US", on=2), lift(1, on=3))

        assert ask(folded(US), controls).reason is Reason.PAUSED


class TestTerms:
    def test_the_policy_with_the_latest_effective_date_binds(self) -> None:
        """An old policy that is published late must not undo a stricter one."""
        controls = Controls(WORLD).after(
            policy(1, terms("*", regime=Regime.NOT_OFFERED), on=1, effective=5),
            policy(2, terms("*"), on=2),
        )

        assert ask(folded(US), controls, at=4).reason is Reason.DEFAULT_ON
        assert ask(folded(US), controls, at=5).reason is Reason.NOT_OFFERED

    def test_of_two_with_one_date_the_later_in_the_log_binds(self) -> None:
        """A correction of the same day has to be able to correct."""
        controls = Controls(WORLD).after(
            policy(1, terms("*"), on=1), policy(2, terms("*", regime=Regime.NOT_OFFERED), on=1)
        )

        assert ask(folded(US), controls).reason is Reason.NOT_OFFERED

    def test_the_first_matching_entry_wins(self) -> None:
        """Policies are written exceptions first."""
        controls = Controls(WORLD).after(
            policy(1, terms("US-CA", regime=Regime.OPT_IN), terms("US"), on=0)
        )

        assert ask(folded(moved("US-CA", 1, on=1)), controls).reason is Reason.OPT_IN_REQUIRED
        assert ask(folded(US), controls).reason is Reason.DEFAULT_ON

    def test_a_policy_without_a_matching_entry_leaves_the_earlier_one_in_force(self) -> None:
        """Terms for one country must not take those of all others away."""
        controls = EVERYWHERE.after(policy(1, terms("HK", regime=Regime.NOT_OFFERED), on=2))

        assert ask(folded(US), controls).reason is Reason.DEFAULT_ON

    @pytest.mark.parametrize("code", ["", "XX", "us", "*", "EEA", "US-ZZ"])
    def test_a_code_that_does_not_exist_is_excluded_even_where_terms_hold_everywhere(
        self, code: str
    ) -> None:
        """A broken column of a data set must not read as the rest of the world."""
        decision = ask(folded(US), row=Row(jurisdiction=code))

        assert (decision.allowed, decision.reason) == (False, Reason.JURISDICTION_UNKNOWN)

    def test_two_jurisdictions_that_both_refuse_name_the_first_reason_of_the_list(self) -> None:
        """One closed order, so that two systems that are asked give the member one reason."""
        controls = Controls(WORLD).after(
            policy(1, terms("US", regime=Regime.OPT_IN), on=0), pause(2, "HK", on=1)
        )

        assert ask(folded(US), controls, row=Row(jurisdiction="HK")).reason is Reason.PAUSED


def test_britain_left_the_european_economic_area_with_the_year_2020() -> None:
    """A policy for the EEA must not cover Britons in 2024, and an auditor may ask about 2019."""

    def holders(code: str, when: str) -> frozenset[str]:
        return iso_jurisdictions().holders(code, at=parse_instant(when, what="when"))

    assert "EEA" in holders("GB", "2020-12-31T23:59:59Z")
    assert "EEA" not in holders("GB", "2021-01-01")
    assert "EEA" in holders("DE-BY", "2024-01-01")
    assert "EEA" not in holders("CH", "2024-01-01")
    assert "EEA" not in holders("HR", "2014-04-11")
    assert "EEA" in holders("HR", "2014-04-12")


class TestPlacesWithTwoCodes:
    """ISO 3166 lists some places as countries and as parts of one; a rule for either has to
    hold.
    """

    @pytest.mark.parametrize(
        ("part", "country"), [("CN-HK", "HK"), ("US-PR", "PR"), ("FR-974", "RE"), ("FI-01", "AX")]
    )
    def test_a_pause_on_the_country_covers_the_part(self, part: str, country: str) -> None:
        """Hong Kong was paused; a profile that says CN-HK is in Hong Kong."""
        controls = Controls(iso_jurisdictions()).after(
            policy(900, terms("*"), on=0),
            pause(901, country, on=1),
            pause(902, "DE", on=1, name="other"),
        )

        assert ask(folded(moved(part, 1, on=1)), controls).reason is Reason.PAUSED
        assert ask(folded(moved(country, 1, on=1)), controls).reason is Reason.PAUSED

    @pytest.mark.parametrize("territory", ["AX", "RE", "GP", "MQ", "GF", "YT"])
    def test_the_law_of_the_union_holds_in_its_outermost_parts(self, territory: str) -> None:
        """Members there are not offered less than those of the mainland."""
        controls = Controls(iso_jurisdictions()).after(
            policy(900, terms("EEA", regime=Regime.NOT_OFFERED), terms("*"), on=0)
        )

        assert ask(folded(moved(territory, 1, on=1)), controls).reason is Reason.NOT_OFFERED
        assert ask(folded(moved("NC", 1, on=1)), controls).reason is Reason.DEFAULT_ON


class TestGrounds:
    """What is told besides the reason: explain, the trainer's log and a regulator's answer are made
    of it.
    """

    opt_in = chose(Choice.OPT_IN, 2, on=2)
    published = policy(900, terms("*"), on=0)

    def because(self, decision: Decision) -> list[tuple[Reason, object, str | None]]:
        """Reason, fact and place of each ground, the versions of facts left out."""
        return [
            (
                one.reason,
                one.fact._replace(version=0) if isinstance(one.fact, Fact) else one.fact,
                one.jurisdiction,
            )
            for one in decision.because
        ]

    def test_what_ends_a_question_is_its_only_ground(self) -> None:
        """Whoever is erased or held hears just that; where they lived is nobody's business any
        more.
        """
        gone, held = erased(3, on=3), unreadable(3, on=3)

        assert self.because(ask(folded(US, gone))) == [(Reason.ERASED, gone.fact(), None)]
        assert self.because(ask(folded(US, held))) == [(Reason.QUARANTINED, held.fact(), None)]

    def test_a_question_that_cannot_be_answered_says_why(self) -> None:
        """A member without a place, and one whose past is folded away, need different help."""
        many = folded(US, *(chose(Choice.UNKNOWN, number, on=2) for number in range(100, 180)))

        [folded_away], [nowhere] = ask(many, at=1).because, ask(None).because

        assert (folded_away.reason, nowhere.reason) == (
            Reason.HISTORY_FOLDED,
            Reason.JURISDICTION_UNKNOWN,
        )
        assert "before what the record still knows" in str(folded_away.fact)
        assert "neither the member's record nor the row" in str(nowhere.fact)

    def test_an_unknown_code_is_told_and_cut(self) -> None:
        """Free text in a column of codes may be anything, and is copied into answers."""
        [ground] = ask(None, row=Row(jurisdiction="x" * 30)).because

        assert ground == (
            Reason.JURISDICTION_UNKNOWN,
            f"'{'x' * 16}' is not a known code",
            "x" * 30,
            None,
            None,
        )

    def test_without_terms_the_purpose_the_place_and_the_choice_are_told(self) -> None:
        """The policy that is missing has to be found, and the member's opt-in is not forgotten over
        it.
        """
        assert self.because(ask(folded(US, self.opt_in), Controls(WORLD))) == [
            (Reason.NO_TERMS, f"no policy has terms for {PURPOSE}", "US"),
            (Reason.OPTED_IN, self.opt_in.fact(), "US"),
        ]

    def test_an_opt_in_is_told_with_the_policy_that_lets_it_count(self) -> None:
        """The basis of the use is both."""
        decision = ask(folded(US, self.opt_in))

        assert self.because(decision) == [
            (Reason.OPTED_IN, self.published, "US"),
            (Reason.OPTED_IN, self.opt_in.fact(), "US"),
        ]
        assert decision.because[0].terms == self.published.terms[0]
        assert decision.because[0].limit is None

    def test_an_opt_in_that_a_lift_made_void_is_told_by_the_lift(self) -> None:
        """The member said yes, and asks why that does not count."""
        lifted = lift(4, on=5)
        controls = EVERYWHERE.after(pause(3, "US", on=4), lifted)

        assert self.because(ask(folded(US, self.opt_in), controls)) == [
            (Reason.DEFAULT_ON, self.published, "US"),
            (Reason.OPT_IN_REQUIRED, lifted, "US"),
        ]

    def test_a_pause_is_told_before_the_choice(self) -> None:
        """Two things stand against the use; ending one would not allow it."""
        imposed, opt_out = pause(3, "US", on=4), chose(Choice.OPT_OUT, 2, on=2)

        assert self.because(ask(folded(US, opt_out), EVERYWHERE.after(imposed))) == [
            (Reason.PAUSED, imposed, "US"),
            (Reason.OPTED_OUT, opt_out.fact(), "US"),
        ]
        assert self.because(ask(folded(US, opt_out))) == [(Reason.OPTED_OUT, opt_out.fact(), "US")]

    @pytest.mark.parametrize(
        ("conditions", "band", "row", "limit"),
        [
            ({"minors": Minors.EXCLUDE}, AgeBand.MINOR, None, Limit.MINOR),
            ({"minors": Minors.EXCLUDE_UNLESS_ADULT}, AgeBand.MINOR, None, Limit.MINOR),
            ({"minors": Minors.EXCLUDE_UNLESS_ADULT}, AgeBand.UNKNOWN, None, Limit.AGE_NOT_KNOWN),
            ({"minors": Minors.UNKNOWN}, AgeBand.UNKNOWN, None, Limit.AGE_NOT_KNOWN),
            ({"categories": ("posts",)}, AgeBand.ADULT, Row(category="messages"), Limit.CATEGORY),
            ({"collected_from": day(5)}, AgeBand.ADULT, Row(), Limit.COLLECTED_UNKNOWN),
            (
                {"collected_from": day(5)},
                AgeBand.ADULT,
                Row(collected=day(4)),
                Limit.COLLECTED_BEFORE,
            ),
        ],
    )
    def test_terms_that_do_not_cover_the_use_say_by_which_limit(
        self, conditions: dict[str, Any], band: AgeBand, row: Row | None, limit: Limit
    ) -> None:
        """An officer corrects the row, the age or the policy, whichever it is."""
        decision = ask(
            folded(moved("US", 1, on=1, age_band=band)), with_terms(**conditions), row=row
        )

        assert (decision.reason, decision.because[0].limit) == (Reason.OUTSIDE_TERMS, limit)

    def test_a_stale_answer_says_by_what_bound(self) -> None:
        """Whoever is woken has to see how far behind it is."""
        assert stale("7 s behind").because == ((Reason.STALE, "7 s behind", None, None, None),)

    def test_of_two_places_the_one_that_decides_is_told(self) -> None:
        """Where both allow, the reason that ranks first; where one refuses, only that one."""
        controls = EVERYWHERE.after(policy(901, terms("HK", regime=Regime.OPT_IN), on=1))

        refused = ask(folded(US), controls, row=Row(jurisdiction="HK"))
        both = ask(folded(US), controls, row=Row(jurisdiction="GB"))

        assert [one.jurisdiction for one in refused.because] == ["HK"]
        assert (refused.allowed, refused.reason) == (False, Reason.OPT_IN_REQUIRED)
        assert (both.allowed, both.reason) == (True, Reason.DEFAULT_ON)
        assert [one.jurisdiction for one in both.because] == ["US"]


class TestInstants:
    """Both times of every fact, and the ends of what a record knows, are inclusive; one instant off
    wrongs somebody.
    """

    @pytest.mark.parametrize(
        ("at", "known_at", "counts"), [(5, 7, True), (4.99999, 7, False), (5, 6.99999, False)]
    )
    def test_a_fact_counts_from_its_first_instant(
        self, at: float, known_at: float, counts: bool
    ) -> None:
        """An opt-out holds at the instant that the member was told."""
        record = folded(US, chose(Choice.OPT_OUT, 2, on=7, effective_at=day(5)))

        assert (ask(record, at=at, known_at=known_at).reason is Reason.OPTED_OUT) == counts

    def test_a_folded_record_answers_from_the_horizon_itself_on(self) -> None:
        """There everything that was folded counts; an instant earlier some of it would not."""
        many = (
            chose(Choice.UNKNOWN, number, on=7, effective_at=day(5)) for number in range(100, 180)
        )
        record = folded(moved("US", 1, on=1), *many)

        assert ask(record, at=5, known_at=7).reason is Reason.DEFAULT_ON
        assert ask(record, at=4.99999, known_at=7).reason is Reason.HISTORY_FOLDED
        assert ask(record, at=5, known_at=6.99999).reason is Reason.HISTORY_FOLDED

    def test_a_record_that_says_nothing_is_nobodys(self) -> None:
        """Who is in the table and said nothing stands like somebody who is not in it."""
        assert (
            member_state(Record(member=MEMBER), purpose=PURPOSE, at=day(1), known_at=day(1))
            == NOBODY
        )
        assert NOBODY.is_folded is False
