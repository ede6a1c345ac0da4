"""Explaining: a decision in words that a privacy officer can read out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import (
    MEMBER,
    PURPOSE,
    WORLD,
    chose,
    day,
    erased,
    folded,
    histories,
    identity,
    lift,
    moved,
    pause,
    policy,
    released,
    terms,
    unreadable,
)

from consentry.domain.controls import (
    Control,
    Controls,
    Minors,
    OptIns,
    PauseBasis,
    PauseImposed,
    Regime,
)
from consentry.domain.decisions import Row, decide
from consentry.domain.events import (
    CHOICE_FACTS,
    EventUnreadable,
    MemberErased,
    MemberEvent,
    MemberRelocated,
)
from consentry.domain.explain import (
    ExplainQuestion,
    Explanation,
    FactNote,
    SentenceRole,
    as_data,
    date_text,
    explain,
    sentences,
)
from consentry.domain.records import FACTS_MAX
from consentry.domain.values import AgeBand, Choice, Micros, Reason

OPEN = Controls(WORLD).after(policy(900, terms("*", basis="LEGITIMATE_INTEREST"), on=0))
HK = moved("HK", 1, on=1)
HK_PAUSE = pause(
    1,
    "HK",
    on=14.375,
    name="hk-2024",
    effective_at=day(11),
    authority="PCPD",
    basis=PauseBasis.UNDERTAKING,
)
UNSAID = EventUnreadable | MemberRelocated
NAMES = {"HK": "Hong Kong", "US": "United States", "DE": "Germany"}


def asked(
    *events: MemberEvent,
    controls: Controls = OPEN,
    row: Row | None = None,
    at: float = 30,
    known_at: float | None = None,
) -> Explanation:
    """The explanation of a question, on day 30 unless told otherwise."""
    question = ExplainQuestion(
        record=folded(*events),
        row=row,
        controls=controls,
        purpose=PURPOSE,
        at=day(at),
        known_at=day(at if known_at is None else known_at),
    )
    return explain(question, NAMES.get)


def said(*events: MemberEvent, controls: Controls = OPEN) -> str:
    """The first sentence about the member on day 30, from the decision alone."""
    return sentences(
        decide(folded(*events), None, controls, purpose=PURPOSE, at=day(30), known_at=day(30))
    )[0]


def policies(*jurisdictions: str, **more: Any) -> Controls:
    """Terms, everywhere unless told otherwise."""
    return Controls(WORLD).after(policy(900, terms(*(jurisdictions or ("*",)), **more), on=0))


def note(explanation: Explanation, version: int) -> FactNote:
    """What is said of one fact."""
    return next(note for note in explanation.facts if note.fact.version == version)


controls_in_any_order = st.lists(
    st.sampled_from(
        [
            HK_PAUSE,
            pause(2, "EEA", on=5, name="eea"),
            pause(3, "*", on=25, name="all"),
            lift(4, on=8, name="eea"),
            lift(5, on=20, name="hk-2024", opt_ins=OptIns.KEEP),
            policy(6, terms("US", "HK"), terms("EEA", regime=Regime.OPT_IN), on=2),
            policy(7, terms("*", regime=Regime.NOT_OFFERED), on=12),
            policy(8, terms("*", minors=Minors.EXCLUDE_UNLESS_ADULT, notice_until=day(22)), on=15),
        ]
    ),
    max_size=6,
    unique=True,
)
settled_histories = st.builds(
    lambda place, history: [
        moved(place, 1000, on=0),
        *(event for event in history if not isinstance(event, UNSAID)),
    ],
    st.sampled_from(["HK", "US", "DE", "GB-SCT"]),
    histories(),
)
"""Members of whom a residence is known and nothing is held: most of their questions get down the
whole ladder.
"""
late_days = st.integers(5, 40)
rows = st.none() | st.builds(
    Row, jurisdiction=st.sampled_from([None, "HK", "US", "DE", "ATLANTIS"])
)


class TestTheChain:
    def test_a_paused_member_hears_since_when_by_whom_what_they_chose_and_what_would_be_otherwise(
        self,
    ) -> None:
        """The one sentence that a privacy officer owes to a member, a lawyer and a regulator
        alike.
        """
        assert asked(HK, controls=OPEN.after(HK_PAUSE)).because == (
            "Hong Kong (HK) is paused since 12 Jan 2024 by PCPD undertaking (hk-2024 v1), "
            "recorded 15 Jan 2024 09:00Z",
            "the member had not chosen for genai_training",
            "without the pause, policy 900 for Hong Kong (HK) would have allowed the use "
            "(default on, legitimate interest)",
        )

    def test_would_have_allowed_is_said_only_where_no_other_pause_or_terms_refuse(self) -> None:
        """A desk that lifts one pause of two on this word would open what the other still
        forbids.
        """
        both = OPEN.after(HK_PAUSE, pause(5, "*", on=15, name="all", authority="DPC"))
        closed = policies(regime=Regime.NOT_OFFERED).after(HK_PAUSE)

        *_, also, _, otherwise = asked(HK, controls=both).because

        assert also.startswith(
            "also, Hong Kong (HK) is paused since 16 Jan 2024 by DPC (all v1, everywhere)"
        )
        assert otherwise.startswith("without the pauses, policy 900")
        assert asked(HK, controls=closed).because[-1] == (
            "without the pause, policy 900 for Hong Kong (HK) would not have offered the use"
        )

    def test_a_pause_over_an_opt_out_sets_both_aside(self) -> None:
        """Someone would lift the pause and believe the member open, who said no."""
        *_, chosen, otherwise = asked(
            HK, chose(Choice.OPT_OUT, 2, on=2), controls=OPEN.after(HK_PAUSE)
        ).because

        assert chosen == "the member opted out of genai_training on 3 Jan 2024"
        assert otherwise.startswith(
            "without the pause and the opt-out, policy 900 for Hong Kong (HK) would have allowed"
        )

    def test_an_opt_out_says_what_the_terms_would_be_without_it(self) -> None:
        """The officer asks whether the objection is what keeps the data out."""
        found = asked(
            HK,
            chose(Choice.OPT_OUT, 2, on=2),
            controls=policies(regime=Regime.OPT_IN, basis="CONSENT"),
        )

        assert found.because[-1] == (
            "without the opt-out, policy 900 for Hong Kong (HK) would have asked for an opt-in "
            "(opt-in, consent)"
        )

    def test_where_member_and_row_differ_both_are_told_and_which_refused(self) -> None:
        """A row would be looked for under the wrong country's rules."""
        found = asked(HK, controls=OPEN.after(HK_PAUSE), row=Row(jurisdiction="US"))
        both = asked(
            HK,
            controls=OPEN.after(HK_PAUSE, pause(5, "US", on=3, name="us")),
            row=Row(jurisdiction="US"),
        )

        assert found.because[2] == (
            "the member lives in Hong Kong (HK), which refuses; the row comes from United States "
            "(US), which allows; "
            "policy 900 for United States (US) allows the use (default on, legitimate interest)"
        )
        assert both.because[-1].endswith("would have allowed the use (default on, legitimate "
                                         "interest), yet "
                                         "United States (US) would still have refused")  # fmt: skip

    def test_a_pause_that_nobody_could_know_of_is_told_as_such(self) -> None:
        """The answer of that day reads as a mistake unless it says what was recorded later."""
        found = asked(HK, controls=OPEN.after(HK_PAUSE), at=12)

        assert found.decision.allowed
        assert found.chain[-1].role is SentenceRole.NOT_COUNTED
        assert found.because[-1].startswith(
            "not yet known then: Hong Kong (HK) is paused since 12 Jan 2024"
        )

    def test_an_opt_in_that_did_not_cancel_an_opt_out_is_told_with_the_reason(self) -> None:
        """The member remembers having opted in again, and asks why that was ignored."""
        found = asked(HK, chose(Choice.OPT_OUT, 2, on=2), chose(Choice.OPT_IN, 3, on=3, observed=1))

        assert found.because[1] == (
            "an opt-in on 4 Jan 2024 is not counted: it did not cancel the opt-out, as the person "
            "had not seen it "
            "(they had seen version 1)"
        )

    def test_a_choice_that_was_not_understood_is_not_told_as_no_choice(self) -> None:
        """The member did say something, and it took their opt-in back."""
        found = asked(HK, chose(Choice.OPT_IN, 2, on=2), chose(Choice.UNKNOWN, 3, on=3))

        assert (
            found.because[1]
            == "no choice of the member for genai_training stands: the last one is not understood"
        )

    @pytest.mark.parametrize(
        ("events", "row", "text"),
        [
            ((), None, "nothing was ever recorded of the member, and no row was asked about"),
            (
                (),
                Row(category="posts"),
                "nothing was ever recorded of the member, and the row names no jurisdiction",
            ),
            (
                (chose(Choice.OPT_IN, 2, on=2),),
                Row(),
                "the member has no known residence, and the row names no jurisdiction",
            ),
            (
                (HK,),
                Row(jurisdiction="XX"),
                "the row names a jurisdiction that is not known: 'XX' is not a known code",
            ),
        ],
    )
    def test_an_unknown_jurisdiction_says_who_names_none(
        self, events: tuple[MemberEvent, ...], row: Row | None, text: str
    ) -> None:
        """Whoever mends it has to know whether the member's record or the data set lacks it."""
        found = asked(*events, row=row)

        assert found.decision.reason is Reason.JURISDICTION_UNKNOWN
        assert found.because[0] == text

    def test_a_folded_history_says_from_when_on_the_record_answers(self) -> None:
        """The officer would try dates one by one."""
        many = [chose(Choice.OPT_OUT, 2 + number, on=2 + number) for number in range(FACTS_MAX)]

        found = asked(HK, *many, at=1.5)

        assert found.decision.reason is Reason.HISTORY_FOLDED
        assert found.because == (
            "the record's oldest facts were folded together: it answers for uses from 4 Jan 2024 "
            "on, "
            "by what was known from 4 Jan 2024 on",
        )
        assert not any(note.counts for note in found.facts)

    @given(histories() | settled_histories, controls_in_any_order, rows, late_days, late_days)
    def test_it_explains_the_decision_that_is_made_and_never_another(
        self,
        history: list[MemberEvent],
        controls: list[Control],
        row: Row | None,
        at: int,
        known_at: int,
    ) -> None:
        """A reason that is not the reason is worse than none."""
        record, held = folded(*history), OPEN.after(*controls)
        question = {"purpose": PURPOSE, "at": day(at), "known_at": day(known_at)}

        found = explain(ExplainQuestion(record=record, row=row, controls=held, **question))  # type: ignore[arg-type]

        assert found.decision == decide(record, row, held, **question)  # type: ignore[arg-type]
        assert found.chain[0].ground == found.decision.because[0]
        assert all(found.because)

    @given(settled_histories, controls_in_any_order, late_days, late_days)
    def test_what_would_have_been_is_what_the_rules_say_without_pauses_and_opt_out(
        self, history: list[MemberEvent], controls: list[Control], at: int, known_at: int
    ) -> None:
        """*Would have allowed* is read as leave to go on once the pause is gone."""
        record, held = folded(*history), OPEN.after(*controls)
        question = {"purpose": PURPOSE, "at": day(at), "known_at": day(known_at)}
        found = explain(ExplainQuestion(record=record, row=None, controls=held, **question))  # type: ignore[arg-type]
        otherwise = [link for link in found.chain if link.role is SentenceRole.OTHERWISE]
        assert bool(otherwise) == (found.decision.reason in (Reason.PAUSED, Reason.OPTED_OUT))
        if not otherwise or record is None:
            return

        # The plain way: the same question of a log without unlifted pauses and a record without
        # that member's choices.
        open_log = [
            control
            for control in held.log
            if not isinstance(control, PauseImposed)
            or held.is_lifted(control, at=day(at), known_at=day(known_at))
        ]
        if "the opt-out" in otherwise[0].text:
            record = replace(
                record, facts=tuple(fact for fact in record.facts if fact.kind not in CHOICE_FACTS)
            )
        plain = decide(record, None, Controls(WORLD).after(*open_log), **question)  # type: ignore[arg-type]

        assert otherwise[0].ground.reason is plain.reason
        assert ("would have allowed" in otherwise[0].text) == plain.allowed


class TestFacts:
    def test_what_came_too_late_for_the_question_is_shown_and_marked(self) -> None:
        """A fact that is silently left out looks like a fact that was lost."""
        found = asked(
            HK,
            chose(Choice.OPT_OUT, 2, on=20, effective_at=day(4)),
            chose(Choice.OPT_IN, 3, on=5, effective_at=day(25)),
            erased(4, on=25),
            at=10,
        )

        assert [note.why_not for note in found.facts] == [
            "",
            "recorded later",
            "takes effect later",
            "recorded later, and takes effect later",
        ]
        assert found.because[1] == "the member had not chosen for genai_training"

    def test_a_fact_that_another_replaced_names_it(self) -> None:
        """Two residences, and nobody could see which of them was asked."""
        found = asked(
            HK,
            chose(Choice.OPT_IN, 2, on=2),
            moved("US", 3, on=3),
            chose(Choice.OPT_OUT, 4, on=4),
            unreadable(5, on=5),
            released(6, on=6),
        )

        assert [(note.fact.version, note.replaced_by) for note in found.facts] == [
            (1, 3), (2, 4), (3, None), (4, None), (5, 6), (6, None),
        ]  # fmt: skip
        assert all(note.counts for note in found.facts)

    def test_a_voided_opt_in_names_the_lift_that_made_it_void(self) -> None:
        """The member remembers having agreed, and deserves to hear why that no longer counts."""
        controls = policies(regime=Regime.OPT_IN).after(pause(1, "HK", on=3), lift(2, on=4))

        found = asked(HK, chose(Choice.OPT_IN, 2, on=2), controls=controls)
        also_us = asked(
            HK, chose(Choice.OPT_IN, 2, on=2), controls=controls, row=Row(jurisdiction="US")
        )

        assert found.because[1] == "the lift of pause-1 on 5 Jan 2024 voided the earlier opt-in"
        assert note(found, 2).why_not == "the lift of pause-1, recorded 5 Jan 2024, made it void"
        assert note(also_us, 2).why_not.endswith("made it void in Hong Kong (HK)")

    def test_what_was_said_after_an_erasure_and_of_other_purposes_is_marked(self) -> None:
        """Someone would believe that an opt-in brought an erased person back."""
        ahead = MemberErased(
            event_id=identity(2), member=MEMBER, effective_at=day(10), recorded_at=day(5)
        )

        found = asked(
            HK, ahead, chose(Choice.OPT_IN, 3, on=6), chose(Choice.OPT_OUT, 4, on=7, purpose="ads")
        )
        before = asked(HK, chose(Choice.OPT_OUT, 4, on=7, purpose="ads"))

        assert found.decision.reason is Reason.ERASED
        assert {note(found, 3).why_not, note(found, 4).why_not} == {"it followed the erasure"}
        assert note(before, 2).why_not == "it is about another purpose"

    def test_a_choice_that_left_an_opt_out_standing_says_why(self) -> None:
        """An opt-in below an opt-out reads as if it had been heeded."""
        found = asked(
            HK,
            chose(Choice.OPT_OUT, 2, on=2),
            chose(Choice.OPT_IN, 3, on=3),
            chose(Choice.UNKNOWN, 4, on=4),
        )

        assert (
            note(found, 3).why_not
            == "it did not cancel the opt-out, as nothing shows that the person had seen it"
        )
        assert note(found, 4).why_not == "it is not understood, and leaves the opt-out of fact 2"
        assert note(found, 2).replaced_by is None

    def test_a_release_that_left_a_hold_standing_says_why(self) -> None:
        """Whoever released the member would wonder for ever why they are still excluded."""
        found = asked(HK, unreadable(2, on=2), unreadable(3, on=3), released(4, on=4, observed=2))

        assert found.decision.reason is Reason.QUARANTINED
        assert note(found, 4).why_not == (
            "it did not end the quarantine of fact 3, as the operator had not looked at it (they "
            "had looked at version 2)"
        )
        assert [note(found, version).replaced_by for version in (2, 3)] == [3, None]

    @given(histories() | settled_histories, st.integers(0, 30), st.integers(0, 30))
    def test_every_fact_is_shown_once_and_the_standing_ones_count(
        self, history: list[MemberEvent], at: int, known_at: int
    ) -> None:
        """A fact that decides and is marked as not counted would be a contradiction on one page."""
        found = asked(*history, at=at, known_at=known_at)
        own = found.asked.member_state()

        assert [note.fact for note in found.facts] == list(
            found.asked.record.facts if found.asked.record else ()
        )
        if own.erasure is not None:
            assert note(found, own.erasure.version).counts
            return
        for standing in filter(None, (own.quarantine, own.relocation, own.choice)):
            assert note(found, standing.version).counts
            assert note(found, standing.version).replaced_by is None


class TestLimits:
    @pytest.mark.parametrize(
        ("more", "member", "row", "end"),
        [
            ({"minors": Minors.EXCLUDE}, AgeBand.MINOR, None, "the member is a minor"),
            (
                {"minors": Minors.EXCLUDE_UNLESS_ADULT},
                AgeBand.UNKNOWN,
                None,
                "the member is not known to be of age",
            ),
            (
                {"categories": ("posts", "profile")},
                AgeBand.ADULT,
                Row(category="groups"),
                "the category groups is not among posts, profile",
            ),
            (
                {"collected_from": day(5)},
                AgeBand.ADULT,
                Row(collected=day(4)),
                "the row was collected on 5 Jan 2024, before 6 Jan 2024",
            ),
            (
                {"collected_from": day(5)},
                AgeBand.ADULT,
                Row(),
                "nobody knows when the row was collected, and only data from 6 Jan 2024 on is "
                "covered",
            ),
        ],
    )
    def test_a_use_outside_the_terms_hears_which_limit_failed(
        self, more: dict[str, Any], member: AgeBand, row: Row | None, end: str
    ) -> None:
        """Of four limits the data team would mend the wrong one."""
        found = asked(moved("HK", 1, on=1, age_band=member), controls=policies(**more), row=row)

        assert found.because[0] == f"policy 900 for Hong Kong (HK) does not cover the use: {end}"


class TestSentences:
    def test_a_pause_tells_both_of_its_dates(self) -> None:
        """The regulator asks since when, and since when we knew."""
        controls = OPEN.after(
            pause(1, "HK", on=14, name="hk-2024", effective_at=day(11), authority="PCPD")
        )

        assert said(HK, controls=controls) == (
            "HK is paused since 12 Jan 2024 by PCPD (hk-2024 v1), recorded 15 Jan 2024"
        )

    def test_a_pause_of_a_larger_scope_names_it(self) -> None:
        """Nobody would find a pause of Germany, where the whole EEA was paused."""
        found = said(moved("DE", 1, on=1), controls=OPEN.after(pause(1, "EEA", on=2)))
        part = said(moved("US-CA", 1, on=1), controls=OPEN.after(pause(1, "US", on=2)))

        assert "(pause-1 v1, for EEA)" in found
        assert "(pause-1 v1, for US)" in part

    def test_a_members_own_act_is_told_as_theirs(self) -> None:
        """Members ask what they are held to have said."""
        assert said(HK, chose(Choice.OPT_OUT, 2, on=2.5)) == (
            "the member opted out of genai_training on 3 Jan 2024 12:00Z"
        )
        assert said(HK, erased(2, on=3)) == "the member was erased on 4 Jan 2024"
        assert (
            said(HK, unreadable(2, on=3))
            == "the member is quarantined: an event of theirs was quarantined on 4 Jan 2024"
        )

    @pytest.mark.parametrize(
        ("more", "end"),
        [
            ({}, "allows the use (default on)"),
            ({"basis": "CONSENT"}, "allows the use (default on, consent)"),
            (
                {"notice_until": day(40)},
                "is under notice until 10 Feb 2024, and until then uses only members who opted in "
                "(default on)",
            ),
            ({"regime": Regime.OPT_IN}, "asks for an opt-in (opt-in)"),
            ({"regime": Regime.NOT_OFFERED}, "does not offer the use"),
            (
                {"regime": Regime.UNKNOWN},
                "does not offer the use (a regime that is not understood)",
            ),
        ],
    )
    def test_a_policy_is_named_by_version_place_and_what_it_does(
        self, more: dict[str, Any], end: str
    ) -> None:
        """The officer looks the text of that version up."""
        assert said(HK, controls=policies(**more)) == f"policy 900 for HK {end}"

    @given(histories())
    def test_every_decision_can_be_explained(self, history: list[MemberEvent]) -> None:
        """An answer without a reason is one that nobody can stand up for."""
        decision = decide(
            folded(*history), None, OPEN, purpose=PURPOSE, at=day(30), known_at=day(30)
        )

        assert all(sentences(decision))

    def test_a_time_of_day_is_told_only_where_there_is_one(self) -> None:
        """Dates with midnight on them read as if something happened at midnight."""
        assert date_text(day(0)) == "1 Jan 2024"
        assert date_text(day(0.25)) == "1 Jan 2024 06:00Z"
        assert date_text(Micros(day(0) + 7_000_000)) == "1 Jan 2024 00:00:07Z"
        assert date_text(Micros(day(0) + 1)) == "1 Jan 2024 00:00:00Z"


class TestData:
    def test_a_machine_gets_every_ground_with_its_identity_and_times(self) -> None:
        """An audit that parses English breaks with the next better wording."""
        found = as_data(
            asked(HK, controls=OPEN.after(HK_PAUSE), row=Row(jurisdiction="US", collected=day(2)))
        )

        assert found["row"] == {
            "jurisdiction": "US",
            "category": None,
            "collected_at": "2024-01-03T00:00:00+00:00",
        }
        assert (found["allowed"], found["reason"], found["version"]) == (False, "PAUSED", 1)
        assert found["grounds"][0] == {
            "role": "decides",
            "reason": "PAUSED",
            "kind": "pause",
            "jurisdiction": "HK",
            "pause": "hk-2024",
            "version": 1,
            "event_id": "00000000-0000-0000-0000-000000000001",
            "effective_at": "2024-01-12T00:00:00+00:00",
            "recorded_at": "2024-01-15T09:00:00+00:00",
        }
        assert [ground["kind"] for ground in found["grounds"]] == [
            "pause",
            "note",
            "policy",
            "policy",
        ]
        assert found["facts"][0]["counts"] is True
        assert found["facts"][0]["why_not"] is None

    @given(histories() | settled_histories, controls_in_any_order, rows)
    def test_every_explanation_can_be_written_as_json(
        self, history: list[MemberEvent], controls: list[Control], row: Row | None
    ) -> None:
        """One odd record, and the auditor's script stops."""
        found = as_data(asked(*history, controls=OPEN.after(*controls), row=row))

        assert json.loads(json.dumps(found)) == found
        assert len(found["because"]) == len(found["grounds"])
