"""The filters' benchmark: every way leaves the rows that it should, and what is told follows from
what was measured.
"""

from __future__ import annotations

import io
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from bench import __main__ as command
from bench.figures import CannotMeasure
from bench.filter_ways import FilterCase, make_case, measure_case, ways_of
from bench.filters import IN_MEMORY, KINDS, OURS, WAYS, FilterSizes, document, show_filters, summary
from rich.console import Console
from tests.contract.filters.corpus import decided_alone

from consentry.domain.values import Reason

AT = datetime(2026, 11, 22, tzinfo=UTC)
SIZES = FilterSizes(rows=3_000, members=300)


def seconds(**of_ways: float) -> dict[str, list[float]]:
    """Two rounds of a thousand rows, one second for each way that is not told."""
    return {way: [of_ways.get(way, 1.0)] * 2 for way in WAYS} | {
        "rows": [1000],
        "first_decision": [4.0],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_ours_has_to_leave_is_what_the_rules_say(kind: str) -> None:
    """A filter that lets everything through is the quickest of all."""
    case = make_case(kind, SIZES, seed=1)
    at, table = case.decider._at, case.table
    assert at is not None
    reasons = decided_alone(case.decider.snapshot, table, at=at, purpose="genai_training")
    allowed = [reason in (Reason.OPTED_IN, Reason.DEFAULT_ON) for reason in reasons]
    assert np.flatnonzero(allowed).tolist() == case.expected.tolist()
    assert set(reasons) == {
        Reason.DEFAULT_ON,
        Reason.OPTED_OUT,
        Reason.PAUSED,
        Reason.OUTSIDE_TERMS,
    }
    assert set(case.expected) < set(case.not_excluded)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_is_timed_and_held_to_its_rows(kind: str) -> None:
    """One that loses rows has nothing to gather."""
    found = measure_case(make_case(kind, SIZES, seed=1), repeats=2)
    assert {way: len(found[way]) for way in WAYS} == dict.fromkeys(WAYS, 2)
    assert summary(found | {way: [1.0, 1.0] for way in WAYS})["ratios"] == dict.fromkeys(OURS, 1.0)


def test_a_wrong_answer_is_no_figure() -> None:
    """The bench is the last that looks at a million rows."""
    case = make_case("text", SIZES, seed=1)
    wrong = FilterCase(
        case.decider, case.table, case.excluded, case.expected[:-1], case.not_excluded
    )
    with pytest.raises(CannotMeasure, match="decision does not leave the rows"):
        measure_case(wrong, repeats=1)
    with ExitStack() as stack:
        assert set(ways_of(case, stack)) == set(WAYS)


def test_a_ratio_is_below_one_where_ours_is_slower() -> None:
    """The wrong way round it would praise what is slow."""
    told = summary(seconds(arrow=4.0, polars_anti_join=2.0, decision=0.5))
    assert told["ratios"]["arrow"] == 0.5
    assert told["ratios_to_is_in"]["arrow"] == 0.25
    assert told["ratio_of_decision"] == 2.0
    assert told["first_decision"] == 250.0


@pytest.mark.parametrize("way", IN_MEMORY)
@pytest.mark.parametrize(("slower", "is_so"), [(2.0, True), (2.1, False)])
def test_what_is_promised_is_said_and_told(way: str, slower: float, is_so: bool) -> None:
    """A promise that is kept by text ids alone, or by one library, is not kept."""
    found: dict[str, Any] = {"sizes": SIZES._asdict(), "text": summary(seconds())}
    results = document(
        {"machine": {}}, found | {"integers": summary(seconds(**{way: slower}))}, at=AT
    )
    assert results["ok"] == {"in_memory_at_least_half_of_an_anti_join": is_so}
    out = io.StringIO()
    show_filters(results, Console(file=out, width=150))
    assert f"at least 0.5 of the Polars anti-join: {'yes' if is_so else 'no'}" in out.getvalue()


def test_the_command_measures_the_filters_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Asked for one thing it must not take minutes for all; and five million rows are what was
    promised.
    """
    called: list[tuple[int, int]] = []
    monkeypatch.setattr(
        command, "run_filters", lambda options, _: called.append((options.rows, options.members))
    )
    assert command.main(["filters"]) == 0
    assert command.main(["filters", "--rows", "7000"]) == 0
    assert called == [(5_000_000, 1_000_000), (7_000, 1_000_000)]
