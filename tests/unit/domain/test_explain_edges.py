"""Explanations at their edges: the fields that machines read, and sentences about rows that nobody
kept.
"""

from __future__ import annotations

from typing import Any

from tests.strategies import (
    PURPOSE,
    WORLD,
    chose,
    day,
    folded,
    lift,
    moved,
    pause,
    policy,
    terms,
)

from consentry.domain.controls import Controls
from consentry.domain.decisions import Row, decide
from consentry.domain.events import MemberEvent
from consentry.domain.explain import ExplainQuestion, as_data, explain, sentences
from consentry.domain.values import DAY_MICROS, Choice, Micros
from consentry.domain.wording import duration_text

HOME = moved("HK", 1, on=1)
ZEROS = "00000000-0000-0000-0000-"


def data_of(*events: MemberEvent, controls: Controls, row: Row | None = None) -> dict[str, Any]:
    """What a machine is told on day 30."""
    asked = ExplainQuestion(
        record=folded(*events),
        row=row,
        controls=controls,
        purpose=PURPOSE,
        at=day(30),
        known_at=day(29.5),
    )
    return as_data(explain(asked))


class TestData:
    """Dashboards and regulators' tools read these fields: a renamed one is missing, and nothing
    says so.
    """

    def test_the_question_and_the_answer_have_these_fields(self) -> None:
        """Both times are told: the same question at another time has another answer."""
        row = Row(jurisdiction="HK", category="posts", collected=day(2.5))
        found = data_of(HOME, controls=Controls(WORLD), row=row)
        without = data_of(HOME, controls=Controls(WORLD))

        assert {
            name: value
            for name, value in found.items()
            if name not in ("because", "grounds", "facts")
        } == {
            "purpose": PURPOSE,
            "row": {
                "jurisdiction": "HK",
                "category": "posts",
                "collected_at": "2024-01-03T12:00:00+00:00",
            },
            "at": "2024-01-31T00:00:00+00:00",
            "known_at": "2024-01-30T12:00:00+00:00",
            "allowed": False,
            "reason": "NO_TERMS",
            "version": 1,
        }
        assert {"because", "grounds", "facts"} < found.keys()
        assert len(found["because"]) == len(found["grounds"])
        assert without["row"] is None

    def test_each_kind_of_ground_has_these_fields(self) -> None:
        """The event's identity is how a control is found again in the log."""
        controls = Controls(WORLD).after(
            policy(7, terms("*", collected_from=day(5)), on=0),
            pause(8, "HK", on=3),
            lift(9, on=4, effective_at=day(5)),
        )
        opt_in, row = chose(Choice.OPT_IN, 2, on=2), Row(collected=day(4))

        voided = data_of(HOME, opt_in, controls=controls, row=row)["grounds"]
        paused = data_of(HOME, controls=controls.after(pause(10, "HK", on=6, version=2)))["grounds"]
        opted_out = data_of(HOME, chose(Choice.OPT_OUT, 3, on=6), controls=controls)["grounds"]
        unknown = data_of(controls=controls)["grounds"]

        assert voided[:2] == [
            {
                "role": "decides",
                "reason": "OUTSIDE_TERMS",
                "kind": "policy",
                "jurisdiction": "HK",
                "version": "7",
                "event_id": f"{ZEROS}000000000007",
                "regime": "DEFAULT_ON",
                "limit": "COLLECTED_BEFORE",
                "effective_at": "2024-01-01T00:00:00+00:00",
                "recorded_at": "2024-01-01T00:00:00+00:00",
            },
            {
                "role": "beside",
                "reason": "OPT_IN_REQUIRED",
                "kind": "lift",
                "jurisdiction": "HK",
                "pause": "pause-1",
                "version": 1,
                "event_id": f"{ZEROS}000000000009",
                "effective_at": "2024-01-06T00:00:00+00:00",
                "recorded_at": "2024-01-05T00:00:00+00:00",
            },
        ]
        assert paused[0] == {
            "role": "decides",
            "reason": "PAUSED",
            "kind": "pause",
            "jurisdiction": "HK",
            "pause": "pause-1",
            "version": 2,
            "event_id": f"{ZEROS}00000000000a",
            "effective_at": "2024-01-07T00:00:00+00:00",
            "recorded_at": "2024-01-07T00:00:00+00:00",
        }
        assert opted_out[0] == {
            "role": "decides",
            "reason": "OPTED_OUT",
            "kind": "fact",
            "jurisdiction": "HK",
            "fact": "OPTED_OUT",
            "version": 2,
            "name": PURPOSE,
            "effective_at": "2024-01-07T00:00:00+00:00",
            "recorded_at": "2024-01-07T00:00:00+00:00",
        }
        assert unknown == [
            {
                "role": "decides",
                "reason": "JURISDICTION_UNKNOWN",
                "kind": "note",
                "jurisdiction": None,
            }
        ]

    def test_each_fact_has_these_fields(self) -> None:
        """A member who asks what is kept of them gets just this list."""
        opt_in = chose(Choice.OPT_IN, 2, on=3, observed=1, effective_at=day(2))

        [home, choice, later] = data_of(
            HOME, opt_in, moved("US", 3, on=4), controls=Controls(WORLD)
        )["facts"]

        assert choice == {
            "version": 2,
            "kind": "OPTED_IN",
            "name": PURPOSE,
            "effective_at": "2024-01-03T00:00:00+00:00",
            "recorded_at": "2024-01-04T00:00:00+00:00",
            "observed_version": 1,
            "counts": True,
            "why_not": None,
            "replaced_by": None,
        }
        assert (home["replaced_by"], later["replaced_by"]) == (3, None)


class TestSentences:
    def test_a_folded_history_rounds_its_bound_up_to_the_second(self) -> None:
        """Told without its fraction, the bound would be a moment at which the question is refused
        again.
        """
        recorded = Micros(day(2) + 1)
        many = (
            chose(Choice.UNKNOWN, number, on=2, recorded_at=recorded, effective_at=recorded)
            for number in range(9, 90)
        )
        asked = ExplainQuestion(
            record=folded(HOME, *many),
            row=None,
            controls=Controls(WORLD),
            purpose=PURPOSE,
            at=day(1),
            known_at=day(30),
        )

        [sentence] = explain(asked).because

        assert sentence.count("3 Jan 2024 00:00:01Z on") == 2

    def test_places_have_names_where_there_are_any(self) -> None:
        """Who reads GE thinks of Georgia or of Germany."""
        opt_out = folded(HOME, chose(Choice.OPT_OUT, 2, on=2))
        controls = Controls(WORLD).after(pause(3, "HK", on=3))
        decision = decide(opt_out, None, controls, purpose=PURPOSE, at=day(30), known_at=day(30))

        assert sentences(decision, {"HK": "Hong Kong"}.get)[0].startswith(
            "Hong Kong (HK) is paused"
        )
        assert sentences(decision)[0].startswith("HK is paused")

    def test_a_limit_is_told_also_where_the_row_was_not_kept(self) -> None:
        """A trainer's log has the decision and not the row."""
        controls = Controls(WORLD).after(
            policy(7, terms("*", categories=("posts",), collected_from=day(5)), on=0)
        )

        def said(row: Row) -> str:
            return sentences(
                decide(folded(HOME), row, controls, purpose=PURPOSE, at=day(30), known_at=day(30))
            )[0]

        assert said(Row(category="groups")).endswith(": the row's category is not among posts")
        assert said(Row(collected=day(4))).endswith(": the row was collected before 6 Jan 2024")

    def test_a_length_of_time_is_exact_however_long(self) -> None:
        """A century that is told in minutes is a mistake of the program, and read as one of the
        law.
        """
        assert duration_text(Micros(36_500 * DAY_MICROS)) == "36500 days"
