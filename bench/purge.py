"""A purge beside a plain filter of the same files, and the same purge killed at work again and
again.

Every fact is looked at from outside: footers and rows in the data set, lines of the journal, what
the commands say.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bench.bundles import PURPOSE, BundleWriter, ids_of
from bench.figures import CannotMeasure, as_document, rate_of, spread_of
from consentry.bundles import SigningKey
from consentry.domain.events import FactKind
from consentry.domain.values import DAY_MICROS, Micros
from consentry.ops.clock import system_clock
from consentry.wire.schemas import NAMESPACE

CONSENTRY: Final = Path(sys.executable).with_name("consentry")
PEERS: Final = ("polars", "pyarrow")
JOURNAL: Final = Path(".consentry-purge", "journal.jsonl")
_FILES_A_FOLDER: Final = 2
FILES_MIN: Final = 3 * _FILES_A_FOLDER
"""Where there are fewer there is no middle of the work to be killed in."""
_TEXTS: Final = 1000
_LOOK_SECONDS: Final = 0.002
_AIMED_EVERY: Final = 4
_STAGE_LINE: Final = b'{"do": "stage"'
_PURGE_SECONDS_MAX: Final = 3600
_LATE_MAX: Final = 20


class PurgeSizes(NamedTuple):
    """Rows of the data set, its files, members that the rows are of (a tenth of them excluded), and
    kills.
    """

    rows: int
    files: int
    members: int
    kills: int


class PurgeCase(NamedTuple):
    """The data set as it was written, and what a purge of it is told.

    Copies are purged, never this one.
    """

    source: Path
    copy: Path
    orders: Path
    bundles: Path
    bundle_key: Path
    gone: pa.Array
    """The excluded, and those whom an order names."""
    ordered: pa.Array


class Expected(NamedTuple):
    """What a purge has to leave and to say, from the rows as they were written."""

    rows_before: int
    rows_after: int
    digest: str
    removed: dict[str, int]
    """By order, also by the one that stands for the excluded."""


class Killed(NamedTuple):
    """What a data set looked like right after a kill."""

    purged_files: int
    staged: bool
    """A successor lay there that was not swapped yet, or an old file that was."""
    within_swaps: bool
    """The journal told of swaps of which it was not written down whether they took place."""
    broken_files: int
    """Files that were missing, or had no footer that can be read."""
    rows: int


def measure_purge(sizes: PurgeSizes, *, repeats: int, seed: int) -> dict[str, Any]:
    """Purge copies of one data set, in peace and in pieces, and look at what is left.

    Raises CannotMeasure.
    """
    with tempfile.TemporaryDirectory(prefix="consentry-bench-purge-") as name:
        case = make_case(Path(name), sizes, seed=seed)
        expected = expectation(case)
        rounds = [_round(case, expected, number) for number in range(repeats)]
        writing = statistics.median(one["writing"] for one in rounds)
        killed = kill_again_and_again(case, sizes, expected, writing_seconds=writing, seed=seed)
    rates = {
        way: [rate_of(sizes.rows, one[way]) for one in rounds]
        for way in ("apply", "plan", "verify", *PEERS)
    }
    return {
        "sizes": sizes._asdict() | {"gone": len(case.gone), "orders": len(case.ordered)},
        "expected": expected._asdict() | {"removed": sum(expected.removed.values())},
        "seconds": as_document(
            {what: spread_of([one[what] for one in rounds]) for what in ("apply", "writing")}
        ),
        "rows_per_second": as_document({way: spread_of(found) for way, found in rates.items()}),
        "ratios": {peer: ratio_of(rates["apply"], rates[peer]) for peer in PEERS},
        "undisturbed": [one["left"] for one in rounds],
        "killed": killed,
    }


def ratio_of(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds of ours to theirs; above 1 where ours is quicker."""
    return round(statistics.median(own / peer for own, peer in zip(ours, theirs, strict=True)), 3)


# ---- the data set


def make_case(directory: Path, sizes: PurgeSizes, *, seed: int) -> PurgeCase:
    """A data set in folders of two files with rows of everybody in each, a bundle of who opted out,
    and some orders.
    """
    numbers = np.random.default_rng(seed)
    members = ids_of(numbers.permutation(sizes.members))
    excluded = members[: sizes.members // 10]
    ordered = members[len(excluded) : len(excluded) + max(1, sizes.members // 10_000)]
    key = SigningKey.generate()
    case = PurgeCase(
        source=directory / "source",
        copy=directory / "copy",
        orders=directory / "orders.jsonl",
        bundles=directory / "bundles",
        bundle_key=directory / "bundles.key.pub",
        gone=pa.concat_arrays([excluded, ordered]),
        ordered=ordered,
    )
    case.bundle_key.write_bytes(key.public_text())
    bundle_writer = BundleWriter(key)
    bundle_writer.add(excluded, FactKind.OPTED_OUT, at=Micros(system_clock() - DAY_MICROS))
    bundle_writer.write(case.bundles)
    orders = (
        {
            "order_id": f"e:{member}",
            "because": "ERASURE",
            "recorded_at": "2026-01-01",
            "member": member,
        }
        for member in ordered.to_pylist()
    )
    case.orders.write_text("".join(json.dumps(order) + "\n" for order in orders))
    texts = pa.array(
        [f"text {number} of so many that are written about" for number in range(_TEXTS)]
    )
    for number, rows in enumerate(np.array_split(np.arange(sizes.rows), sizes.files)):
        folder = case.source / f"day={number // _FILES_A_FOLDER}"
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table(
            {
                "member_id": members.take(pa.array(numbers.integers(0, len(members), len(rows)))),
                "jurisdiction": pa.repeat("US", len(rows)),
                "row": pa.array(rows),
                "text": texts.take(pa.array(numbers.integers(0, _TEXTS, len(rows)))),
            }
        )
        path = folder / f"part-{number}.parquet"
        pq.write_table(table, path, compression="zstd", row_group_size=max(1, len(rows) // 2))
    return case


def expectation(case: PurgeCase) -> Expected:
    """What is to be left of the data set as it was written, and what a purge has to say that it
    removed.
    """
    whole = _rows(case.source)
    is_gone = pc.is_in(whole["member_id"], value_set=case.gone)
    kept, removed = whole.filter(pc.invert(is_gone)), whole.filter(is_gone)["member_id"]
    is_ordered = pc.is_in(removed, value_set=case.ordered)
    counts = {
        f"e:{one['values']}": one["counts"]
        for one in removed.filter(is_ordered).value_counts().to_pylist()
    }
    counts = {f"e:{member}": counts.get(f"e:{member}", 0) for member in case.ordered.to_pylist()}
    counts[f"excluded:{PURPOSE}"] = len(removed) - sum(counts.values())
    return Expected(whole.num_rows, kept.num_rows, digest_of(kept), counts)


def _rows(directory: Path) -> pa.Table:
    """All rows that a training job would read."""
    return pyarrow.dataset.dataset(directory, partitioning="hive").to_table(
        columns=["row", "member_id", "text", "day"]
    )


def digest_of(rows: pa.Table) -> str:
    """SHA-256 over all columns of the rows in the order of their numbers: equal only where none is
    lost or changed.
    """
    found = hashlib.sha256()
    for batch in rows.sort_by("row").to_batches(max_chunksize=1 << 18):
        lines = pc.binary_join_element_wise(
            *(column.cast(pa.string()) for column in batch.columns), "\t"
        )
        found.update("".join(f"{line}\n" for line in lines.to_pylist()).encode())
    return found.hexdigest()


def left_in(case: PurgeCase) -> dict[str, Any]:
    """What is left in the copy: rows, those of members who had to go, and the digest."""
    rows = _rows(case.copy)
    gone = pc.sum(pc.is_in(rows["member_id"], value_set=case.gone)).as_py() or 0
    return {"rows": rows.num_rows, "rows_of_the_gone": gone, "digest": digest_of(rows)}


def fresh_copy(case: PurgeCase) -> None:
    """The copy as the source is, times of change too."""
    shutil.rmtree(case.copy, ignore_errors=True)
    shutil.copytree(case.source, case.copy)


# ---- in peace


def _round(case: PurgeCase, expected: Expected, number: int) -> dict[str, Any]:
    """Seconds of everything once, each of it in turn the first; and what is left."""
    ways: dict[str, Callable[[], dict[str, Any]]] = {"ours": lambda: _undisturbed(case, expected)}
    for peer in PEERS:
        ways[peer] = lambda peer=peer: {peer: _plain(case, peer)}  # type: ignore[misc]
    names = list(ways)
    found: dict[str, Any] = {}
    for name in (*names[number % len(names) :], *names[: number % len(names)]):
        found |= ways[name]()
    return found


def _undisturbed(case: PurgeCase, expected: Expected) -> dict[str, Any]:
    """Seconds of plan, apply and verify, each as a command from its start to its end, and what is
    left.

    `writing` is from the first file that apply wrote to the last: what is left of it without its
    start and its end.
    """
    fresh_copy(case)
    seconds, statuses, said = {}, {}, {}
    for what in ("plan", "apply", "verify"):
        started = time.perf_counter()
        statuses[what], said[what] = _ended(_purge(case, what))
        seconds[what] = time.perf_counter() - started
    changed = [path.stat().st_mtime_ns for path in case.copy.rglob("*.parquet")]
    seconds["writing"] = (max(changed) - min(changed)) / 1e9
    planned = {order: found["rows"] for order, found in said["plan"]["orders"].items()}
    told = {
        "is_planned_rightly": planned == expected.removed,
        "is_counted_rightly": is_counted_rightly(said["apply"], expected),
        "exit_statuses": statuses,
    }
    return seconds | {"left": left_in(case) | told}


def _plain(case: PurgeCase, library: str) -> float:
    """Seconds in which a library reads each file, leaves the members out and writes the rest to
    another place.
    """
    to = case.copy.with_name("plain")
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(case.source, to, ignore=shutil.ignore_patterns("*.parquet"))
    gone = pl.DataFrame({"member_id": pl.from_arrow(case.gone)})
    started = time.perf_counter()
    for path in sorted(case.source.rglob("*.parquet")):
        target = to / path.relative_to(case.source)
        if library == "polars":
            pl.read_parquet(path).join(gone, on="member_id", how="anti").write_parquet(
                target, compression="zstd"
            )
        else:
            table = pq.ParquetFile(path).read()
            kept = table.filter(pc.invert(pc.is_in(table["member_id"], value_set=case.gone)))
            pq.write_table(
                kept, target, compression="zstd", row_group_size=max(1, table.num_rows // 2)
            )
    return time.perf_counter() - started


def _purge(case: PurgeCase, what: str) -> subprocess.Popen[str]:
    orders = ["--orders", str(case.orders), "--excluded", PURPOSE]
    bundle = ["--bundle", str(case.bundles), "--bundle-key", str(case.bundle_key)]
    return subprocess.Popen(
        [str(CONSENTRY), "purge", what, str(case.copy), *orders, *bundle, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"CONSENTRY_NAMESPACE": NAMESPACE},
        text=True,
    )


def _ended(command: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Exit status of a purge that is left alone, and what it says.

    Raises CannotMeasure where that is nothing.
    """
    out, errors = command.communicate(timeout=_PURGE_SECONDS_MAX)
    try:
        found: dict[str, Any] = json.loads(out)
    except ValueError as error:
        raise CannotMeasure(
            f"a purge ended with {command.returncode} and said: {errors[-500:]}"
        ) from error
    return command.returncode, found


def is_counted_rightly(said: Mapping[str, Any], expected: Expected) -> bool:
    """Whether a purge, however often it was killed, says of every order the rows that went for it,
    also in receipts.
    """
    ordered = {order: rows for order, rows in expected.removed.items() if order.startswith("e:")}
    receipts = {one["order_id"]: one["rows_removed"] for one in said["receipts"]}
    return bool(said["rows_in_all"] == expected.removed and receipts == ordered)


# ---- in pieces


def kill_again_and_again(
    case: PurgeCase, sizes: PurgeSizes, expected: Expected, *, writing_seconds: float, seed: int
) -> dict[str, Any]:
    """Kill a purge so often at work, resume it each time, and let it end.

    What was found on the way and at the end.

    The work is divided into as many spans of files as there are kills, and a kill falls at random
    into each: once so many files are swapped, and a random part of the time for two folders later;
    every fourth is aimed at swaps under way instead, which are too short to be met by chance. One
    that comes when all is done does not count: it is told, and the next begins with a fresh copy.
    """
    numbers = random.Random(seed)
    pause = 2 * _FILES_A_FOLDER * writing_seconds / sizes.files
    kills: list[Killed] = []
    late: list[dict[str, Any]] = []
    fresh_copy(case)
    written = max(path.stat().st_mtime_ns for path in case.copy.rglob("*.parquet"))
    started = time.perf_counter()
    while len(kills) < sizes.kills:
        goal = int(
            (len(kills) + numbers.random()) / sizes.kills * (sizes.files - 2 * _FILES_A_FOLDER)
        )
        is_aimed = len(kills) % _AIMED_EVERY == _AIMED_EVERY - 1
        is_killed = _killed(
            case, written, goal=goal, pause=None if is_aimed else numbers.random() * pause
        )
        found = looked_at(case, written)
        if is_killed and (found.purged_files < sizes.files or found.staged or found.within_swaps):
            kills.append(found)
            continue
        late.append(_finish(case, expected))
        if len(late) > _LATE_MAX:
            raise CannotMeasure(
                f"{len(late)} kills came too late: the data set is too small to be killed at work."
            )
        fresh_copy(case)
    left = _finish(case, expected)
    return {
        "kills": len(kills),
        "seconds": round(time.perf_counter() - started, 2),
        "too_late": len(late),
        "at_file": [one.purged_files for one in kills],
        "with_staged_files": sum(one.staged for one in kills),
        "within_swaps": sum(one.within_swaps for one in kills),
        "broken_files": sum(one.broken_files for one in kills),
        "rows_seen": [min(one.rows for one in kills), max(one.rows for one in kills)],
        "left": [*late, left],
    }


def _killed(case: PurgeCase, written: int, *, goal: int, pause: float | None) -> bool:
    """Start a purge and kill it once it works and so many files are purged:

    False if it had ended by then.

    It gets `pause` seconds more, or without one, as long as it takes until swaps are under way.
    """
    before = staged_in(case.copy), purged_in(case.copy, written)
    command = _purge(case, "apply")
    until = time.monotonic() + _PURGE_SECONDS_MAX
    while command.poll() is None and time.monotonic() < until:
        # What the last kill left behind is no sign of work; that it is being cleared away is.
        now = staged_in(case.copy), purged_in(case.copy, written)
        if now != before and now[1] >= goal:
            if pause is None:
                _await_swaps(case.copy, command)
            else:
                time.sleep(pause)
            break
        time.sleep(_LOOK_SECONDS)
    command.kill()
    _, errors = command.communicate(timeout=60)
    if command.returncode not in (0, -9):
        raise CannotMeasure(
            f"A purge that was resumed ended with {command.returncode}: {errors[-500:]}"
        )
    return command.returncode != 0


def _await_swaps(directory: Path, command: subprocess.Popen[str]) -> None:
    """Return as soon as the journal's last line tells of a swap, which takes milliseconds, or the
    purge has ended.
    """
    path = directory / JOURNAL
    while command.poll() is None:
        if path.exists() and path.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2].startswith(
            _STAGE_LINE
        ):
            return


def staged_in(directory: Path) -> frozenset[tuple[str, int]]:
    """The names of the files that lie beside the journal, with the times of their last change."""
    found = set()
    for path in (directory / JOURNAL.parent).glob("*.new"):
        with suppress(FileNotFoundError):  # swapped or cleared away meanwhile
            found.add((path.name, path.stat().st_mtime_ns))
    return frozenset(found)


def purged_in(directory: Path, written: int) -> int:
    """How many files were written anew since the data set was."""
    return sum(path.stat().st_mtime_ns > written for path in directory.rglob("*.parquet"))


def looked_at(case: PurgeCase, written: int) -> Killed:
    """The copy after a kill: the footer of each file that has to be there, and the journal."""
    broken, rows = 0, 0
    for path in case.source.rglob("*.parquet"):
        try:
            rows += pq.read_metadata(case.copy / path.relative_to(case.source)).num_rows
        except (pa.ArrowException, OSError):
            broken += 1
    purged = purged_in(case.copy, written)
    return Killed(purged, bool(staged_in(case.copy)), is_within_swaps(case.copy), broken, rows)


def is_within_swaps(directory: Path) -> bool:
    """Whether the journal tells of swaps that nobody has settled yet; a torn last line was never
    finished.
    """
    path = directory / JOURNAL
    text = path.read_bytes() if path.exists() else b""
    lines = [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
    told = Counter(line["do"] for line in lines)
    return told["stage"] != told["done"] + told["drop"]


def _finish(case: PurgeCase, expected: Expected) -> dict[str, Any]:
    """Let the purge end, look through it by `purge verify`, and hold what is left against what is
    expected.
    """
    statuses = {}
    statuses["apply"], said = _ended(_purge(case, "apply"))
    statuses["verify"], _ = _ended(_purge(case, "verify"))
    told = {"is_counted_rightly": is_counted_rightly(said, expected), "exit_statuses": statuses}
    return left_in(case) | told


# ---- what is told


def document(about: Mapping[str, Any], found: Mapping[str, Any], *, at: datetime) -> dict[str, Any]:
    """All results, and whether every purge left and said what it should."""
    killed, expected = found["killed"], found["expected"]
    ends = [*found["undisturbed"], *killed["left"]]
    rows = killed["rows_seen"]
    return {
        "measured_at": at.astimezone(UTC).isoformat(timespec="seconds"),
        **about,
        "purge": dict(found),
        "ok": {
            "no_row_of_the_gone_left": all(end["rows_of_the_gone"] == 0 for end in ends),
            "no_other_row_lost": all(
                (end["rows"], end["digest"]) == (expected["rows_after"], expected["digest"])
                for end in ends
            ),
            "counted_rightly": all(
                end["is_counted_rightly"] and end.get("is_planned_rightly", True) for end in ends
            ),
            "every_command_exits_0": all(not any(end["exit_statuses"].values()) for end in ends),
            "every_file_whole_at_every_kill": killed["broken_files"] == 0
            and expected["rows_after"] <= rows[0] <= rows[1] <= expected["rows_before"],
            "all_kills_hit_at_work": killed["kills"] == found["sizes"]["kills"],
        },
    }


def show_purge(results: Mapping[str, Any], console: Console) -> None:
    """Print what a person wants to know first."""
    found = results["purge"]
    sizes, killed = found["sizes"], found["killed"]
    title = (
        f"{sizes['rows']:,} rows, {sizes['files']:,} files, {sizes['gone']:,} of "
        f"{sizes['members']:,} members go"
    )
    rates = Table(title, "rows/s, median", "lowest", "highest", "apply to it")
    for way, spread in found["rows_per_second"].items():
        figures = (f"{spread[figure]:,.0f}" for figure in ("median", "low", "high"))
        rates.add_row(way, *figures, str(found["ratios"].get(way, "")))
    console.print(rates)
    whole, writing = (found["seconds"][what]["median"] for what in ("apply", "writing"))
    console.print(
        f"apply: {whole} s undisturbed, {writing} s from the first file written to the last; "
        f"{killed['seconds']} s with {killed['kills']} kills and all checks"
    )
    console.print(
        f"{killed['kills']} of {sizes['kills']} kills at work ({killed['too_late']} more came too "
        "late), "
        f"{killed['with_staged_files']} with files half way, {killed['within_swaps']} within swaps"
    )
    end = killed["left"][-1]
    console.print(
        f"left: {end['rows_of_the_gone']:,} rows of the gone; {end['rows']:,} rows in all, "
        f"{found['expected']['rows_after']:,} expected; the same ones: "
        f"{'yes' if results['ok']['no_other_row_lost'] else 'no'}"
    )
