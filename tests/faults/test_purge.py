"""A purge that is killed again and again: every file is always whole, and at the end nothing is
left and nothing lost.

`CONSENTRY_TEST_PURGE_FILES=200 CONSENTRY_TEST_PURGE_ROWS=25000 CONSENTRY_TEST_PURGE_PAUSE=0.3`
makes it five million rows.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from bench.purge import staged_in
from tests.sizes import size
from tests.stack import wait_for

CONSENTRY = Path(sys.executable).with_name("consentry")
FILES = int(os.environ.get("CONSENTRY_TEST_PURGE_FILES", "100"))
ROWS = int(os.environ.get("CONSENTRY_TEST_PURGE_ROWS", "3000"))
PAUSE_SECONDS = float(os.environ.get("CONSENTRY_TEST_PURGE_PAUSE", "0.04"))
MEMBERS = 1000
KILLS = size(small=4, full=20)
ERASED = tuple(f"m{number}" for number in range(0, MEMBERS, 50))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """So many files in folders of two, each with rows of everybody."""
    draw = np.random.default_rng(3)
    texts = pa.array([f"text {number}" for number in range(1000)])
    members = pa.array([f"m{number}" for number in range(MEMBERS)])
    for number in range(FILES):
        folder = tmp_path / "posts" / f"day={number // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table(
            {
                "member_id": members.take(pa.array(draw.integers(0, MEMBERS, ROWS))),
                "row": pa.array(np.arange(ROWS, dtype=np.int64) + number * ROWS),
                "text": texts.take(pa.array(draw.integers(0, 1000, ROWS))),
            }
        )
        pq.write_table(
            table, folder / f"part-{number}.parquet", compression="zstd", row_group_size=ROWS // 2
        )
    return tmp_path / "posts"


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """One order for each of the erased."""
    path = tmp_path / "orders.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "order_id": f"e:{member}",
                    "because": "ERASURE",
                    "recorded_at": "2026-01-01",
                    "member": member,
                }
            )
            + "\n"
            for member in ERASED
        )
    )
    return path


class Reader(threading.Thread):
    """Reads the data set all the time, as a training job would; whatever it cannot read is a
    failure.
    """

    def __init__(self, directory: Path, kept: int, total: int) -> None:
        super().__init__(name="reader", daemon=True)
        self._directory, self._kept, self._total = directory, kept, total
        self._stopping = threading.Event()
        self.failures: list[str] = []
        self.reads = 0

    def run(self) -> None:
        """Read."""
        while not self._stopping.wait(0.5):
            try:
                rows = pyarrow.dataset.dataset(self._directory, partitioning="hive").to_table(
                    columns=["row"]
                )["row"]
            except Exception as error:  # noqa: BLE001 - told by finish()
                self.failures.append(repr(error))
                continue
            self.reads += 1
            if not self._kept <= len(rows) <= self._total or pc.count_distinct(rows).as_py() != len(
                rows
            ):
                self.failures.append(f"{len(rows)} rows")

    def finish(self) -> None:
        """Stop, and fail if a single read was not whole."""
        self._stopping.set()
        self.join(60)
        assert self.reads > 0
        assert not self.failures, self.failures[:3]


_FORKS = """
import os, sys
from consentry.cli import main
sys.argv = ["consentry", "purge", "apply", *sys.argv[1:]]
for module in ("open_dataset", "orders_file", "row_selector", "receipts"):
    __import__("consentry.trainer.purge." + module)
for _ in sys.stdin:
    child = os.fork()
    if not child:
        main()
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Purges:
    """Purges that begin at once: each is a fork of a process that has imported everything, and is
    killed as any.
    """

    def __init__(self, directory: Path, orders: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FORKS, str(directory), "--orders", str(orders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self) -> int:
        """The process id of a new one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self) -> int:
        """Its exit status when it has ended; negative is the signal."""
        assert self._process.stdout is not None
        told = ""
        for line in self._process.stdout:
            told = line.strip()
            if told.lstrip("-").isdigit():
                return int(told)
        raise AssertionError(f"the purges ended: {told}")

    def end(self) -> None:
        """No more of them."""
        self._process.communicate(timeout=60)


def apply(directory: Path, orders: Path) -> subprocess.Popen[str]:
    """Start a purge."""
    command = [str(CONSENTRY), "purge", "apply", str(directory), "--orders", str(orders), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)


def ended(command: subprocess.Popen[str]) -> dict[str, Any]:
    """What a purge that comes to its end says."""
    out, _ = command.communicate(timeout=300)
    assert command.returncode == 0, out
    found: dict[str, Any] = json.loads(out)
    return found


def has_begun(directory: Path, before: object, running: int) -> bool:
    """Whether a purge has changed what lay there before it, or has come to its end."""
    try:
        os.kill(running, 0)
    except ProcessLookupError:
        return True
    return work_of(directory) != before


def work_of(directory: Path) -> tuple[int, frozenset[tuple[str, int]]]:
    """Swaps told by the journal, and staged files with their times: what a killed purge left is no
    work of the next.
    """
    return swapped(directory), staged_in(directory)


def swapped(directory: Path) -> int:
    """How many lines of the journal tell of swaps that are finished."""
    path = directory / ".consentry-purge" / "journal.jsonl"
    return path.read_bytes().count(b'"done"') if path.exists() else 0


@pytest.mark.sized
def test_a_purge_killed_again_and_again_leaves_no_row_and_loses_none(
    directory: Path, orders: Path
) -> None:
    """A night's purge on machines that are taken away at any moment has to end, and to answer with
    the true numbers.
    """
    before = pyarrow.dataset.dataset(directory).to_table()
    is_erased = pc.is_in(before["member_id"], value_set=pa.array(ERASED))
    kept = before.filter(pc.invert(is_erased))
    reader = Reader(directory, kept.num_rows, before.num_rows)
    reader.start()
    draw = random.Random(11)
    kills = 0
    purges = Purges(directory, orders)
    for _ in range(KILLS):
        found, running = work_of(directory), purges.begin()
        wait_for(partial(has_begun, directory, found, running), "work", every=0.001)
        # At random within the time that a partition takes, so that all of the steps are met.
        time.sleep(draw.random() * PAUSE_SECONDS)
        with suppress(ProcessLookupError):
            os.kill(running, signal.SIGKILL)
        status = purges.wait()
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
        for path in directory.rglob("*.parquet"):
            pq.read_metadata(path)
    purges.end()
    result = ended(apply(directory, orders))
    reader.finish()

    after = pyarrow.dataset.dataset(directory).to_table()
    print(f"{kills} of {KILLS} purges were killed at work, {reader.reads} reads")
    assert kills >= KILLS // 2
    assert not pc.any(pc.is_in(after["member_id"], value_set=pa.array(ERASED))).as_py()
    assert after.sort_by("row").equals(kept.sort_by("row"))
    counted = {
        f"e:{one['values']}": one["counts"]
        for one in before.filter(is_erased)["member_id"].value_counts().to_pylist()
    }
    assert result["rows_in_all"] == counted
    assert {one["order_id"]: one["rows_removed"] for one in result["receipts"]} == counted
    assert {one["result"] for one in result["receipts"]} == {"DELETED"}
    assert ended(apply(directory, orders))["rows_in_all"] == counted
