"""A cold trainer: the time until it holds all records of a bundle, and the memory for them."""

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
from bench.figures import CannotMeasure, spread_columns, spreads_of
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
_CHUNK_MEMBERS: Final = 1 << 17


def measure_cold(members: int, *, repeats: int) -> dict[str, Any]:
    """Write one bundle of `members` members, and load it `repeats` times, each in a new process."""
    with tempfile.TemporaryDirectory(prefix="consentry-bench-cold-") as directory:
        started = process_time()
        key = SigningKey.generate()
        size = _write_bundle(Path(directory) / "bundles", members, key)
        written = process_time() - started
        _write_bundle(Path(directory) / "small", _SMALL, key)
        (Path(directory) / "key").write_bytes(key.public.public_bytes_raw())
        loads = [_load_in_process(Path(directory)) for _ in range(repeats)]
    names = (
        "wall_seconds",
        "cpu_seconds",
        "own_bytes_a_member",
        "first_question_cpu_seconds",
        "find_rows_per_second",
    )
    figures: dict[str, list[float]] = {}
    for name in names:
        figures[name] = [load[name] for load in loads]
    return {
        "members": members,
        "bundle_bytes": size,
        "write_cpu_seconds": round(written, 2),
        **spreads_of(figures),
    }


def _write_bundle(directory: Path, members: int, key: SigningKey) -> int:
    registry = InMemoryRegistry()
    register_all(registry, NAMESPACE)
    catalog = load_catalog(registry, NAMESPACE)
    state = BundleState(PARTITIONS, catalog)
    frame = catalog.frame_of("ConsentRecord")
    now = system_clock()
    bodies: list[bytes] = []
    for number in range(_FACTS):
        at = Micros(now - 10**12 - number)
        bodies.append(fact_body(_fact(at)))
    for start in range(0, members, _CHUNK_MEMBERS):
        numbers = range(start, min(start + _CHUNK_MEMBERS, members))
        keys = [pseudonym(number, seed=1).encode() for number in numbers]
        records: list[bytes] = []
        for index, member in enumerate(keys):
            records.append(first_record(member, bodies[index % _FACTS], frame))
        homes = partitions_of(keys, PARTITIONS)
        for partition in range(PARTITIONS):
            own = np.flatnonzero(homes == partition).tolist()
            own_keys = [keys[index] for index in own]
            own_records = [records[index] for index in own]
            state.apply_records(partition, own_keys, own_records)
    for partition in range(PARTITIONS):
        state.freshness.apply(Frontier(partition, "bench", now, 0, 0, 0, False))
    state.settle_frontiers()
    store = BundleStore(directory)
    manifest = write_bundle(store, state, key=key, namespace=NAMESPACE, sequence=1, created_at=now)
    publish(store, manifest, key=key)
    return sum(file.size for file in manifest.files)


def _fact(at: Micros) -> Fact:
    return Fact(FactKind.OPTED_OUT, at, at, os.urandom(8), None, PURPOSES[0], version=1)


def _load_in_process(directory: Path) -> dict[str, float]:
    process = subprocess.run(
        [sys.executable, "-m", "bench.cold", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        raise CannotMeasure(f"The bundle could not be loaded: {process.stderr[-500:]}")
    figures: dict[str, float] = json.loads(process.stdout)
    return figures


def load(directory: Path) -> dict[str, float]:
    """Load the bundle, and return the figures; for a process that has done nothing else."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - the child alone

    raw_key = (directory / "key").read_bytes()
    public_keys = PublicKeys([Ed25519PublicKey.from_public_bytes(raw_key)])
    # Things that every process needs once, such as the schemas, must not count as the members'.
    newest_snapshot(
        str(directory / "small"),
        keys=public_keys,
        namespace=NAMESPACE,
        now=system_clock(),
        max_age_seconds=1e12,
    )
    gc.collect()
    bytes_before = own_bytes()
    wall_start = perf_counter()
    cpu_start = process_time()
    snapshot, _ = newest_snapshot(
        str(directory / "bundles"),
        keys=public_keys,
        namespace=NAMESPACE,
        now=system_clock(),
        max_age_seconds=1e12,
    )
    wall_seconds = perf_counter() - wall_start
    cpu_seconds = process_time() - cpu_start
    member_classes = snapshot.member_classes(PURPOSES[0], snapshot.boundaries.opt_ins_voided_at)
    started = process_time()
    members = 0
    for segment in snapshot.records.segments():
        for start in range(0, len(segment), _CHUNK_MEMBERS):
            end = min(start + _CHUNK_MEMBERS, len(segment))
            keys = segment.keys.take(np.arange(start, end))
            snapshot.classes(keys, member_classes, at=system_clock(), known_at=FOREVER)
            members += len(keys)
    first_question_seconds = process_time() - started
    # Half of these numbers are members' of the bundle.
    numbers = range(0, 2 * members, max(1, members // 50_000))
    ids = TextKeys.of([pseudonym(number, seed=1).encode() for number in numbers])
    started = process_time()
    snapshot.records.find(ids)
    find_seconds = process_time() - started
    gc.collect()
    return {
        "wall_seconds": wall_seconds,
        "cpu_seconds": cpu_seconds,
        "own_bytes_a_member": (own_bytes() - bytes_before) / members,
        "first_question_cpu_seconds": first_question_seconds,
        "find_rows_per_second": len(ids) / max(find_seconds, 1e-9),
    }


def own_bytes() -> int:
    """Return the bytes of memory that only this process has.

    Pages of files, which the system may take back, do not count.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise CannotMeasure("This system does not show the memory that a process owns.")


def document(
    about: Mapping[str, Any], measurement: Mapping[str, Any], *, at: datetime
) -> dict[str, Any]:
    """Return the results as they are kept; `ok` compares them with the promises."""
    seconds = measurement["wall_seconds"]["median"] * max(
        1.0, READY_MEMBERS / measurement["members"]
    )
    own = measurement["own_bytes_a_member"]["median"]
    promised = {"ready_seconds_of_10_million": seconds, "own_bytes_a_member": own}
    ok = {"ready": seconds <= READY_SECONDS_MAX, "memory": own <= BYTES_A_MEMBER_MAX}
    return {
        "measured_at": at.isoformat(),
        **about,
        "cold": dict(measurement) | {"scaled": promised, "ok": ok},
    }


def show_cold(results: Mapping[str, Any], console: Console) -> None:
    """Print the results for a person."""
    measurement = results["cold"]
    table = Table(title=f"A cold trainer, {measurement['members']:,} members", title_justify="left")
    table.add_column("figure", justify="left")
    for column in ("median", "from", "to"):
        table.add_column(column, justify="right")
    for name in ("wall_seconds", "cpu_seconds", "own_bytes_a_member", "first_question_cpu_seconds"):
        table.add_row(name.replace("_", " "), *spread_columns(measurement[name], ",.2f"))
    console.print(table)


if __name__ == "__main__":
    print(json.dumps(load(Path(sys.argv[1]))))
