"""Training runs of as many reads as one has, and what `consentry verify` finds of them: no more and
no less.

The first run's loader reads members past the filter: the bundle that it decides by has lost their
opt-outs, a month old. Its certificate says that all is well, and only the reads decided anew by the
next bundle can tell.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from bench.bundles import PURPOSE, BundleWriter, ids_of
from bench.figures import CannotMeasure, check_count, rate_of
from consentry.bundles import PublicKeys, SigningKey
from consentry.domain.events import FactKind
from consentry.domain.values import DAY_MICROS, Micros
from consentry.ops.clock import system_clock
from consentry.trainer.bundled import bundle_decider
from consentry.trainer.runs import TrainingRun
from consentry.trainer.runs.certificates import canonical
from consentry.trainer.runs.store import CERTIFICATE_FILE

CONSENTRY: Final = Path(sys.executable).with_name("consentry")
PLANTED_MAX: Final = 1000
"""So many `consentry verify` names."""
HOLDS, VIOLATED, REFUSED = range(3)
"""What `consentry verify` exits with."""
_BATCH_ROWS: Final = 10_000
_LEASE_SECONDS: Final = 3600.0
_MONTH: Final = 30 * DAY_MICROS
_VERIFY_SECONDS_MAX: Final = 3600


class VerifySizes(NamedTuple):
    """Reads of the first run, each of another member, and how many of these members had opted
    out.
    """

    reads: int
    planted: int


class Cast(NamedTuple):
    """Who is who, by number.

    Every hundredth read has a row beside it of somebody whom the filter leaves out.
    """

    rows: npt.NDArray[np.int64]
    """The member of each row that is offered, in the order of rows."""
    excluded: npt.NDArray[np.int64]
    planted: npt.NDArray[np.int64]
    late: npt.NDArray[np.int64]
    """They opt out after both runs: what was read of them is no violation."""
    known: npt.NDArray[np.int64]
    """They opted in long ago, so that a record of theirs allows what is read."""


class Files(NamedTuple):
    """Where everything lies: two signers, the bundle that lost the opt-outs, the whole ones, the
    runs.
    """

    key: SigningKey
    run_key: Path
    bundle_key: Path
    lagging: Path
    bundles: Path
    runs: Path


def measure_verify(sizes: VerifySizes, *, seed: int) -> dict[str, Any]:
    """Read, close and verify; `found` has whom verify named beside those who were planted.

    Raises CannotMeasure.
    """
    cast = make_cast(sizes, seed=seed)
    with tempfile.TemporaryDirectory(prefix="consentry-bench-verify-") as name:
        files, bundle_writer = _files(Path(name))
        long_ago = Micros(system_clock() - _MONTH)
        bundle_writer.add(ids_of(cast.known), FactKind.OPTED_IN, at=long_ago)
        bundle_writer.add(ids_of(cast.excluded), FactKind.OPTED_OUT, at=long_ago)
        bundle_writer.write(files.lagging)
        planted_run, read, seconds = _run(files, files.lagging, cast.rows)
        check_count("rows that the run handed out", expected=sizes.reads, found=read)
        bundle_writer.add(ids_of(cast.planted), FactKind.OPTED_OUT, at=long_ago)
        bundle_writer.write(files.bundles)
        some = honest_rows(cast, seed=seed)
        left = np.setdiff1d(some, np.concatenate([cast.planted, cast.excluded]))
        honest_run, honest_read, _ = _run(files, files.bundles, some)
        bundle_writer.add(ids_of(cast.late), FactKind.OPTED_OUT, at=system_clock())
        bundle_writer.write(files.bundles)
        started = perf_counter()
        status, found = verified(files, planted_run)
        seconds["verify"] = perf_counter() - started
        clean_status, clean = verified(files, honest_run)
        refusals = {
            what: refused(files, honest_run, raw)
            for what, raw in altered(honest_run, seed=seed).items()
        }
    return {
        "sizes": sizes._asdict()
        | {"rows": len(cast.rows), "excluded": len(cast.excluded), "late": len(cast.late)},
        "seconds": {what: round(one, 2) for what, one in seconds.items()},
        "reads_per_second": {
            what: round(rate_of(sizes.reads, one)) for what, one in seconds.items()
        },
        "planted": planted_summary(status, found, set(ids_of(cast.planted).to_pylist())),
        "honest": {
            "reads": honest_read,
            "reads_allowed": len(left),
            "exit_status": clean_status,
            "wrong": clean["wrong"] + clean["unclear"],
        },
        "altered": refusals,
    }


def make_cast(sizes: VerifySizes, *, seed: int) -> Cast:
    """Everybody's part, and the order of their rows, drawn from a seed."""
    numbers = np.random.default_rng(seed)
    excluded = max(1, sizes.reads // 100)
    drawn = numbers.permutation(sizes.reads + excluded)
    ends = np.cumsum([excluded, sizes.planted, sizes.planted, sizes.reads // 10])
    parts = np.split(drawn, ends)
    return Cast(numbers.permutation(sizes.reads + excluded), *parts[:4])


def honest_rows(cast: Cast, *, seed: int) -> npt.NDArray[np.int64]:
    """A tenth of the rows, and those of everybody who was planted, in any order."""
    some = np.union1d(cast.rows[: len(cast.rows) // 10], cast.planted)
    return np.random.default_rng(seed).permutation(some)


def planted_summary(status: int, found: Mapping[str, Any], planted: set[str]) -> dict[str, Any]:
    """What verify said of the run with the planted members, held against who they are."""
    named: list[str] = found["members"]
    return {
        "planted": len(planted),
        "found": len(planted.intersection(named)),
        "named_wrongly": len(set(named) - planted),
        "named": len(named),
        "violations": found["violations"],
        "exit_status": status,
        "wrong": found["wrong"],
        "unclear": found["unclear"],
        "run_itself_found": found["certificate"]["disjoint"]["violations"],
    }


def altered(run: Path, *, seed: int) -> dict[str, bytes]:
    """The run's certificate with one byte changed: in several fields, and once with a digest that
    fits again.
    """
    raw = (run / CERTIFICATE_FILE).read_bytes()
    numbers = np.random.default_rng(seed)
    found = {
        name: _one_byte_changed(raw, f'"{name}":', numbers)
        for name in ("rows_read", "ended_at", "merkle_root")
    }
    envelope = json.loads(found["rows_read"])
    digest = hashlib.sha256(canonical(envelope["certificate"])).hexdigest()
    return found | {
        "rows_read and digest": canonical(envelope | {"digest": f"sha256:{digest}"}) + b"\n"
    }


def _one_byte_changed(raw: bytes, field: str, numbers: np.random.Generator) -> bytes:
    """One digit of the value behind a field's name made another one."""
    begin = raw.index(field.encode()) + len(field)
    end = min(raw.index(mark, begin) for mark in (b",", b"}"))
    place = int(numbers.choice([place for place in range(begin, end) if chr(raw[place]).isdigit()]))
    # From 1 to 9: a number that begins with 0 would not even be JSON.
    digit = int(numbers.choice([digit for digit in b"123456789" if digit != raw[place]]))
    return raw[:place] + bytes([digit]) + raw[place + 1 :]


def verified(files: Files, run: Path) -> tuple[int, dict[str, Any]]:
    """Exit status of `consentry verify` and what it found.

    Raises CannotMeasure where it says nothing.
    """
    done = _verify(files, run / CERTIFICATE_FILE)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise CannotMeasure(
            f"verify ended with {done.returncode} and said: {done.stderr[-500:]}"
        ) from error
    return done.returncode, found


def refused(files: Files, run: Path, raw: bytes) -> bool:
    """Whether an altered certificate is refused beside the run's own reads, as altered and nothing
    else.
    """
    path = run / "altered.json"
    path.write_bytes(raw)
    done = _verify(files, path)
    return done.returncode == REFUSED and "[certificate.tampered]" in done.stdout + done.stderr


def _verify(files: Files, certificate: Path) -> subprocess.CompletedProcess[str]:
    keys = [
        "--key",
        str(files.run_key),
        "--bundle",
        str(files.bundles),
        "--bundle-key",
        str(files.bundle_key),
    ]
    return subprocess.run(
        [str(CONSENTRY), "verify", str(certificate), *keys, "--show-members", "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_VERIFY_SECONDS_MAX,
        check=False,
    )


def _files(directory: Path) -> tuple[Files, BundleWriter]:
    run_key, bundle_key = SigningKey.generate(), SigningKey.generate()
    names = (
        directory / name
        for name in ("runs.key.pub", "bundles.key.pub", "lagging", "bundles", "runs")
    )
    files = Files(run_key, *names)
    files.run_key.write_bytes(run_key.public_text())
    files.bundle_key.write_bytes(bundle_key.public_text())
    return files, BundleWriter(bundle_key)


def _run(
    files: Files, bundles: Path, rows: npt.NDArray[np.int64]
) -> tuple[Path, int, dict[str, float]]:
    """A training run by the newest bundle of a store: its folder, rows that it read, seconds to
    read and to close.
    """
    keys = PublicKeys.read(files.bundle_key)
    decider = bundle_decider(str(bundles), keys=keys, max_age_seconds=_LEASE_SECONDS)
    batches = list(_batches(rows))
    run = TrainingRun(
        decider,
        dataset="bench",
        purpose=PURPOSE,
        store=str(files.runs),
        subscriber="bench",
        lease_seconds=_LEASE_SECONDS,
        signing_key=files.key,
    )
    started = perf_counter()
    with run:
        read = sum(kept.num_rows for kept in run.filter(batches))
        closing = perf_counter()
    closed = perf_counter()
    assert run.certificate is not None
    check_count("reads in the certificate", expected=read, found=run.certificate["reads"]["leaves"])
    return files.runs / run.run_id, read, {"read": closing - started, "close": closed - closing}


def _batches(rows: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
    """Rows of these members, all from one country."""
    members = ids_of(rows)
    for start in range(0, len(members), _BATCH_ROWS):
        part = members[start : start + _BATCH_ROWS]
        yield pa.table({"member_id": part, "jurisdiction": pa.repeat("US", len(part))})


def document(about: Mapping[str, Any], found: Mapping[str, Any], *, at: datetime) -> dict[str, Any]:
    """All results, and whether verify found whom it should, and nobody else."""
    planted, honest = found["planted"], found["honest"]
    counts = {planted[name] for name in ("planted", "found", "named")}
    is_all = len(counts) == 1 and planted["violations"] == {"OPTED_OUT": planted["planted"]}
    return {
        "measured_at": at.astimezone(UTC).isoformat(timespec="seconds"),
        **about,
        "verify": dict(found),
        "ok": {
            "all_planted_found": planted["exit_status"] == VIOLATED and is_all,
            "nobody_else_found": planted["named_wrongly"] == 0 and not planted["unclear"],
            "honest_run_reads_the_allowed": honest["reads"] == honest["reads_allowed"],
            "honest_run_holds": honest["exit_status"] == HOLDS and not honest["wrong"],
            "altered_certificates_refused": bool(found["altered"])
            and all(found["altered"].values()),
        },
    }


def show_verify(results: Mapping[str, Any], console: Console) -> None:
    """Print what a person wants to know first."""
    found = results["verify"]
    planted, sizes = found["planted"], found["sizes"]
    table = Table(f"{sizes['reads']:,} reads, {sizes['rows']:,} rows offered", "seconds", "reads/s")
    for step, seconds in found["seconds"].items():
        table.add_row(step, f"{seconds:,.1f}", f"{found['reads_per_second'][step]:,}")
    console.print(table)
    told = (
        f"found {planted['found']} of {planted['planted']} planted, {planted['named_wrongly']} "
        "others"
    )
    console.print(
        f"{told}; verify exited {planted['exit_status']}, the run itself saw "
        f"{planted['run_itself_found']}"
    )
    honest = found["honest"]
    console.print(
        f"a run of {honest['reads']:,} reads that heeded the bundle: verify exited "
        f"{honest['exit_status']}"
    )
    refusals = found["altered"]
    console.print(f"{sum(refusals.values())} of {len(refusals)} altered certificates refused")
