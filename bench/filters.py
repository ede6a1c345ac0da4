"""The cost of the filters beside a bare join of the same rows.

Each kind of ids is measured on one core, in a process of its own. Ours makes the whole decision
(choice, jurisdiction, pauses, terms); the peers only leave out a list of members. All of them give
back every column of the rows that stay. Timed in CPU seconds of the process, all its threads
together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table

from bench.figures import (
    CannotMeasure,
    rate_of,
    ratio_of,
    spread_columns,
    spreads_of,
    yes_or_no,
)

KINDS: Final = ("text", "integers")
OURS: Final = ("arrow", "polars", "pandas", "huggingface", "duckdb")
IN_MEMORY: Final = ("arrow", "polars", "pandas")
"""The filters with a promised speed; the others read rows through their library's machinery."""
PEERS: Final = ("polars_anti_join", "pyarrow_is_in")
DECISION: Final = ("decision", "polars_anti_join_of_ids")
"""The decision alone, and the join of ids alone: the cost without copying columns."""
WAYS: Final = (*OURS, *PEERS, *DECISION)
RATIO_MIN: Final = 0.5
_CHILD_SECONDS: Final = 3600


class FilterSizes(NamedTuple):
    """Rows of the data set, and members who opted out; as many others have rows in it too."""

    rows: int
    members: int


def measure_filters(sizes: FilterSizes, *, repeats: int, seed: int) -> dict[str, Any]:
    """Measure every way for each kind of ids, `repeats` times in turn.

    Raises CannotMeasure where an answer is wrong.
    """
    measurement: dict[str, Any] = {"sizes": sizes._asdict()}
    for kind in KINDS:
        seconds = _measure_in_process(kind, sizes, repeats, seed)
        measurement[kind] = summary(seconds)
    return measurement


def summary(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return the rows a second of each way, and the ratios to the peers of the same rounds.

    `seconds` has the rounds of each way, the number of `rows`, and the first decision of all, which
    reads every record.
    """
    count = int(seconds["rows"][0])
    rates: dict[str, list[float]] = {}
    for way in WAYS:
        rates[way] = [rate_of(count, round_seconds) for round_seconds in seconds[way]]
    ratios: dict[str, float] = {}
    ratios_to_is_in: dict[str, float] = {}
    for way in OURS:
        ratios[way] = ratio_of(rates[way], rates["polars_anti_join"])
        ratios_to_is_in[way] = ratio_of(rates[way], rates["pyarrow_is_in"])
    return {
        **spreads_of(rates),
        "first_decision": round(rate_of(count, seconds["first_decision"][0]), 2),
        "ratios": ratios,
        "ratios_to_is_in": ratios_to_is_in,
        "ratio_of_decision": ratio_of(rates["decision"], rates["polars_anti_join_of_ids"]),
    }


def document(
    about: Mapping[str, Any], measurement: Mapping[str, Any], *, at: datetime
) -> dict[str, Any]:
    """Return all results; `ok` tells if the in-memory filters are as fast as promised."""
    in_memory: list[float] = []
    for kind in KINDS:
        ratios = measurement[kind]["ratios"]
        in_memory += [ratios[way] for way in IN_MEMORY]
    return {
        "measured_at": at.astimezone(UTC).isoformat(timespec="seconds"),
        **about,
        "filters": dict(measurement),
        "ok": {"in_memory_at_least_half_of_an_anti_join": min(in_memory) >= RATIO_MIN},
    }


def show_filters(results: Mapping[str, Any], console: Console) -> None:
    """Print the main figures for a person."""
    measurement = results["filters"]
    sizes = measurement["sizes"]
    for kind in KINDS:
        title = f"{sizes['rows']:,} rows, {sizes['members']:,} excluded, ids: {kind}"
        rates = Table(
            title, "M rows/s, median", "lowest", "highest", "to the anti-join", "to is_in"
        )
        for way in WAYS:
            spread = measurement[kind][way]
            millions = {part: spread[part] / 1e6 for part in ("median", "low", "high")}
            to_join = str(measurement[kind]["ratios"].get(way, ""))
            to_is_in = str(measurement[kind]["ratios_to_is_in"].get(way, ""))
            columns = spread_columns(millions, ",.2f")
            rates.add_row(way.replace("_", " "), *columns, to_join, to_is_in)
        console.print(rates)
        first = measurement[kind]["first_decision"] / 1e6
        ratio = measurement[kind]["ratio_of_decision"]
        console.print(
            f"The decision alone: {ratio} of the anti-join of ids alone; {first:,.2f} M rows/s "
            "when asked for the first time"
        )
    verdict = yes_or_no(results["ok"]["in_memory_at_least_half_of_an_anti_join"])
    console.print(
        f"Arrow, Polars and pandas at least {RATIO_MIN} of the Polars anti-join: {verdict}"
    )


def _measure_in_process(
    kind: str, sizes: FilterSizes, repeats: int, seed: int
) -> dict[str, list[float]]:
    """Return the rounds of one kind of ids, measured on one core.

    They need a process of their own: the libraries read the number of cores when they start.
    """
    arguments = {
        "kind": kind,
        "rows": sizes.rows,
        "members": sizes.members,
        "repeats": repeats,
        "seed": seed,
    }
    threads = dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    process = subprocess.run(
        [sys.executable, "-m", "bench.filter_ways", json.dumps(arguments)],
        env=os.environ | threads | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=_CHILD_SECONDS,
        check=False,
    )
    if process.returncode != 0:
        raise CannotMeasure(
            f"The process that measures {kind} ids ended with {process.returncode}."
        )
    seconds: dict[str, list[float]] = json.loads(process.stdout)
    return seconds
