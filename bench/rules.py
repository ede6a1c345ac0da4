"""The cost of the rules without any server.

Folding, deciding, controls, and a whole table beside the naive loop over its rows. All of it is
timed in CPU seconds of this process, all its threads together, so that other programs on the
machine count little.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import pyarrow as pa

from bench.events import JURISDICTIONS, Event
from bench.figures import CannotMeasure, check_count, rate_of, spreads_of
from bench.rule_data import (
    CATEGORIES,
    COLUMNS,
    NOW,
    PURPOSE,
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
from consentry.domain.controls import Control, Controls
from consentry.domain.decisions import Row, decide
from consentry.domain.records import Record
from consentry.domain.values import MemberId, Micros, Reason
from consentry.trainer.deciding.decide_table import REASONS, Decisions, decide_table
from consentry.trainer.deciding.snapshot import Snapshot

CONTROLS: Final = 20
CONTROLS_MANY: Final = 5_000
CONTROLS_MORE: Final = 100
OPT_OUTS: Final = 100
"""Members who opt out between the first and the second time that the table is decided."""
NAIVE_ROWS: Final = 20_000

Result = TypeVar("Result")
Question = tuple[Record, Row, Micros]


class RuleSizes(NamedTuple):
    """The sizes: histories to fold, questions to decide, rows and members of the table."""

    histories: int
    questions: int
    rows: int
    members: int


def measure_rules(sizes: RuleSizes, *, repeats: int, seed: int) -> dict[str, Any]:
    """Measure everything several times in turn. Raises CannotMeasure where an answer is wrong."""
    histories = make_histories(sizes.histories, seed=seed)
    records = fold_all(histories)
    controls = make_controls(CONTROLS, seed=seed)
    many_controls = controls_of(make_controls(CONTROLS_MANY, seed=seed))
    raws = make_raws(records, sizes.members, seed=seed)
    table = make_table(raws, sizes.rows, seed=seed)
    runs: list[dict[str, float]] = []
    for repeat in range(repeats):
        present = make_questions(records, sizes.questions, years=0, seed=seed)
        past = make_questions(records, sizes.questions, years=2, seed=seed + repeat)
        figures = measure_fold(histories)
        figures |= measure_decide(present, controls_of(controls))
        figures |= measure_many(past, many_controls, seed=seed)
        figures |= measure_table(make_snapshot(raws, controls), table, seed=seed)
        runs.append(figures)
    return summary(runs, sizes)


def measure_fold(histories: Sequence[Sequence[Event]]) -> dict[str, float]:
    """Return the events per second, folded into the records of new members."""
    records, seconds = time_cpu(lambda: fold_all(histories))
    count = sum(len(history) for history in histories)
    folded = sum(record.version for record in records)
    check_count("Events in the records", expected=count, found=folded)
    return {"fold_events_per_second": rate_of(count, seconds)}


def measure_decide(questions: Sequence[Question], controls: Controls) -> dict[str, float]:
    """Return the questions per second, under the usual number of controls."""
    _, seconds = time_cpu(lambda: decide_each(questions, controls))
    return {"decide_per_second": rate_of(len(questions), seconds)}


def measure_many(
    questions: Sequence[Question], controls: Controls, *, seed: int
) -> dict[str, float]:
    """Return the microseconds under thousands of controls.

    Those of a new question, of the same question again, and of adding one more control.
    """
    cold, cold_seconds = time_cpu(lambda: decide_each(questions, controls))
    warm, warm_seconds = time_cpu(lambda: decide_each(questions, controls))
    check_same("Questions that were asked again", cold, warm)
    added = new_controls(controls, seed=seed)
    extended, seconds = time_cpu(lambda: [controls.after(control) for control in added])
    expected = (len(controls.log) + 1) * len(added)
    count = sum(len(after.log) for after in extended)
    check_count("Controls after one more", expected=expected, found=count)
    return {
        "decide_cold_micros": 1e6 / rate_of(len(questions), cold_seconds),
        "decide_warm_micros": 1e6 / rate_of(len(questions), warm_seconds),
        "extend_micros": 1e6 / rate_of(len(added), seconds),
    }


def measure_table(snapshot: Snapshot, table: pa.Table, *, seed: int) -> dict[str, float]:
    """Return the rows per second.

    All rows at once for the first time, once more after some opt-outs, and each row alone.
    """
    _, cold_seconds = time_cpu(lambda: decide_all(snapshot, table))
    opt_out(snapshot, OPT_OUTS, seed=seed)
    decisions, warm_seconds = time_cpu(lambda: decide_all(snapshot, table))
    rows = rows_of(table.slice(0, NAIVE_ROWS))
    alone, naive_seconds = time_cpu(lambda: decide_alone(snapshot, rows))
    together = [REASONS[code] for code in decisions.reasons[: len(rows)]]
    check_same("Rows of the table", alone, together)
    return {
        "table_cold_rows_per_second": rate_of(table.num_rows, cold_seconds),
        "table_warm_rows_per_second": rate_of(table.num_rows, warm_seconds),
        "naive_rows_per_second": rate_of(len(rows), naive_seconds),
    }


def decide_all(snapshot: Snapshot, table: pa.Table) -> Decisions:
    """Decide all rows at once."""
    return decide_table(
        table, snapshot, purpose=PURPOSE, at=NOW, known_at=NOW, columns=COLUMNS, is_fresh=True
    )


def decide_alone(snapshot: Snapshot, rows: Sequence[tuple[MemberId, Row]]) -> list[Reason]:
    """Decide each row alone, as most would write it first."""
    reasons: list[Reason] = []
    for member, row in rows:
        decision = snapshot.decide(
            member, row, purpose=PURPOSE, at=NOW, known_at=NOW, stale_detail=""
        )
        reasons.append(decision.reason)
    return reasons


def rows_of(table: pa.Table) -> list[tuple[MemberId, Row]]:
    """Return the rows of a table as Python objects for the naive loop; this is not timed."""
    members = table["member_id"].to_pylist()
    countries = table["country"].to_pylist()
    categories = table["category"].to_pylist()
    times = table["collected"].cast(pa.int64()).to_pylist()
    rows: list[tuple[MemberId, Row]] = []
    for member, country, category, collected in zip(
        members, countries, categories, times, strict=True
    ):
        row = Row(jurisdiction=country, category=category, collected=collected)
        rows.append((MemberId(member), row))
    return rows


def decide_each(questions: Sequence[Question], controls: Controls) -> list[Reason]:
    """Return the answers by the rules alone."""
    return [
        decide(record, row, controls, purpose=PURPOSE, at=at, known_at=at).reason
        for record, row, at in questions
    ]


def make_questions(
    records: Sequence[Record], count: int, *, years: int, seed: int
) -> list[Question]:
    """Return random questions about now, or about any moment of the last `years` years."""
    numbers = random.Random(seed)
    questions: list[Question] = []
    for _ in range(count):
        record = numbers.choice(records)
        row = Row(
            jurisdiction=numbers.choice((*JURISDICTIONS, None)),
            category=numbers.choice((*CATEGORIES, None)),
            collected=Micros(NOW - numbers.randrange(2 * YEAR_MICROS)),
        )
        at = Micros(NOW - numbers.randrange(years * YEAR_MICROS + 1))
        questions.append((record, row, at))
    return questions


def new_controls(controls: Controls, *, seed: int) -> list[Control]:
    """Return controls that `controls` does not hold yet; each could be the next one."""
    known = len(controls.log)
    return make_controls(known + CONTROLS_MORE, seed=seed + 1)[known:]


def time_cpu(act: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of `act`, and the CPU seconds of this process that it took."""
    gc.collect()
    start = time.process_time()
    result = act()
    return result, time.process_time() - start


def check_same(title: str, expected: Sequence[Reason], reasons: Sequence[Reason]) -> None:
    """Raise CannotMeasure unless the answers are the same: a fast wrong answer is no answer."""
    check_count(title, expected=len(expected), found=len(reasons))
    pairs = zip(expected, reasons, strict=True)
    wrong = sum(first is not second for first, second in pairs)
    if wrong:
        raise CannotMeasure(
            f"{title}: {wrong} of {len(expected)} answers are not those that were given before."
        )


def summary(runs: Sequence[Mapping[str, float]], sizes: RuleSizes) -> dict[str, Any]:
    """Return the rules' part of the results: medians with spread, and the ratios to the loop."""
    repeats: dict[str, list[float]] = {}
    for name in runs[0]:
        repeats[name] = [run[name] for run in runs]
    figures = spreads_of(repeats)
    naive = figures["naive_rows_per_second"]["median"]
    counts = {"controls": CONTROLS, "controls_many": CONTROLS_MANY, "opt_outs": OPT_OUTS}
    return {
        **figures,
        "ratio_cold": round(figures["table_cold_rows_per_second"]["median"] / naive, 1),
        "ratio_warm": round(figures["table_warm_rows_per_second"]["median"] / naive, 1),
        "sizes": sizes._asdict() | counts,
    }
