"""A purge beside a plain filter of the same files, and the same purge killed again and again.

All checks look from outside: at footers and rows of the data set, lines of the journal, and the
output of the commands.
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
from bench.figures import (
    CannotMeasure,
    rate_of,
    ratio_of,
    spread_columns,
    spreads_of,
    yes_or_no,
)
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
"""With fewer files there is no middle of the work to be killed in."""
_TEXTS: Final = 1000
_CHECK_SECONDS: Final = 0.002
_AIMED_EVERY: Final = 4
_STAGE_LINE: Final = b'{"do": "stage"'
_PURGE_SECONDS_MAX: Final = 3600
_LATE_MAX: Final = 20


class PurgeSizes(NamedTuple):
    """Rows and files of the data set, members that its rows belong to, and kills.

    A tenth of the members are excluded.
    """

    rows: int
    files: int
    members: int
    kills: int


class PurgeCase(NamedTuple):
    """The data set as it was written, and the input of a purge; only copies are purged."""

    source: Path
    copy: Path
    orders: Path
    bundles: Path
    bundle_key: Path
    gone: pa.Array
    """The excluded members, and those that an order names."""
    ordered: pa.Array


class Expected(NamedTuple):
    """The result that a purge must have, computed from the rows as they were written."""

    rows_before: int
    rows_after: int
    digest: str
    removed: dict[str, int]
    """Rows removed by each order, and by the entry that stands for the excluded."""


class Killed(NamedTuple):
    """The state of a data set right after a kill."""

    purged_files: int
    staged: bool
    """There was a new file that was not swapped in yet, or an old one that was swapped out."""
    within_swaps: bool
    """The journal had swaps without a note that they took place."""
    broken_files: int
    """Files that were missing, or whose footer could not be read."""
    rows: int


def measure_purge(sizes: PurgeSizes, *, repeats: int, seed: int) -> dict[str, Any]:
    """Purge copies of one data set, undisturbed and with kills, and check what is left.

    Raises CannotMeasure.
    """
    with tempfile.TemporaryDirectory(prefix="consentry-bench-purge-") as name:
        case = make_case(Path(name), sizes, seed=seed)
        expected = compute_expected(case)
        rounds = [_round(case, expected, number) for number in range(repeats)]
        writing = statistics.median(figures["writing"] for figures in rounds)
        killed = kill_repeatedly(case, sizes, expected, writing_seconds=writing, seed=seed)
    rates: dict[str, list[float]] = {}
    for way in ("apply", "plan", "verify", *PEERS):
        rates[way] = [rate_of(sizes.rows, figures[way]) for figures in rounds]
    seconds: dict[str, list[float]] = {}
    for step in ("apply", "writing"):
        seconds[step] = [figures[step] for figures in rounds]
    ratios = {peer: ratio_of(rates["apply"], rates[peer]) for peer in PEERS}
    return {
        "sizes": sizes._asdict() | {"gone": len(case.gone), "orders": len(case.ordered)},
        "expected": expected._asdict() | {"removed": sum(expected.removed.values())},
        "seconds": spreads_of(seconds),
        "rows_per_second": spreads_of(rates),
        "ratios": ratios,
        "undisturbed": [figures["left"] for figures in rounds],
        "killed": killed,
    }


# ---- the data set


def make_case(directory: Path, sizes: PurgeSizes, *, seed: int) -> PurgeCase:
    """Write a data set, a bundle of the members who opted out, and some orders.

    The data set has folders of two files, each with rows of all members.
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
    _write_orders(case.orders, ordered.to_pylist())
    _write_rows(case.source, members, sizes, numbers)
    return case


def _write_orders(path: Path, members: list[str]) -> None:
    lines: list[str] = []
    for member in members:
        order = {
            "order_id": f"e:{member}",
            "because": "ERASURE",
            "recorded_at": "2026-01-01",
            "member": member,
        }
        lines.append(json.dumps(order) + "\n")
    path.write_text("".join(lines))


def _write_rows(
    directory: Path, members: pa.Array, sizes: PurgeSizes, numbers: np.random.Generator
) -> None:
    """Write all files, with rows of random members and random texts."""
    texts = pa.array(
        [f"text {number} of so many that are written about" for number in range(_TEXTS)]
    )
    for number, rows in enumerate(np.array_split(np.arange(sizes.rows), sizes.files)):
        folder = directory / f"day={number // _FILES_A_FOLDER}"
        folder.mkdir(parents=True, exist_ok=True)
        member_indexes = numbers.integers(0, len(members), len(rows))
        text_indexes = numbers.integers(0, _TEXTS, len(rows))
        table = pa.table(
            {
                "member_id": members.take(pa.array(member_indexes)),
                "jurisdiction": pa.repeat("US", len(rows)),
                "row": pa.array(rows),
                "text": texts.take(pa.array(text_indexes)),
            }
        )
        path = folder / f"part-{number}.parquet"
        pq.write_table(table, path, compression="zstd", row_group_size=max(1, len(rows) // 2))


def compute_expected(case: PurgeCase) -> Expected:
    """Return what must be left of the data set, and what a purge must report as removed."""
    all_rows = _rows(case.source)
    is_gone = pc.is_in(all_rows["member_id"], value_set=case.gone)
    remaining = all_rows.filter(pc.invert(is_gone))
    removed = all_rows.filter(is_gone)["member_id"]
    is_ordered = pc.is_in(removed, value_set=case.ordered)
    counts: dict[str, int] = {}
    for member in case.ordered.to_pylist():
        counts[f"e:{member}"] = 0
    for entry in removed.filter(is_ordered).value_counts().to_pylist():
        counts[f"e:{entry['values']}"] = entry["counts"]
    counts[f"excluded:{PURPOSE}"] = len(removed) - sum(counts.values())
    return Expected(all_rows.num_rows, remaining.num_rows, digest_of(remaining), counts)


def _rows(directory: Path) -> pa.Table:
    """Return all rows that a training job would read."""
    return pyarrow.dataset.dataset(directory, partitioning="hive").to_table(
        columns=["row", "member_id", "text", "day"]
    )


def digest_of(rows: pa.Table) -> str:
    """Return the SHA-256 over all columns of the rows, in the order of their numbers.

    Equal only where no row is lost or changed.
    """
    digest = hashlib.sha256()
    for batch in rows.sort_by("row").to_batches(max_chunksize=1 << 18):
        columns = [column.cast(pa.string()) for column in batch.columns]
        lines = pc.binary_join_element_wise(*columns, "\t")
        text = "".join(f"{line}\n" for line in lines.to_pylist())
        digest.update(text.encode())
    return digest.hexdigest()


def inspect_rest(case: PurgeCase) -> dict[str, Any]:
    """Return what is left in the copy: rows, rows of members who must be gone, the digest."""
    rows = _rows(case.copy)
    gone = pc.sum(pc.is_in(rows["member_id"], value_set=case.gone)).as_py() or 0
    return {"rows": rows.num_rows, "rows_of_the_gone": gone, "digest": digest_of(rows)}


def make_copy(case: PurgeCase) -> None:
    """Copy the source anew, with the files' times of change."""
    shutil.rmtree(case.copy, ignore_errors=True)
    shutil.copytree(case.source, case.copy)


# ---- undisturbed


def _round(case: PurgeCase, expected: Expected, number: int) -> dict[str, Any]:
    """Return the seconds of every way once, and what is left; each round begins with another."""
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: _purge_undisturbed(case, expected)
    }
    for peer in PEERS:
        ways[peer] = lambda peer=peer: {peer: _filter_plainly(case, peer)}  # type: ignore[misc]
    names = list(ways)
    first = number % len(names)
    figures: dict[str, Any] = {}
    for name in (*names[first:], *names[:first]):
        figures |= ways[name]()
    return figures


def _purge_undisturbed(case: PurgeCase, expected: Expected) -> dict[str, Any]:
    """Return the seconds of the commands plan, apply and verify, and what is left.

    `writing` is from the first file that apply wrote to the last, without the start and the end of
    the command.
    """
    make_copy(case)
    seconds: dict[str, float] = {}
    statuses: dict[str, int] = {}
    reports: dict[str, dict[str, Any]] = {}
    for command in ("plan", "apply", "verify"):
        started = time.perf_counter()
        statuses[command], reports[command] = _finish_command(_purge(case, command))
        seconds[command] = time.perf_counter() - started
    changed = [path.stat().st_mtime_ns for path in case.copy.rglob("*.parquet")]
    seconds["writing"] = (max(changed) - min(changed)) / 1e9
    planned = {order: entry["rows"] for order, entry in reports["plan"]["orders"].items()}
    checks = {
        "is_planned_rightly": planned == expected.removed,
        "is_counted_rightly": is_counted_rightly(reports["apply"], expected),
        "exit_statuses": statuses,
    }
    return {**seconds, "left": inspect_rest(case) | checks}


def _filter_plainly(case: PurgeCase, library: str) -> float:
    """Return the seconds in which a library filters each file into another directory."""
    target_directory = case.copy.with_name("plain")
    shutil.rmtree(target_directory, ignore_errors=True)
    shutil.copytree(case.source, target_directory, ignore=shutil.ignore_patterns("*.parquet"))
    gone = pl.DataFrame({"member_id": pl.from_arrow(case.gone)})
    started = time.perf_counter()
    for path in sorted(case.source.rglob("*.parquet")):
        target = target_directory / path.relative_to(case.source)
        if library == "polars":
            remaining = pl.read_parquet(path).join(gone, on="member_id", how="anti")
            remaining.write_parquet(target, compression="zstd")
        else:
            table = pq.ParquetFile(path).read()
            is_gone = pc.is_in(table["member_id"], value_set=case.gone)
            group_rows = max(1, table.num_rows // 2)
            pq.write_table(
                table.filter(pc.invert(is_gone)),
                target,
                compression="zstd",
                row_group_size=group_rows,
            )
    return time.perf_counter() - started


def _purge(case: PurgeCase, command: str) -> subprocess.Popen[str]:
    """Start `consentry purge COMMAND` on the copy."""
    orders = ["--orders", str(case.orders), "--excluded", PURPOSE]
    bundle = ["--bundle", str(case.bundles), "--bundle-key", str(case.bundle_key)]
    return subprocess.Popen(
        [str(CONSENTRY), "purge", command, str(case.copy), *orders, *bundle, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"CONSENTRY_NAMESPACE": NAMESPACE},
        text=True,
    )


def _finish_command(command: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Wait for a purge that nobody kills; return its exit status and its report.

    Raises CannotMeasure where it prints no report.
    """
    out, errors = command.communicate(timeout=_PURGE_SECONDS_MAX)
    try:
        report: dict[str, Any] = json.loads(out)
    except ValueError as error:
        raise CannotMeasure(
            f"a purge ended with {command.returncode} and printed: {errors[-500:]}"
        ) from error
    return command.returncode, report


def is_counted_rightly(report: Mapping[str, Any], expected: Expected) -> bool:
    """Return True if a purge reports the right number of rows for every order.

    The receipts must have them too, however often the purge was killed.
    """
    ordered = {order: rows for order, rows in expected.removed.items() if order.startswith("e:")}
    receipts = {receipt["order_id"]: receipt["rows_removed"] for receipt in report["receipts"]}
    return bool(report["rows_in_all"] == expected.removed and receipts == ordered)


# ---- with kills


def kill_repeatedly(
    case: PurgeCase, sizes: PurgeSizes, expected: Expected, *, writing_seconds: float, seed: int
) -> dict[str, Any]:
    """Kill a purge at work several times, resume it each time, and let it end.

    Returns the state at each kill and at the end. The files are divided into as many spans as there
    are kills, and one kill falls at random into each span: when that many files are swapped, and a
    random part of the time for two folders later. Every fourth kill is aimed at swaps under way,
    which are too short to be hit by chance. A kill that comes when all is done does not count: it
    is reported, and the next begins with a new copy.
    """
    numbers = random.Random(seed)
    pause = 2 * _FILES_A_FOLDER * writing_seconds / sizes.files
    kills: list[Killed] = []
    late: list[dict[str, Any]] = []
    make_copy(case)
    written = max(path.stat().st_mtime_ns for path in case.copy.rglob("*.parquet"))
    started = time.perf_counter()
    while len(kills) < sizes.kills:
        share = (len(kills) + numbers.random()) / sizes.kills
        goal = int(share * (sizes.files - 2 * _FILES_A_FOLDER))
        is_aimed = len(kills) % _AIMED_EVERY == _AIMED_EVERY - 1
        delay: float | None = None
        if not is_aimed:
            delay = numbers.random() * pause
        is_killed = _kill_at_work(case, written, goal=goal, pause=delay)
        state = inspect_copy(case, written)
        is_unfinished = state.purged_files < sizes.files or state.staged or state.within_swaps
        if is_killed and is_unfinished:
            kills.append(state)
            continue
        late.append(_finish_purge(case, expected))
        if len(late) > _LATE_MAX:
            raise CannotMeasure(
                f"{len(late)} kills came too late: the data set is too small to be killed at work."
            )
        make_copy(case)
    left = _finish_purge(case, expected)
    rows = [state.rows for state in kills]
    return {
        "kills": len(kills),
        "seconds": round(time.perf_counter() - started, 2),
        "too_late": len(late),
        "at_file": [state.purged_files for state in kills],
        "with_staged_files": sum(state.staged for state in kills),
        "within_swaps": sum(state.within_swaps for state in kills),
        "broken_files": sum(state.broken_files for state in kills),
        "rows_seen": [min(rows), max(rows)],
        "left": [*late, left],
    }


def _kill_at_work(case: PurgeCase, written: int, *, goal: int, pause: float | None) -> bool:
    """Start a purge and kill it when it works and `goal` files are purged.

    It gets `pause` seconds more; without a pause it is killed when swaps are under way. Returns
    False if it had ended before.
    """
    before = staged_in(case.copy), purged_in(case.copy, written)
    command = _purge(case, "apply")
    until = time.monotonic() + _PURGE_SECONDS_MAX
    while command.poll() is None and time.monotonic() < until:
        # Files that the last kill left are no sign of work; a change of them is.
        now = staged_in(case.copy), purged_in(case.copy, written)
        if now != before and now[1] >= goal:
            if pause is None:
                _await_swaps(case.copy, command)
            else:
                time.sleep(pause)
            break
        time.sleep(_CHECK_SECONDS)
    command.kill()
    _, errors = command.communicate(timeout=60)
    if command.returncode not in (0, -9):
        raise CannotMeasure(
            f"A purge that was resumed ended with {command.returncode}: {errors[-500:]}"
        )
    return command.returncode != 0


def _await_swaps(directory: Path, command: subprocess.Popen[str]) -> None:
    """Return when the journal's last line announces a swap, or the purge has ended.

    A swap takes milliseconds.
    """
    path = directory / JOURNAL
    while command.poll() is None:
        if path.exists():
            whole_lines, _, _ = path.read_bytes().rpartition(b"\n")
            _, _, last_line = whole_lines.rpartition(b"\n")
            if last_line.startswith(_STAGE_LINE):
                return


def staged_in(directory: Path) -> frozenset[tuple[str, int]]:
    """Return the names of the files beside the journal, with the times of their last change."""
    files: set[tuple[str, int]] = set()
    for path in (directory / JOURNAL.parent).glob("*.new"):
        with suppress(FileNotFoundError):  # swapped or cleared away meanwhile
            files.add((path.name, path.stat().st_mtime_ns))
    return frozenset(files)


def purged_in(directory: Path, written: int) -> int:
    """Return the number of files that were written after the data set was."""
    return sum(path.stat().st_mtime_ns > written for path in directory.rglob("*.parquet"))


def inspect_copy(case: PurgeCase, written: int) -> Killed:
    """Return the state of the copy after a kill, from the files' footers and the journal."""
    broken = 0
    rows = 0
    for path in case.source.rglob("*.parquet"):
        try:
            rows += pq.read_metadata(case.copy / path.relative_to(case.source)).num_rows
        except (pa.ArrowException, OSError):
            broken += 1
    purged = purged_in(case.copy, written)
    staged = bool(staged_in(case.copy))
    within_swaps = is_within_swaps(case.copy)
    return Killed(purged, staged, within_swaps, broken, rows)


def is_within_swaps(directory: Path) -> bool:
    """Return True if the journal has swaps that are not settled; a torn last line is ignored."""
    path = directory / JOURNAL
    if not path.exists():
        return False
    text = path.read_bytes()
    whole_lines = text[: text.rfind(b"\n") + 1].splitlines()
    counts = Counter(json.loads(line)["do"] for line in whole_lines)
    return counts["stage"] != counts["done"] + counts["drop"]


def _finish_purge(case: PurgeCase, expected: Expected) -> dict[str, Any]:
    """Let the purge end, run `purge verify`, and return what is left, with checks."""
    apply_status, report = _finish_command(_purge(case, "apply"))
    verify_status, _ = _finish_command(_purge(case, "verify"))
    return inspect_rest(case) | {
        "is_counted_rightly": is_counted_rightly(report, expected),
        "exit_statuses": {"apply": apply_status, "verify": verify_status},
    }


# ---- the results


def document(
    about: Mapping[str, Any], measurement: Mapping[str, Any], *, at: datetime
) -> dict[str, Any]:
    """Return all results; `ok` tells if every purge left and reported what it should."""
    killed, expected = measurement["killed"], measurement["expected"]
    ends = [*measurement["undisturbed"], *killed["left"]]
    fewest, most = killed["rows_seen"]
    is_within_bounds = expected["rows_after"] <= fewest <= most <= expected["rows_before"]
    return {
        "measured_at": at.astimezone(UTC).isoformat(timespec="seconds"),
        **about,
        "purge": dict(measurement),
        "ok": {
            "no_row_of_the_gone_left": all(end["rows_of_the_gone"] == 0 for end in ends),
            "no_other_row_lost": all(_has_expected_rows(end, expected) for end in ends),
            "counted_rightly": all(map(_is_reported_rightly, ends)),
            "every_command_exits_0": all(map(_has_exited_0, ends)),
            "every_file_whole_at_every_kill": killed["broken_files"] == 0 and is_within_bounds,
            "all_kills_hit_at_work": killed["kills"] == measurement["sizes"]["kills"],
        },
    }


def _has_expected_rows(end: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    is_count_right = end["rows"] == expected["rows_after"]
    return bool(is_count_right and end["digest"] == expected["digest"])


def _is_reported_rightly(end: Mapping[str, Any]) -> bool:
    return bool(end["is_counted_rightly"] and end.get("is_planned_rightly", True))


def _has_exited_0(end: Mapping[str, Any]) -> bool:
    return not any(end["exit_statuses"].values())


def show_purge(results: Mapping[str, Any], console: Console) -> None:
    """Print the main figures for a person."""
    measurement = results["purge"]
    sizes, killed = measurement["sizes"], measurement["killed"]
    title = (
        f"{sizes['rows']:,} rows, {sizes['files']:,} files, {sizes['gone']:,} of "
        f"{sizes['members']:,} members go"
    )
    rates = Table(title, "rows/s, median", "lowest", "highest", "apply to it")
    for way, spread in measurement["rows_per_second"].items():
        rates.add_row(way, *spread_columns(spread), str(measurement["ratios"].get(way, "")))
    console.print(rates)
    apply_seconds = measurement["seconds"]["apply"]["median"]
    writing_seconds = measurement["seconds"]["writing"]["median"]
    console.print(
        f"apply: {apply_seconds} s undisturbed, {writing_seconds} s from the first file written to "
        f"the last; {killed['seconds']} s with {killed['kills']} kills and all checks"
    )
    console.print(
        f"{killed['kills']} of {sizes['kills']} kills at work ({killed['too_late']} more came too "
        f"late), {killed['with_staged_files']} with files half way, {killed['within_swaps']} "
        "within swaps"
    )
    end = killed["left"][-1]
    are_the_same = yes_or_no(results["ok"]["no_other_row_lost"])
    console.print(
        f"left: {end['rows_of_the_gone']:,} rows of the gone; {end['rows']:,} rows in all, "
        f"{measurement['expected']['rows_after']:,} expected; the same ones: "
        f"{are_the_same}"
    )
