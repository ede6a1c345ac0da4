"""The filters and their peers, each timed on the same rows.

bench.filters runs this as a process of its own.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from binascii import crc32
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

import datasets
import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from bench.figures import CannotMeasure
from bench.filters import PEERS, WAYS, FilterSizes
from bench.rule_data import NOW, PARTITIONS, YEAR_MICROS
from consentry.domain.controls import Control, PauseImposed, PolicyPublished, Regime, Scope, Terms
from consentry.domain.events import ConsentChanged, MemberRelocated
from consentry.domain.records import fold
from consentry.domain.values import DAY_MICROS, AgeBand, Choice, MemberId, Micros
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.filters.dispatch import filter_any
from consentry.wire.frames import frame
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.partitions import partitions_of
from consentry.wire.records import write_record

PURPOSE: Final = "genai_training"

_COUNTRIES: Final = ("US", "DE", "GB", "CH", "CA", "IN", "BR", "HK")
_PAUSED: Final = "HK"
_CUT_OFF: Final = Micros(NOW - YEAR_MICROS)
_CUT_OFF_COUNTRY: Final = "US"
_TEMPLATES: Final = 64


class FilterCase(NamedTuple):
    """The data of one process: the decider, the rows, the excluded members, the rows to keep."""

    decider: SnapshotDecider
    table: pa.Table
    excluded: pa.Array
    expected: npt.NDArray[np.int64]
    not_excluded: npt.NDArray[np.int64]
    """The rows that stay where only the list of members counts: the peers' answer."""


def make_case(kind: str, sizes: FilterSizes, *, seed: int) -> FilterCase:
    """Return members of whom every second one opted out, and rows of theirs in random order."""
    numbers = np.random.default_rng(seed)
    universe = numbers.permutation(np.arange(1, 8 * sizes.members, 4, dtype=np.int64))
    if kind == "text":
        texts = [f"urn:li:m:{number:011d}" for number in universe.tolist()]
        ids = pa.array(texts, pa.string())
    else:
        texts = [str(number) for number in universe.tolist()]
        ids = pa.array(universe)
    snapshot = make_opted_out_snapshot(texts[: sizes.members], seed=seed)
    members = numbers.integers(0, len(universe), sizes.rows)
    countries = numbers.integers(0, len(_COUNTRIES), sizes.rows)
    collected = NOW - numbers.integers(0, 2 * YEAR_MICROS, sizes.rows)
    categories = numbers.integers(0, 2, sizes.rows)
    table = pa.table(
        {
            "member_id": ids.take(pa.array(members)),
            "jurisdiction": pa.array(_COUNTRIES).take(pa.array(countries)),
            "category": pa.array(["posts", "profile"]).take(pa.array(categories)),
            "collected_at": pa.array(collected).cast(pa.timestamp("us")),
            "row": pa.array(np.arange(sizes.rows)),
        }
    )
    is_not_excluded = members >= sizes.members
    is_too_early = (countries == _COUNTRIES.index(_CUT_OFF_COUNTRY)) & (collected < _CUT_OFF)
    is_paused = countries == _COUNTRIES.index(_PAUSED)
    is_allowed = is_not_excluded & ~is_paused & ~is_too_early
    return FilterCase(
        SnapshotDecider(snapshot, at=NOW),
        table,
        ids[: sizes.members],
        np.flatnonzero(is_allowed),
        np.flatnonzero(is_not_excluded),
    )


def make_opted_out_snapshot(opted_out: Sequence[str], *, seed: int) -> Snapshot:
    """Return a snapshot in which these members opted out.

    Its controls exclude some rows of the others, too.
    """
    snapshot = Snapshot(PARTITIONS, iso_jurisdictions())
    for control in _controls():
        snapshot.apply_control(control)
    bodies = _bodies(seed)
    keys = [member.encode() for member in opted_out]
    values: list[bytes] = []
    for index, key in enumerate(keys):
        values.append(_with_checksum(bodies[index % len(bodies)], key))
    homes = partitions_of(keys, PARTITIONS)
    for partition in range(PARTITIONS):
        own = np.flatnonzero(homes == partition).tolist()
        own_keys = [keys[index] for index in own]
        own_values = [values[index] for index in own]
        snapshot.apply_records(partition, own_keys, own_values)
    return snapshot


class Way(NamedTuple):
    """One way: `call` is timed; `rows` gets the column `row` out of its result, untimed."""

    call: Callable[[], Any]
    rows: Callable[[Any], Any]


def ways_of(case: FilterCase, stack: ExitStack) -> dict[str, Way]:
    """Return each way; the data that it starts from is made before the clock runs."""
    connection = stack.enter_context(duckdb.connect())
    connection.execute("SET threads = 1")
    frame = pl.DataFrame(pl.from_arrow(case.table))
    pandas = case.table.to_pandas()
    dataset = datasets.Dataset(case.table)
    ids = frame.select("member_id", "row")
    relation = connection.from_arrow(case.table)
    excluded = pl.DataFrame({"member_id": pl.from_arrow(case.excluded)})

    def ours(data: Any) -> Callable[[], Any]:
        return lambda: filter_any(case.decider, data, purpose=PURPOSE)

    def anti_join(rows: pl.DataFrame) -> Callable[[], Any]:
        return lambda: rows.join(excluded, on="member_id", how="anti")

    def filter_by_is_in() -> Any:
        is_excluded = pc.is_in(case.table["member_id"], value_set=case.excluded)
        return case.table.filter(pc.invert(is_excluded))

    def decide() -> Any:
        return case.decider.decide_table(case.table, purpose=PURPOSE).mask

    def row_column(result: Any) -> Any:
        return result["row"]

    def row_column_of_dataset(result: Any) -> Any:
        return result.with_format("numpy")["row"][:]

    return {
        "arrow": Way(ours(case.table), row_column),
        "polars": Way(ours(frame), row_column),
        "pandas": Way(ours(pandas), row_column),
        "huggingface": Way(ours(dataset), row_column_of_dataset),
        "duckdb": Way(lambda: ours(relation)().to_arrow_table(), row_column),
        "polars_anti_join": Way(anti_join(frame), row_column),
        "pyarrow_is_in": Way(filter_by_is_in, row_column),
        "decision": Way(decide, np.flatnonzero),
        "polars_anti_join_of_ids": Way(anti_join(ids), row_column),
    }


def measure_case(case: FilterCase, *, repeats: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each way in each round.

    Raises CannotMeasure where rows are too many, missing or others.
    """
    with ExitStack() as stack:
        ways = ways_of(case, stack)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        seconds["first_decision"] = [_timed("decision", ways["decision"], case)]
        for round_number in range(repeats):
            # Each round begins with another way, so that none always runs after the same one.
            first = round_number % len(WAYS)
            for way in (*WAYS[first:], *WAYS[:first]):
                seconds[way].append(_timed(way, ways[way], case))
    return seconds | {"rows": [case.table.num_rows]}


def _timed(name: str, way: Way, case: FilterCase) -> float:
    gc.collect()
    start = time.process_time()
    remaining = way.call()
    seconds = time.process_time() - start
    expected = case.expected
    if name in (*PEERS, "polars_anti_join_of_ids"):
        expected = case.not_excluded
    # A join promises no order.
    if not np.array_equal(np.sort(np.asarray(way.rows(remaining))), expected):
        raise CannotMeasure(f"{name} does not leave the rows that it should.")
    return seconds


def _main(arguments: Mapping[str, Any]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    sizes = FilterSizes(arguments["rows"], arguments["members"])
    case = make_case(arguments["kind"], sizes, seed=arguments["seed"])
    print(json.dumps(measure_case(case, repeats=arguments["repeats"])))


def _controls() -> list[Control]:
    """Return a policy and a pause.

    By default use is allowed everywhere, in one country only from a time of collection on; another
    country is paused.
    """
    recorded_at = Micros(NOW - 2 * YEAR_MICROS)
    at: dict[str, Any] = {"effective_at": recorded_at, "recorded_at": recorded_at}
    terms = (
        Terms(jurisdictions=_COUNTRIES[1:], purpose=PURPOSE, regime=Regime.DEFAULT_ON),
        Terms(
            jurisdictions=_COUNTRIES[:1],
            purpose=PURPOSE,
            regime=Regime.DEFAULT_ON,
            collected_from=_CUT_OFF,
        ),
    )
    scope = Scope(jurisdictions=(_PAUSED,))
    return [
        PolicyPublished(event_id=bytes(15) + b"\1", version="v1", terms=terms, **at),
        PauseImposed(event_id=bytes(15) + b"\2", pause="paused", version=1, scope=scope, **at),
    ]


def _bodies(seed: int) -> list[bytes]:
    """Return records of a member who moved in and opted out, without their checksums.

    Each has other times.
    """
    numbers = np.random.default_rng(seed)
    member = MemberId("somebody")
    bodies: list[bytes] = []
    for number in range(_TEMPLATES):
        days_ago = np.sort(numbers.integers(1, 600, 2))
        moved_at = Micros(NOW - int(days_ago[1]) * DAY_MICROS)
        chosen_at = Micros(NOW - int(days_ago[0]) * DAY_MICROS)
        relocation = MemberRelocated(
            event_id=numbers.bytes(16),
            member=member,
            jurisdiction=_COUNTRIES[number % len(_COUNTRIES)],
            age_band=AgeBand.ADULT,
            effective_at=moved_at,
            recorded_at=moved_at,
        )
        opt_out = ConsentChanged(
            event_id=numbers.bytes(16),
            member=member,
            purpose=PURPOSE,
            choice=Choice.OPT_OUT,
            effective_at=chosen_at,
            recorded_at=chosen_at,
        )
        record = fold(fold(None, relocation), opt_out)
        bodies.append(write_record(record, frame(1))[:-4])
    return bodies


def _with_checksum(body: bytes, member: bytes) -> bytes:
    """Return the record of this member: equal records of two members differ in the checksum."""
    return body + crc32(body, crc32(member)).to_bytes(4, "big")


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
