"""A cold trainer: how long until it holds all records of a bundle, and how much memory that
takes.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.events import PURPOSES, pseudonym
from bench.figures import CannotMeasure, as_document, spread_of
from bench.stack import ROOT
from consentry.bundles import (
    BundleState,
    BundleStore,
    PublicKeys,
    SigningKey,
    publish,
    write_bundle,
)
from consentry.domain.events import Fact, FactKind
from consentry.domain.values import Micros
from consentry.ops.clock import system_clock
from consentry.record_index import TextKeys
from consentry.trainer.bundled import newest_snapshot
from consentry.wire.catalog import InMemoryRegistry, load_catalog, register_all
from consentry.wire.freshness import FOREVER
from consentry.wire.frontiers import Frontier
from consentry.wire.partitions import partitions_of
from consentry.wire.records import fact_body, first_record
from consentry.wire.schemas import NAMESPACE

PARTITIONS: Final = 8
READY_SECONDS_MAX: Final = 10.0
READY_MEMBERS: Final = 10_000_000
BYTES_A_MEMBER_MAX: Final = 16.0
_SMALL: Final = 1000
_FACTS: Final = 1000
_SIDE_BY_SIDE: Final = 1 << 17


def measure_cold(members: int, *, repeats: int) -> dict[str, Any]:
    """Write one bundle of so many members, and load it so often, each time in a process of its
    own.
    """
    with tempfile.TemporaryDirectory(prefix="consentry-bench-cold-") as directory:
        started = process_time()
        key = SigningKey.generate()
        size = _write(Path(directory) / "bundles", members, key)
        written = process_time() - started
        _write(Path(directory) / "small", _SMALL, key)
        (Path(directory) / "key").write_bytes(key.public.public_bytes_raw())
        loads = [_loaded(Path(directory)) for _ in range(repeats)]
    names = (
        "wall_seconds",
        "cpu_seconds",
        "own_bytes_a_member",
        "first_question_cpu_seconds",
        "find_rows_per_second",
    )
    found = as_document({name: spread_of([one[name] for one in loads]) for name in names})
    return {
        "members": members,
        "bundle_bytes": size,
        "write_cpu_seconds": round(written, 2),
        **found,
    }


def _write(directory: Path, members: int, key: SigningKey) -> int:
    registry = InMemoryRegistry()
    register_all(registry, NAMESPACE)
    catalog = load_catalog(registry, NAMESPACE)
    state = BundleState(PARTITIONS, catalog)
    frame, now = catalog.frame_of("ConsentRecord"), system_clock()
    bodies = [fact_body(_fact(Micros(now - 10**12 - number))) for number in range(_FACTS)]
    for start in range(0, members, _SIDE_BY_SIDE):
        keys = [
            pseudonym(number, seed=1).encode()
            for number in range(start, min(start + _SIDE_BY_SIDE, members))
        ]
        records = [
            first_record(name, bodies[place % _FACTS], frame) for place, name in enumerate(keys)
        ]
        homes = partitions_of(keys, PARTITIONS).tolist()
        for partition in range(PARTITIONS):
            mine = [place for place, home in enumerate(homes) if home == partition]
            state.apply_records(
                partition, [keys[place] for place in mine], [records[place] for place in mine]
            )
    for partition in range(PARTITIONS):
        state.freshness.apply(Frontier(partition, "bench", now, 0, 0, 0, False))
    state.settle_frontiers()
    store = BundleStore(directory)
    manifest = write_bundle(store, state, key=key, namespace=NAMESPACE, sequence=1, created_at=now)
    publish(store, manifest, key=key)
    return sum(file.size for file in manifest.files)


def _fact(at: Micros) -> Fact:
    return Fact(FactKind.OPTED_OUT, at, at, os.urandom(8), None, PURPOSES[0], version=1)


def _loaded(directory: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.cold", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotMeasure(f"The bundle could not be loaded: {done.stderr[-500:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def load(directory: Path) -> dict[str, float]:
    """Load the bundle; what it took. To be called in a process that has done nothing else."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - the child alone

    keys = PublicKeys([Ed25519PublicKey.from_public_bytes((directory / "key").read_bytes())])
    # What every process needs once, such as the schemas, is not what a member takes.
    newest_snapshot(
        str(directory / "small"),
        keys=keys,
        namespace=NAMESPACE,
        now=system_clock(),
        max_age_seconds=1e12,
    )
    gc.collect()
    before, wall, cpu = own_bytes(), perf_counter(), process_time()
    snapshot, _ = newest_snapshot(
        str(directory / "bundles"),
        keys=keys,
        namespace=NAMESPACE,
        now=system_clock(),
        max_age_seconds=1e12,
    )
    wall, cpu = perf_counter() - wall, process_time() - cpu
    member_classes = snapshot.member_classes(PURPOSES[0], snapshot.boundaries.voiding)
    started = process_time()
    asked = 0
    for segment in snapshot.records.segments():
        for start in range(0, len(segment), _SIDE_BY_SIDE):
            keys_of = segment.keys.take(np.arange(start, min(start + _SIDE_BY_SIDE, len(segment))))
            snapshot.classes(keys_of, member_classes, at=system_clock(), known_at=FOREVER)
            asked += len(keys_of)
    first = process_time() - started
    ids = TextKeys.of(
        [
            pseudonym(number, seed=1).encode()
            for number in range(0, 2 * asked, max(1, asked // 50_000))
        ]
    )
    started = process_time()
    snapshot.records.find(ids)
    found = process_time() - started
    gc.collect()
    return {
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "own_bytes_a_member": (own_bytes() - before) / asked,
        "first_question_cpu_seconds": first,
        "find_rows_per_second": len(ids) / max(found, 1e-9),
    }


def own_bytes() -> int:
    """Memory that only this process has; pages of files, which the system may take back, are not
    among it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise CannotMeasure("This system does not tell what memory a process owns.")


def document(about: Mapping[str, Any], found: Mapping[str, Any], *, at: datetime) -> dict[str, Any]:
    """The results as they are kept; `ok` holds them against what is promised."""
    seconds = found["wall_seconds"]["median"] * max(1.0, READY_MEMBERS / found["members"])
    own = found["own_bytes_a_member"]["median"]
    promised = {"ready_seconds_of_10_million": seconds, "own_bytes_a_member": own}
    ok = {"ready": seconds <= READY_SECONDS_MAX, "memory": own <= BYTES_A_MEMBER_MAX}
    return {
        "measured_at": at.isoformat(),
        **about,
        "cold": dict(found) | {"scaled": promised, "ok": ok},
    }


def show_cold(results: Mapping[str, Any], console: Console) -> None:
    """The results for a person."""
    found = results["cold"]
    table = Table(title=f"A cold trainer, {found['members']:,} members", title_justify="left")
    for column in ("figure", "median", "from", "to"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name in ("wall_seconds", "cpu_seconds", "own_bytes_a_member", "first_question_cpu_seconds"):
        spread = found[name]
        table.add_row(
            name.replace("_", " "), *(f"{spread[part]:,.2f}" for part in ("median", "low", "high"))
        )
    console.print(table)


if __name__ == "__main__":
    print(json.dumps(load(Path(sys.argv[1]))))
