"""What the rules cost without any server: folding, deciding, controls, and a whole table beside its
naive loop.

Everything is timed in CPU seconds of this process, all its threads together: what else the machine
does counts little.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import pyarrow as pa

from bench.events import JURISDICTIONS, Event
from bench.figures import CannotMeasure, as_document, check_count, rate_of, spread_of
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
    make_table,
    make_view,
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

Found = TypeVar("Found")
Question = tuple[Record, Row, Micros]


class RuleSizes(NamedTuple):
    """How much is measured: histories to fold, questions to decide, rows and members of the
    table.
    """

    histories: int
    questions: int
    rows: int
    members: int


def measure_rules(sizes: RuleSizes, *, repeats: int, seed: int) -> dict[str, Any]:
    """All figures, of several repeats in turn. Raises CannotMeasure where an answer is wrong."""
    histories = make_histories(sizes.histories, seed=seed)
    records = fold_all(histories)
    controls, many = (
        make_controls(CONTROLS, seed=seed),
        controls_of(make_controls(CONTROLS_MANY, seed=seed)),
    )
    raws = make_raws(records, sizes.members, seed=seed)
    table = make_table(raws, sizes.rows, seed=seed)
    runs = [
        measure_fold(histories)
        | measure_decide(
            make_questions(records, sizes.questions, years=0, seed=seed), controls_of(controls)
        )
        | measure_many(
            make_questions(records, sizes.questions, years=2, seed=seed + repeat), many, seed=seed
        )
        | measure_table(make_view(raws, controls), table, seed=seed)
        for repeat in range(repeats)
    ]
    return summary(runs, sizes)


def measure_fold(histories: Sequence[Sequence[Event]]) -> dict[str, float]:
    """Events per second, folded into the records of members who are new."""
    records, seconds = timed(lambda: fold_all(histories))
    count = sum(map(len, histories))
    check_count(
        "Events in the records", expected=count, found=sum(record.version for record in records)
    )
    return {"fold_events_per_second": rate_of(count, seconds)}


def measure_decide(questions: Sequence[Question], controls: Controls) -> dict[str, float]:
    """Questions per second, under as many controls as there usually are."""
    _, seconds = timed(lambda: decide_each(questions, controls))
    return {"decide_per_second": rate_of(len(questions), seconds)}


def measure_many(
    questions: Sequence[Question], controls: Controls, *, seed: int
) -> dict[str, float]:
    """Microseconds under thousands of controls: a question never asked before, one asked again, one
    more control.
    """
    cold, cold_seconds = timed(lambda: decide_each(questions, controls))
    warm, warm_seconds = timed(lambda: decide_each(questions, controls))
    check_same("Questions that were asked again", cold, warm)
    more = new_controls(controls, seed=seed)
    extended, seconds = timed(lambda: [controls.after(control) for control in more])
    expected = (len(controls.log) + 1) * len(more)
    check_count(
        "Controls after one more",
        expected=expected,
        found=sum(len(after.log) for after in extended),
    )
    return {
        "decide_cold_micros": 1e6 / rate_of(len(questions), cold_seconds),
        "decide_warm_micros": 1e6 / rate_of(len(questions), warm_seconds),
        "extend_micros": 1e6 / rate_of(len(more), seconds),
    }


def measure_table(snapshot: Snapshot, table: pa.Table, *, seed: int) -> dict[str, float]:
    """Rows per second: all at once for the first time, once more after some opt-outs, and each row
    alone.
    """
    _, cold_seconds = timed(lambda: decide_all(snapshot, table))
    opt_out(snapshot, OPT_OUTS, seed=seed)
    decisions, warm_seconds = timed(lambda: decide_all(snapshot, table))
    rows = rows_of(table.slice(0, NAIVE_ROWS))
    alone, naive_seconds = timed(lambda: decide_alone(snapshot, rows))
    check_same(
        "Rows of the table", alone, [REASONS[place] for place in decisions.reasons[: len(rows)]]
    )
    return {
        "table_cold_rows_per_second": rate_of(table.num_rows, cold_seconds),
        "table_warm_rows_per_second": rate_of(table.num_rows, warm_seconds),
        "naive_rows_per_second": rate_of(len(rows), naive_seconds),
    }


def decide_all(snapshot: Snapshot, table: pa.Table) -> Decisions:
    """Every row at once."""
    return decide_table(
        table, snapshot, purpose=PURPOSE, at=NOW, known_at=NOW, columns=COLUMNS, is_fresh=True
    )


def decide_alone(snapshot: Snapshot, rows: Sequence[tuple[MemberId, Row]]) -> list[Reason]:
    """Every row alone: what somebody writes who does not know of tables."""
    return [
        snapshot.decide(member, row, purpose=PURPOSE, at=NOW, known_at=NOW, stale_detail="").reason
        for member, row in rows
    ]


def rows_of(table: pa.Table) -> list[tuple[MemberId, Row]]:
    """The rows of a table as the naive loop gets them: nothing of what that costs is held against
    it.
    """
    collected = table["collected"].cast(pa.int64()).to_pylist()
    columns = (table[name].to_pylist() for name in ("member_id", "country", "category"))
    return [
        (MemberId(member), Row(jurisdiction=country, category=category, collected=when))
        for member, country, category, when in zip(*columns, collected, strict=True)
    ]


def decide_each(questions: Sequence[Question], controls: Controls) -> list[Reason]:
    """The answers by the rules alone."""
    return [
        decide(record, row, controls, purpose=PURPOSE, at=at, known_at=at).reason
        for record, row, at in questions
    ]


def make_questions(
    records: Sequence[Record], count: int, *, years: int, seed: int
) -> list[Question]:
    """Questions of any row: of now, or of any moment of the last years."""
    numbers = random.Random(seed)
    return [
        (
            numbers.choice(records),
            Row(
                jurisdiction=numbers.choice((*JURISDICTIONS, None)),
                category=numbers.choice((*CATEGORIES, None)),
                collected=Micros(NOW - numbers.randrange(2 * YEAR_MICROS)),
            ),
            Micros(NOW - numbers.randrange(years * YEAR_MICROS + 1)),
        )
        for _ in range(count)
    ]


def new_controls(controls: Controls, *, seed: int) -> list[Control]:
    """Controls that these do not hold yet, each of which could be the next one."""
    known = len(controls.log)
    return make_controls(known + CONTROLS_MORE, seed=seed + 1)[known:]


def timed(act: Callable[[], Found]) -> tuple[Found, float]:
    """What `act` returns, and the CPU seconds of this process that it took."""
    gc.collect()
    start = time.process_time()
    found = act()
    return found, time.process_time() - start


def check_same(what: str, expected: Sequence[Reason], found: Sequence[Reason]) -> None:
    """Raise CannotMeasure unless the answers are the same: a quick wrong answer is no answer."""
    check_count(what, expected=len(expected), found=len(found))
    wrong = sum(one is not other for one, other in zip(expected, found, strict=True))
    if wrong:
        raise CannotMeasure(
            f"{what}: {wrong} of {len(expected)} answers are not those that were given before."
        )


def summary(runs: Sequence[Mapping[str, float]], sizes: RuleSizes) -> dict[str, Any]:
    """The part of the results that tells of the rules: medians with spread, and how they compare
    with the loop.
    """
    figures = as_document({name: spread_of([run[name] for run in runs]) for name in runs[0]})
    naive = figures["naive_rows_per_second"]["median"]
    return {
        **figures,
        "ratio_cold": round(figures["table_cold_rows_per_second"]["median"] / naive, 1),
        "ratio_warm": round(figures["table_warm_rows_per_second"]["median"] / naive, 1),
        "sizes": sizes._asdict()
        | {"controls": CONTROLS, "controls_many": CONTROLS_MANY, "opt_outs": OPT_OUTS},
    }
