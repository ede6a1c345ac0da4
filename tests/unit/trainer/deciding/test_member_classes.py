"""What of a member's state matters to an answer: said once by the rules, and by the columns alike.

These tests fail when a decision is given a new input and one of its other forms is not.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import fields
from random import Random
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import WORLD, day, lift, policy, terms
from tests.unit.trainer.deciding.test_decide_table import (
    CATEGORIES,
    control_by_chance,
    question_by_chance,
    record_by_chance,
)

from consentry.domain.controls import ApplicableControls, Controls, OptIns
from consentry.domain.decisions import MemberState, Row, decide_state, member_state
from consentry.domain.values import Reason
from consentry.trainer.deciding.fact_columns import _SIGNATURE, FactColumns
from consentry.trainer.deciding.join_tables import JoinTables
from consentry.trainer.deciding.member_classes import RowKind
from consentry.wire.frames import frame
from consentry.wire.records import write_record

LIFTS = (lift(901, on=8), lift(902, on=16, name="other"), lift(903, on=24, opt_ins=OptIns.KEEP))
ROWS = (
    None,
    *(Row(jurisdiction=code, category=kind) for code in (None, "HK") for kind in CATEGORIES[:2]),
    Row(jurisdiction="US", collected=day(5)),
)


def states_by_chance(random: Random, question: dict[str, object], count: int) -> list[MemberState]:
    """The states of members with any records."""
    records = [record_by_chance(random, f"m{number}") for number in range(count)]
    return [member_state(record, **question) for record in records]  # type: ignore[arg-type] # a question's values have three types


class TestEveryInputIsAccountedFor:
    def test_every_field_of_a_member_state_has_its_columns(self) -> None:
        """A field that only the rules read lets one member's answer stand for another's."""
        columns: dict[str, tuple[str, ...]] = {
            "erasure": ("is_erased",),
            "quarantine": ("is_quarantined",),
            # A record of which facts were folded away is never plain, and left to the rules.
            "is_folded": (),
            "relocation": ("place", "age"),
            "choice": ("choice", "lifts"),
        }

        assert set(columns) == set(MemberState._fields)
        assert {name for names in columns.values() for name in names} == set(_SIGNATURE.names or ())

    def test_every_input_of_a_decision_is_one_of_the_question_the_row_or_the_controls(self) -> None:
        """A question that is asked of one row alone has to be asked of tables too."""
        assert [*inspect.signature(decide_state).parameters] == [
            *("own", "row", "controls"),
            *("purpose", "at", "known_at"),
        ]
        assert ApplicableControls._fields == ("pause", "policy", "terms", "voiding_lift")

    def test_every_field_of_a_row_is_an_axis_of_the_tables(self) -> None:
        """Rows that differ in one that is none would get the answer of the first."""
        row_fields = {field.name for field in fields(Row)}
        axes = {"jurisdiction": "places", "category": "kinds", "collected": "cut_offs"}

        assert row_fields == set(axes)
        assert len(get_args(RowKind)) == len(axes)
        assert set(axes.values()) <= {field.name for field in fields(JoinTables)}


class TestEquivalence:
    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, 2**48))
    def test_members_with_one_key_get_one_answer_to_every_question(self, seed: int) -> None:
        """One of them is asked about, and the others are given the answer."""
        random = Random(seed)
        more = [control_by_chance(random, number) for number in range(6)]
        controls = Controls(WORLD).after(policy(900, terms("*"), on=0), *LIFTS, *more)
        question = question_by_chance(random)
        answers: dict[Hashable, set[tuple[Reason, ...]]] = defaultdict(set)

        for own in states_by_chance(random, question, 60):
            decisions = [decide_state(own, row, controls, **question) for row in ROWS]
            key = own.equivalence_key(controls.opt_ins_voided_at)
            answers[key].add(tuple(decision.reason for decision in decisions))

        assert [reasons for reasons in answers.values() if len(reasons) > 1] == []

    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, 2**48))
    def test_the_columns_tell_apart_what_the_rules_do_and_nothing_else(self, seed: int) -> None:
        """Less would let one choice speak for another; more costs a question for each member."""
        random = Random(seed)
        question = question_by_chance(random)
        voided_at = Controls(WORLD).after(*LIFTS).opt_ins_voided_at
        records = [record_by_chance(random, f"m{number}") for number in range(60)]
        members = [record.member.encode() for record in records]
        raws = [write_record(record, frame(1)) for record in records]

        signatures = FactColumns(members, raws, question["purpose"]).signatures(
            question["at"], question["known_at"], voided_at
        )
        keys = [member_state(record, **question).equivalence_key(voided_at) for record in records]

        pairs = {
            (signature, key)
            for signature, key in zip(signatures, keys, strict=True)
            if signature is not None
        }
        assert len(pairs) == len({signature for signature, _ in pairs})
        assert len(pairs) == len({key for _, key in pairs})

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 2**48))
    def test_whoever_is_excluded_by_their_own_facts_is_allowed_by_no_row(self, seed: int) -> None:
        """Bundles and certificates name them without asking about any row."""
        random = Random(seed)
        more = [control_by_chance(random, number) for number in range(6)]
        controls = Controls(WORLD).after(policy(900, terms("*"), on=0), *more)
        question = question_by_chance(random)
        states = states_by_chance(random, question, 40)
        excluded = [own for own in states if own.is_excluded_by_own_facts]

        decisions = [
            decide_state(own, row, controls, **question) for own in excluded for row in ROWS
        ]

        assert [decision for decision in decisions if decision.allowed] == []
