"""Large training runs, and what `consentry verify` finds in them: all violations and no others.

The first run reads members who had opted out: the bundle that it decides by has lost their
opt-outs, which are a month old. Its own certificate shows no violation; only the next bundle, by
which the reads are decided anew, does.
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
"""`consentry verify` names at most this many members."""
HOLDS, VIOLATED, REFUSED = range(3)
"""The exit statuses of `consentry verify`."""
_BATCH_ROWS: Final = 10_000
_LEASE_SECONDS: Final = 3600.0
_MONTH: Final = 30 * DAY_MICROS
_VERIFY_SECONDS_MAX: Final = 3600


class VerifySizes(NamedTuple):
    """Reads of the first run, each of another member; `planted` of these had opted out."""

    reads: int
    planted: int


class MemberRoles(NamedTuple):
    """The members in each role, by number.

    For every hundred reads there is a row of a member whom the filter excludes.
    """

    rows: npt.NDArray[np.int64]
    """The member of each row that is offered, in the order of rows."""
    excluded: npt.NDArray[np.int64]
    planted: npt.NDArray[np.int64]
    late: npt.NDArray[np.int64]
    """They opt out after both runs, so that their reads are no violations."""
    known: npt.NDArray[np.int64]
    """They opted in long ago, so that their records allow the reads."""


class Files(NamedTuple):
    """The files: keys of two signers, the bundle that lost the opt-outs, whole bundles, runs."""

    key: SigningKey
    run_key: Path
    bundle_key: Path
    lagging: Path
    bundles: Path
    runs: Path


def measure_verify(sizes: VerifySizes, *, seed: int) -> dict[str, Any]:
    """Run, close and verify; return the figures and what verify found. Raises CannotMeasure."""
    roles = make_roles(sizes, seed=seed)
    with tempfile.TemporaryDirectory(prefix="consentry-bench-verify-") as name:
        files, bundle_writer = _files(Path(name))
        long_ago = Micros(system_clock() - _MONTH)
        bundle_writer.add(ids_of(roles.known), FactKind.OPTED_IN, at=long_ago)
        bundle_writer.add(ids_of(roles.excluded), FactKind.OPTED_OUT, at=long_ago)
        bundle_writer.write(files.lagging)
        planted_run, read, seconds = _run(files, files.lagging, roles.rows)
        check_count("rows that the run handed out", expected=sizes.reads, found=read)
        bundle_writer.add(ids_of(roles.planted), FactKind.OPTED_OUT, at=long_ago)
        bundle_writer.write(files.bundles)
        honest_offer = honest_rows(roles, seed=seed)
        honest_allowed = np.setdiff1d(honest_offer, np.concatenate([roles.planted, roles.excluded]))
        honest_run, honest_read, _ = _run(files, files.bundles, honest_offer)
        bundle_writer.add(ids_of(roles.late), FactKind.OPTED_OUT, at=system_clock())
        bundle_writer.write(files.bundles)
        started = perf_counter()
        planted_status, report = run_verify(files, planted_run)
        seconds["verify"] = perf_counter() - started
        honest_status, honest_report = run_verify(files, honest_run)
        refusals: dict[str, bool] = {}
        for field, raw in altered_certificates(honest_run, seed=seed).items():
            refusals[field] = is_refused_as_altered(files, honest_run, raw)
    rates: dict[str, int] = {}
    rounded_seconds: dict[str, float] = {}
    for step, duration in seconds.items():
        rates[step] = round(rate_of(sizes.reads, duration))
        rounded_seconds[step] = round(duration, 2)
    planted_ids = set(ids_of(roles.planted).to_pylist())
    return {
        "sizes": sizes._asdict()
        | {"rows": len(roles.rows), "excluded": len(roles.excluded), "late": len(roles.late)},
        "seconds": rounded_seconds,
        "reads_per_second": rates,
        "planted": planted_summary(planted_status, report, planted_ids),
        "honest": {
            "reads": honest_read,
            "reads_allowed": len(honest_allowed),
            "exit_status": honest_status,
            "wrong": honest_report["wrong"] + honest_report["unclear"],
        },
        "altered": refusals,
    }


def make_roles(sizes: VerifySizes, *, seed: int) -> MemberRoles:
    """Return every member's role, and the order of their rows, drawn from a seed."""
    numbers = np.random.default_rng(seed)
    excluded = max(1, sizes.reads // 100)
    drawn = numbers.permutation(sizes.reads + excluded)
    ends = np.cumsum([excluded, sizes.planted, sizes.planted, sizes.reads // 10])
    parts = np.split(drawn, ends)
    return MemberRoles(numbers.permutation(sizes.reads + excluded), *parts[:4])


def honest_rows(roles: MemberRoles, *, seed: int) -> npt.NDArray[np.int64]:
    """Return a tenth of the rows and those of all planted members, in random order."""
    tenth = roles.rows[: len(roles.rows) // 10]
    offered = np.union1d(tenth, roles.planted)
    return np.random.default_rng(seed).permutation(offered)


def planted_summary(status: int, report: Mapping[str, Any], planted: set[str]) -> dict[str, Any]:
    """Compare verify's report on the run with the planted members with who they are."""
    named: list[str] = report["members"]
    return {
        "planted": len(planted),
        "found": len(planted.intersection(named)),
        "named_wrongly": len(set(named) - planted),
        "named": len(named),
        "violations": report["violations"],
        "exit_status": status,
        "wrong": report["wrong"],
        "unclear": report["unclear"],
        "run_itself_found": report["certificate"]["disjoint"]["violations"],
    }


def altered_certificates(run: Path, *, seed: int) -> dict[str, bytes]:
    """Return the run's certificate with one byte changed, for several fields.

    The last one has a digest that fits to the change.
    """
    raw = (run / CERTIFICATE_FILE).read_bytes()
    numbers = np.random.default_rng(seed)
    certificates: dict[str, bytes] = {}
    for name in ("rows_read", "ended_at", "merkle_root"):
        certificates[name] = _change_one_byte(raw, f'"{name}":', numbers)
    envelope = json.loads(certificates["rows_read"])
    digest = hashlib.sha256(canonical(envelope["certificate"])).hexdigest()
    envelope["digest"] = f"sha256:{digest}"
    certificates["rows_read and digest"] = canonical(envelope) + b"\n"
    return certificates


def _change_one_byte(raw: bytes, field: str, numbers: np.random.Generator) -> bytes:
    """Return `raw` with one digit of the field's value changed."""
    begin = raw.index(field.encode()) + len(field)
    end = min(raw.index(mark, begin) for mark in (b",", b"}"))
    digit_positions = [index for index in range(begin, end) if chr(raw[index]).isdigit()]
    position = int(numbers.choice(digit_positions))
    # From 1 to 9: a number that begins with 0 would not even be JSON.
    other_digits = [digit for digit in b"123456789" if digit != raw[position]]
    digit = int(numbers.choice(other_digits))
    return raw[:position] + bytes([digit]) + raw[position + 1 :]


def run_verify(files: Files, run: Path) -> tuple[int, dict[str, Any]]:
    """Return the exit status of `consentry verify` and its report.

    Raises CannotMeasure where it prints none.
    """
    process = _verify(files, run / CERTIFICATE_FILE)
    try:
        report: dict[str, Any] = json.loads(process.stdout)
    except ValueError as error:
        raise CannotMeasure(
            f"verify ended with {process.returncode} and printed: {process.stderr[-500:]}"
        ) from error
    return process.returncode, report


def is_refused_as_altered(files: Files, run: Path, raw: bytes) -> bool:
    """Return True if verify refuses an altered certificate, and names this as the reason.

    The certificate lies beside the run's own reads.
    """
    path = run / "altered.json"
    path.write_bytes(raw)
    process = _verify(files, path)
    output = process.stdout + process.stderr
    return process.returncode == REFUSED and "[certificate.tampered]" in output


def _verify(files: Files, certificate: Path) -> subprocess.CompletedProcess[str]:
    command = [str(CONSENTRY), "verify", str(certificate), "--show-members", "--json"]
    command += ["--key", str(files.run_key), "--bundle", str(files.bundles)]
    command += ["--bundle-key", str(files.bundle_key)]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_VERIFY_SECONDS_MAX,
        check=False,
    )


def _files(directory: Path) -> tuple[Files, BundleWriter]:
    run_key = SigningKey.generate()
    bundle_key = SigningKey.generate()
    files = Files(
        key=run_key,
        run_key=directory / "runs.key.pub",
        bundle_key=directory / "bundles.key.pub",
        lagging=directory / "lagging",
        bundles=directory / "bundles",
        runs=directory / "runs",
    )
    files.run_key.write_bytes(run_key.public_text())
    files.bundle_key.write_bytes(bundle_key.public_text())
    return files, BundleWriter(bundle_key)


def _run(
    files: Files, bundles: Path, rows: npt.NDArray[np.int64]
) -> tuple[Path, int, dict[str, float]]:
    """Do a training run by the newest bundle of a store.

    Returns its folder, the rows that it read, and the seconds to read and to close.
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
    """Yield rows of these members, all from one country."""
    members = ids_of(rows)
    for start in range(0, len(members), _BATCH_ROWS):
        chunk = members[start : start + _BATCH_ROWS]
        yield pa.table({"member_id": chunk, "jurisdiction": pa.repeat("US", len(chunk))})


def document(
    about: Mapping[str, Any], measurement: Mapping[str, Any], *, at: datetime
) -> dict[str, Any]:
    """Return all results; `ok` tells if verify found exactly the planted members."""
    planted, honest = measurement["planted"], measurement["honest"]
    counts = {planted[name] for name in ("planted", "found", "named")}
    is_all = len(counts) == 1 and planted["violations"] == {"OPTED_OUT": planted["planted"]}
    return {
        "measured_at": at.astimezone(UTC).isoformat(timespec="seconds"),
        **about,
        "verify": dict(measurement),
        "ok": {
            "all_planted_found": planted["exit_status"] == VIOLATED and is_all,
            "nobody_else_found": planted["named_wrongly"] == 0 and not planted["unclear"],
            "honest_run_reads_the_allowed": honest["reads"] == honest["reads_allowed"],
            "honest_run_holds": honest["exit_status"] == HOLDS and not honest["wrong"],
            "altered_certificates_refused": bool(measurement["altered"])
            and all(measurement["altered"].values()),
        },
    }


def show_verify(results: Mapping[str, Any], console: Console) -> None:
    """Print the main figures for a person."""
    measurement = results["verify"]
    planted, sizes = measurement["planted"], measurement["sizes"]
    table = Table(f"{sizes['reads']:,} reads, {sizes['rows']:,} rows offered", "seconds", "reads/s")
    for step, seconds in measurement["seconds"].items():
        table.add_row(step, f"{seconds:,.1f}", f"{measurement['reads_per_second'][step]:,}")
    console.print(table)
    console.print(
        f"found {planted['found']} of {planted['planted']} planted, {planted['named_wrongly']} "
        f"others; verify exited {planted['exit_status']}, the run itself saw "
        f"{planted['run_itself_found']}"
    )
    honest = measurement["honest"]
    console.print(
        f"a run of {honest['reads']:,} reads that heeded the bundle: verify exited "
        f"{honest['exit_status']}"
    )
    refusals = measurement["altered"]
    console.print(f"{sum(refusals.values())} of {len(refusals)} altered certificates refused")
