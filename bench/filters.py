"""What the filters cost beside a bare join of the same rows: one core, a process of its own for
each kind of ids.

Ours makes the whole decision (choice, jurisdiction, pauses, terms); the peers only leave out a list
of members. All of them give back every column of the rows that stay. Timed in CPU seconds of the
process, all its threads together.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table

from bench.figures import CannotMeasure, as_document, rate_of, spread_of

KINDS: Final = ("text", "integers")
OURS: Final = ("arrow", "polars", "pandas", "huggingface", "duckdb")
IN_MEMORY: Final = ("arrow", "polars", "pandas")
"""Those of which a speed is promised; the others are read through machinery of their library."""
PEERS: Final = ("polars_anti_join", "pyarrow_is_in")
DECISION: Final = ("decision", "polars_anti_join_of_ids")
"""The decision alone, and the join of nothing but ids: what is left when no column is copied."""
WAYS: Final = (*OURS, *PEERS, *DECISION)
RATIO_MIN: Final = 0.5
_CHILD_SECONDS: Final = 3600


class FilterSizes(NamedTuple):
    """Rows of the data set, and members who opted out; as many others have rows in it too."""

    rows: int
    members: int


def measure_filters(sizes: FilterSizes, *, repeats: int, seed: int) -> dict[str, Any]:
    """Every way for each kind of ids, `repeats` times in turn.

    Raises CannotMeasure where an answer is wrong.
    """
    found = {kind: summary(_in_a_process(kind, sizes, repeats, seed)) for kind in KINDS}
    return {"sizes": sizes._asdict(), **found}


def summary(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Rows a second of each way, and the ratios to the peers of the same rounds.

    `seconds` has the rounds of each way, the number of `rows`, and the first decision of all, which
    reads every record.
    """
    count = int(seconds["rows"][0])
    rates = {way: [rate_of(count, one) for one in seconds[way]] for way in WAYS}
    return {
        **as_document({way: spread_of(found) for way, found in rates.items()}),
        "first_decision": round(rate_of(count, seconds["first_decision"][0]), 2),
        "ratios": {way: ratio_of(rates[way], rates["polars_anti_join"]) for way in OURS},
        "ratios_to_is_in": {way: ratio_of(rates[way], rates["pyarrow_is_in"]) for way in OURS},
        "ratio_of_decision": ratio_of(rates["decision"], rates["polars_anti_join_of_ids"]),
    }


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the rounds of ours to theirs; above 1 where ours is quicker."""
    return round(statistics.median(own / peer for own, peer in zip(ours, theirs, strict=True)), 3)


def document(about: Mapping[str, Any], found: Mapping[str, Any], *, at: datetime) -> dict[str, Any]:
    """All results, and whether the in-memory filters are as quick as promised."""
    slowest = min(found[kind]["ratios"][way] for kind in KINDS for way in IN_MEMORY)
    return {
        "measured_at": at.astimezone(UTC).isoformat(timespec="seconds"),
        **about,
        "filters": dict(found),
        "ok": {"in_memory_at_least_half_of_an_anti_join": slowest >= RATIO_MIN},
    }


def show_filters(results: Mapping[str, Any], console: Console) -> None:
    """Print what a person wants to know first."""
    found = results["filters"]
    sizes = found["sizes"]
    for kind in KINDS:
        title = f"{sizes['rows']:,} rows, {sizes['members']:,} excluded, ids: {kind}"
        rates = Table(
            title, "M rows/s, median", "lowest", "highest", "to the anti-join", "to is_in"
        )
        for way in WAYS:
            spread = found[kind][way]
            figures = (f"{spread[figure] / 1e6:,.2f}" for figure in ("median", "low", "high"))
            ratios = (str(found[kind][name].get(way, "")) for name in ("ratios", "ratios_to_is_in"))
            rates.add_row(way.replace("_", " "), *figures, *ratios)
        console.print(rates)
        first = found[kind]["first_decision"] / 1e6
        told = (
            f"The decision alone: {found[kind]['ratio_of_decision']} of the anti-join of ids alone"
        )
        console.print(f"{told}; {first:,.2f} M rows/s when asked for the first time")
    wanted = "yes" if results["ok"]["in_memory_at_least_half_of_an_anti_join"] else "no"
    console.print(
        f"Arrow, Polars and pandas at least {RATIO_MIN} of the Polars anti-join: {wanted}"
    )


def _in_a_process(kind: str, sizes: FilterSizes, repeats: int, seed: int) -> dict[str, list[float]]:
    """The rounds of one kind of ids, measured on one core: the libraries read how many there are
    when they start.
    """
    told = {
        "kind": kind,
        "rows": sizes.rows,
        "members": sizes.members,
        "repeats": repeats,
        "seed": seed,
    }
    threads = dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-m", "bench.filter_ways", json.dumps(told)],
        env=os.environ | threads | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=_CHILD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise CannotMeasure(f"The process that measures {kind} ids ended with {done.returncode}.")
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found
