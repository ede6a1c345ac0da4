"""Teeth: a quick wrong answer is no figure, and what is compared is the same on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench import rules
from bench.figures import CannotMeasure
from bench.rule_data import (
    NOW,
    YEAR_MICROS,
    controls_of,
    fold_all,
    make_controls,
    make_histories,
    make_raws,
    make_snapshot,
    make_table,
    opt_out,
)
from bench.rules import (
    RuleSizes,
    check_same,
    decide_all,
    decide_alone,
    make_questions,
    measure_decide,
    measure_fold,
    measure_many,
    measure_rules,
    measure_table,
    new_controls,
    rows_of,
    summary,
    time_cpu,
)

from consentry.domain.controls import PauseImposed, PauseLifted, PolicyPublished
from consentry.domain.values import Reason
from consentry.trainer.deciding.decide_table import REASONS, Decisions
from consentry.trainer.deciding.snapshot import Snapshot


@pytest.fixture(scope="module")
def raws() -> dict[bytes, bytes]:
    """The records of 300 members, made of 50 histories."""
    return make_raws(fold_all(make_histories(50, seed=1)), 300, seed=1)


@pytest.fixture
def snapshot(raws: dict[bytes, bytes]) -> Snapshot:
    """A trainer's view of them, not asked anything yet."""
    return make_snapshot(raws, make_controls(20, seed=1))


class TestWorld:
    def test_the_same_seed_gives_the_same_world(self) -> None:
        """Two versions of the rules are compared on the same questions."""
        for make in (make_histories, make_controls):
            assert make(30, seed=7) == make(30, seed=7) != make(30, seed=8)

    def test_members_have_three_to_six_events_in_log_order(self) -> None:
        """A figure for members of one event would be one of something else."""
        histories = make_histories(500, seed=1)

        assert {len(events) for events in histories} == {3, 4, 5, 6}
        for events in histories:
            instants = [event.recorded_at for event in events]
            assert instants == sorted(instants)
            assert NOW - YEAR_MICROS <= instants[0] <= instants[-1] <= NOW
        assert len({event.event_id for events in histories for event in events}) == sum(
            map(len, histories)
        )

    def test_controls_are_a_mix_that_regulators_could_make(self) -> None:
        """Lifts of pauses that were never imposed would cost nothing."""
        controls = make_controls(2_000, seed=1)
        pauses = {
            control.pause: control for control in controls if isinstance(control, PauseImposed)
        }
        lifts = [control for control in controls if isinstance(control, PauseLifted)]

        assert isinstance(controls[0], PolicyPublished)
        assert controls[0].terms[0].jurisdictions == ("*",)
        assert len(controls_of(controls).log) == 2_000
        assert 0.5 < len(pauses) / 2_000 < 0.75
        assert len(lifts) > 400
        assert all(pauses[lift.pause].recorded_at <= lift.recorded_at for lift in lifts)

    def test_members_beyond_the_histories_say_what_others_say_under_their_own_name(
        self, raws: dict[bytes, bytes], snapshot: Snapshot
    ) -> None:
        """A record under a wrong name is damaged, and a table of the damaged is decided in no
        time.
        """
        assert snapshot.records == raws
        assert len(raws) == 300
        assert not any(snapshot.is_quarantined(key) for key in raws)

    def test_those_who_opt_out_are_heard(self, snapshot: Snapshot) -> None:
        """If nothing changed between two calls, the second one would be a look into memory."""
        before = dict(snapshot.records)

        opt_out(snapshot, 40, seed=1)

        changed = [key for key in before if snapshot.records[key] != before[key]]
        assert len(changed) == 40
        assert snapshot.regressions == 0

    def test_a_table_has_rows_of_every_kind(self, raws: dict[bytes, bytes]) -> None:
        """Columns of one value would be decided as one question."""
        table = make_table(raws, 2_000, seed=1)

        assert {value.as_py() for value in table["member_id"].unique()} <= {
            key.decode() for key in raws
        }
        assert [table[name].null_count > 0 for name in table.column_names] == [
            False,
            True,
            True,
            False,
        ]
        assert [len(table[name].unique()) for name in ("country", "category")] == [16, 5]


class TestMeasuring:
    def test_every_figure_is_told(self) -> None:
        """A figure that is missing is one that got worse."""
        found = measure_rules(
            RuleSizes(histories=20, questions=20, rows=400, members=120), repeats=2, seed=1
        )

        rates = {
            name: figure
            for name, figure in found.items()
            if name.endswith(("_micros", "_per_second"))
        }
        assert len(rates) == 8
        assert all(
            figure["repeats"] == 2 and 0 < figure["low"] <= figure["high"]
            for figure in rates.values()
        )
        assert found["sizes"]["rows"] == 400

    def test_a_lost_event_is_noticed(self) -> None:
        """The quickest way to fold is to drop."""
        histories = make_histories(5, seed=1)
        histories[2] = [*histories[2], histories[2][-1]]

        with pytest.raises(CannotMeasure, match="1 lost"):
            measure_fold(histories)

    def test_an_answer_that_a_row_does_not_get_alone_is_noticed(
        self, snapshot: Snapshot, raws: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A table that allows everything is the quickest of all."""
        table = make_table(raws, 500, seed=1)
        monkeypatch.setattr(
            rules,
            "decide_all",
            lambda *_: Decisions(np.full(500, REASONS.index(Reason.OPTED_IN), dtype=np.int8)),
        )

        with pytest.raises(CannotMeasure, match="Rows of the table"):
            measure_table(snapshot, table, seed=1)

    def test_table_and_loop_are_asked_the_same(
        self, snapshot: Snapshot, raws: dict[bytes, bytes]
    ) -> None:
        """Otherwise they could not be compared; and an opt-out between two calls has to be in the
        second.
        """
        table = make_table(raws, 2_000, seed=1)
        first = decide_all(snapshot, table)
        opt_out(snapshot, 100, seed=1)

        decisions = decide_all(snapshot, table)

        assert [REASONS[code] for code in decisions.reasons] == decide_alone(
            snapshot, rows_of(table)
        )
        assert decisions.counts() != first.counts()
        assert len(decisions.counts()) > 3

    def test_questions_are_of_now_or_of_any_time(self) -> None:
        """Many controls cost most where every question is of another moment."""
        records = fold_all(make_histories(5, seed=1))

        assert {at for _, _, at in make_questions(records, 50, years=0, seed=1)} == {NOW}
        moments = {at for _, _, at in make_questions(records, 50, years=2, seed=1)}
        assert len(moments) == 50
        assert min(moments) >= NOW - 2 * YEAR_MICROS

    def test_each_control_more_is_one_that_was_not_there(self) -> None:
        """A repeated control changes nothing, and costs as little."""
        controls = controls_of(make_controls(200, seed=1))
        more = new_controls(controls, seed=1)

        assert len(more) == 100
        assert all(len(controls.after(control).log) == 201 for control in more)

    def test_changed_answers_to_the_same_questions_are_noticed(self) -> None:
        """What is remembered must be what was answered."""
        records, controls = (
            fold_all(make_histories(5, seed=1)),
            controls_of(make_controls(20, seed=1)),
        )
        questions = make_questions(records, 10, years=2, seed=1)
        assert measure_many(questions, controls, seed=1).keys() == {
            *("decide_cold_micros", "decide_warm_micros", "extend_micros")
        }
        assert measure_decide(questions, controls)["decide_per_second"] > 0

        with pytest.raises(CannotMeasure, match="1 of 2 answers"):
            check_same(
                "answers", [Reason.PAUSED, Reason.QUARANTINED], [Reason.PAUSED, Reason.OPTED_IN]
            )
        with pytest.raises(CannotMeasure, match="1 lost"):
            check_same("answers", [Reason.PAUSED, Reason.QUARANTINED], [Reason.PAUSED])

    def test_only_the_work_of_this_process_is_timed(self) -> None:
        """On a busy machine a wall clock measures the neighbours."""
        found, seconds = time_cpu(lambda: sum(range(200_000)))

        assert found == sum(range(200_000))
        assert 0 < seconds < 5


def test_the_ratios_are_of_medians() -> None:
    """Best against worst would be a different story."""
    run: dict[str, Any] = {"table_cold_rows_per_second": 20.0, "naive_rows_per_second": 2.0}
    runs = [run | {"table_warm_rows_per_second": rate} for rate in (100.0, 200.0, 900.0)]

    found = summary(runs, RuleSizes(1, 2, 3, 4))

    assert (found["ratio_cold"], found["ratio_warm"]) == (10.0, 100.0)
    assert found["table_warm_rows_per_second"] == {
        "median": 200.0,
        "low": 100.0,
        "high": 900.0,
        "repeats": 3,
    }
