"""The filters and their peers, each timed on the same rows: run as a process of its own by
bench.filters.
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

_PLACES: Final = ("US", "DE", "GB", "CH", "CA", "IN", "BR", "HK")
_PAUSED: Final = "HK"
_CUT_OFF: Final = Micros(NOW - YEAR_MICROS)
_CUT_OFF_PLACE: Final = "US"
_TEMPLATES: Final = 64


class FilterCase(NamedTuple):
    """What one process measures with: the judge, the rows, who is excluded, and which rows are to
    stay.
    """

    decider: SnapshotDecider
    table: pa.Table
    excluded: pa.Array
    expected: npt.NDArray[np.int64]
    not_excluded: npt.NDArray[np.int64]
    """What stays where only the list of members counts: the peers' answer."""


def make_case(kind: str, sizes: FilterSizes, *, seed: int) -> FilterCase:
    """Members of whom every second one opted out, and rows of them in any order, drawn from a
    seed.
    """
    numbers = np.random.default_rng(seed)
    universe = numbers.permutation(np.arange(1, 8 * sizes.members, 4, dtype=np.int64))
    texts = [
        f"urn:li:m:{number:011d}" if kind == "text" else str(number) for number in universe.tolist()
    ]
    ids = pa.array(texts, pa.string()) if kind == "text" else pa.array(universe)
    snapshot = make_view(texts[: sizes.members], seed=seed)
    of, places = (
        numbers.integers(0, len(universe), sizes.rows),
        numbers.integers(0, len(_PLACES), sizes.rows),
    )
    collected = NOW - numbers.integers(0, 2 * YEAR_MICROS, sizes.rows)
    table = pa.table(
        {
            "member_id": ids.take(pa.array(of)),
            "jurisdiction": pa.array(_PLACES).take(pa.array(places)),
            "category": pa.array(["posts", "profile"]).take(
                pa.array(numbers.integers(0, 2, sizes.rows))
            ),
            "collected_at": pa.array(collected).cast(pa.timestamp("us")),
            "row": pa.array(np.arange(sizes.rows)),
        }
    )
    stays = of >= sizes.members
    too_early = (places == _PLACES.index(_CUT_OFF_PLACE)) & (collected < _CUT_OFF)
    allowed = stays & (places != _PLACES.index(_PAUSED)) & ~too_early
    return FilterCase(
        SnapshotDecider(snapshot, at=NOW),
        table,
        ids[: sizes.members],
        np.flatnonzero(allowed),
        np.flatnonzero(stays),
    )


def make_view(opted_out: Sequence[str], *, seed: int) -> Snapshot:
    """A view in which these members opted out, and under whose controls not everybody else may be
    used.
    """
    snapshot = Snapshot(PARTITIONS, iso_jurisdictions())
    for control in _controls():
        snapshot.apply_control(control)
    bodies = _bodies(seed)
    keys = [member.encode() for member in opted_out]
    values = [_signed(bodies[place % len(bodies)], key) for place, key in enumerate(keys)]
    homes = partitions_of(keys, PARTITIONS)
    for partition in range(PARTITIONS):
        own = np.flatnonzero(homes == partition).tolist()
        snapshot.apply_records(
            partition, [keys[place] for place in own], [values[place] for place in own]
        )
    return snapshot


class Way(NamedTuple):
    """What is timed, and how the values of `row` are found in what it gives, which is not timed."""

    call: Callable[[], Any]
    rows: Callable[[Any], Any]


def ways_of(case: FilterCase, stack: ExitStack) -> dict[str, Way]:
    """Each way; what it starts from is made before the clock runs."""
    connection = stack.enter_context(duckdb.connect())
    connection.execute("SET threads = 1")
    whole = pl.DataFrame(pl.from_arrow(case.table))
    pandas, held, ids = (
        case.table.to_pandas(),
        datasets.Dataset(case.table),
        whole.select("member_id", "row"),
    )
    relation = connection.from_arrow(case.table)
    members = pl.DataFrame({"member_id": pl.from_arrow(case.excluded)})

    def ours(data: Any) -> Callable[[], Any]:
        return lambda: filter_any(case.decider, data, purpose=PURPOSE)

    def is_in() -> Any:
        return case.table.filter(
            pc.invert(pc.is_in(case.table["member_id"], value_set=case.excluded))
        )

    def column(left: Any) -> Any:
        return left["row"]

    return {
        "arrow": Way(ours(case.table), column),
        "polars": Way(ours(whole), column),
        "pandas": Way(ours(pandas), column),
        "huggingface": Way(ours(held), lambda left: left.with_format("numpy")["row"][:]),
        "duckdb": Way(lambda: ours(relation)().to_arrow_table(), column),
        "polars_anti_join": Way(lambda: whole.join(members, on="member_id", how="anti"), column),
        "pyarrow_is_in": Way(is_in, column),
        "decision": Way(
            lambda: case.decider.decide_table(case.table, purpose=PURPOSE).mask, np.flatnonzero
        ),
        "polars_anti_join_of_ids": Way(
            lambda: ids.join(members, on="member_id", how="anti"), column
        ),
    }


def measure_case(case: FilterCase, *, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each round.

    Raises CannotMeasure where rows are too many, missing or others.
    """
    with ExitStack() as stack:
        ways = ways_of(case, stack)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        seconds["first_decision"] = [_timed("decision", ways["decision"], case)]
        for round_number in range(repeats):
            # Each round begins with another way, so that none always runs on what the same one left
            # behind.
            for way in (*WAYS[round_number % len(WAYS) :], *WAYS[: round_number % len(WAYS)]):
                seconds[way].append(_timed(way, ways[way], case))
    return seconds | {"rows": [case.table.num_rows]}


def _timed(name: str, way: Way, case: FilterCase) -> float:
    gc.collect()
    start = time.process_time()
    left = way.call()
    seconds = time.process_time() - start
    expected = case.not_excluded if name in (*PEERS, "polars_anti_join_of_ids") else case.expected
    # A join promises no order.
    if not np.array_equal(np.sort(np.asarray(way.rows(left))), expected):
        raise CannotMeasure(f"{name} does not leave the rows that it should.")
    return seconds


def _main(told: Mapping[str, Any]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    case = make_case(told["kind"], FilterSizes(told["rows"], told["members"]), seed=told["seed"])
    print(json.dumps(measure_case(case, repeats=told["repeats"])))


def _controls() -> list[Control]:
    """By default everywhere, from a time of collection on in one country; paused in another."""
    at: dict[str, Any] = {
        "effective_at": Micros(NOW - 2 * YEAR_MICROS),
        "recorded_at": Micros(NOW - 2 * YEAR_MICROS),
    }
    terms = (
        Terms(jurisdictions=_PLACES[1:], purpose=PURPOSE, regime=Regime.DEFAULT_ON),
        Terms(
            jurisdictions=_PLACES[:1],
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
    """Records of somebody who moved in and opted out, at several times, without their checksums."""
    numbers, member = np.random.default_rng(seed), MemberId("somebody")
    bodies = []
    for place in range(_TEMPLATES):
        moved, chosen = (
            Micros(NOW - int(days) * DAY_MICROS)
            for days in np.sort(numbers.integers(1, 600, 2))[::-1]
        )
        lives = MemberRelocated(
            event_id=numbers.bytes(16),
            member=member,
            jurisdiction=_PLACES[place % len(_PLACES)],
            age_band=AgeBand.ADULT,
            effective_at=moved,
            recorded_at=moved,
        )
        out = ConsentChanged(
            event_id=numbers.bytes(16),
            member=member,
            purpose=PURPOSE,
            choice=Choice.OPT_OUT,
            effective_at=chosen,
            recorded_at=chosen,
        )
        bodies.append(write_record(fold(fold(None, lives), out), frame(1))[:-4])
    return bodies


def _signed(body: bytes, member: bytes) -> bytes:
    """The record of this member: what differs between members who say the same is the checksum."""
    return body + crc32(body, crc32(member)).to_bytes(4, "big")


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
