"""`consentry verify`: does the certificate of a training run hold?

Offline, by its reads and a bundle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

import fsspec
import pyarrow.parquet as pq
import typer

from consentry.bundles import Bundle, BundleStore, PublicKeys, open_bundle
from consentry.domain.errors import ConsentryError, InvalidInput, Unavailable
from consentry.domain.explain import date_text
from consentry.domain.values import Micros
from consentry.ops.clock import system_clock
from consentry.trainer.bundled import snapshot_of
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.certificates.reader import BYTES_MAX, Certificate, read_certificate
from consentry.trainer.runs.read_files import open_read_file, read_pieces
from consentry.trainer.runs.store import CERTIFICATE_FILE, READS_FILE
from consentry.trainer.runs.verify import CertificateReport, verify

app = typer.Typer(add_completion=False)


STATUS = ("holds", "violated", "cannot tell")
_CANNOT_TELL = STATUS.index("cannot tell")


@app.command()
def run(
    certificates: Annotated[
        list[str],
        typer.Argument(
            metavar="CERTIFICATE…", help="Certificates, or the folders of runs: paths or URLs."
        ),
    ],
    reads: Annotated[
        str | None, typer.Option(help="The reads of the run; default: those beside it.")
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(help="Store of bundles to decide every read by, once more.")
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of public keys to believe of the certificate's signer; repeatable."
        ),
    ] = None,
    bundle_key: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of public keys to believe of the bundler, never the signer's; repeatable."
        ),
    ] = None,
    within: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds by which the run's knowledge may lag; default: its lease."
        ),
    ] = None,
    show_members: Annotated[
        bool, typer.Option("--show-members", help="Name whose reads violate, at most 1,000.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was found as JSON; a list of several.")
    ] = False,
) -> None:
    """Verify the certificates of training runs, offline.

    Exit 0: all certificates hold. 1: one does not hold, or its run read data of an excluded
    member. 2: cannot tell of one.
    """
    if reads is not None and len(certificates) > 1:
        raise InvalidInput(
            f"--reads names the reads of one run, and {len(certificates)} certificates were named.",
            code="input.reads",
            fix="verify that one by itself; the others have their reads beside them",
        )
    keys = PublicKeys.read(*key) if key else None
    opened_bundle, signers = (None, []) if bundle is None else bundle_of(bundle, bundle_key)
    snapshot = None if opened_bundle is None else snapshot_of(opened_bundle)
    told: list[dict[str, object]] = []
    statuses: list[int] = []
    for one in certificates:
        try:
            found, report = _verified(one, reads, keys, snapshot, within, show_members=show_members)
        except ConsentryError as error:
            if len(certificates) == 1:
                raise
            # One run that was aborted must not keep the others from being judged.
            statuses.append(_CANNOT_TELL)
            told.append(
                {"status": "cannot tell", "named": one, "code": error.code, "detail": error.message}
            )
            if not as_json:
                typer.echo(f"{one}: CANNOT TELL. {error}")
            continue
        if opened_bundle is not None:
            by = (
                f"the bundle {opened_bundle.manifest.bundle_id} is signed by the key "
                f"{', '.join(signers)}"
            )
            report.checked.append(by)
        statuses.append(report.status)
        told.append(_as_data(found, report) | {"bundle_keys": signers})
        if not as_json:
            _print(found, report)
    if as_json:
        typer.echo(json.dumps(told if len(told) > 1 else told[0], indent=2))
    raise typer.Exit(1 if 1 in statuses else max(statuses))


def _verified(
    named: str,
    reads: str | None,
    keys: PublicKeys | None,
    snapshot: Snapshot | None,
    within: float | None,
    *,
    show_members: bool,
) -> tuple[Certificate, CertificateReport]:
    place = named.rstrip("/")
    place = place if place.endswith(".json") else f"{place}/{CERTIFICATE_FILE}"
    found = read_certificate(_certificate_bytes(place), keys)
    with _open_reads(reads, f"{place.rpartition('/')[0] or '.'}/{READS_FILE}") as opened:
        report = verify(
            found,
            None if opened is None else read_pieces(opened),
            snapshot,
            bound=None if within is None else Micros(round(within * 1e6)),
            key_is_given=keys is not None,
            show_members=show_members,
        )
    return found, report


def bundle_of(url: str, keys: list[Path] | None) -> tuple[Bundle, list[str]]:
    """The newest bundle of a store, and the ids of the keys that signed it and what it builds on.

    Raises BundleRefused, Unavailable, and InvalidInput without a key.

    Only the bundler's own keys are believed: whoever signs certificates could else sign the bundle
    that acquits them.
    """
    if not keys:
        raise InvalidInput(
            "A bundle without the key of its bundler proves nothing.",
            code="input.key",
            fix="name the file of the bundler's public key with --bundle-key",
        )
    bundle = open_bundle(
        BundleStore(url), keys=PublicKeys.read(*keys), namespace=None, now=system_clock()
    )
    return bundle, sorted({manifest.signed_by for manifest in bundle.manifests})


def _certificate_bytes(place: str) -> bytes:
    """The bytes of a certificate, no more than any has.

    Raises Unavailable where a run has none, InvalidInput.
    """

    try:
        with open_file(place) as file:
            return file.read(BYTES_MAX + 1)
    except InvalidInput as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise Unavailable(
            f"There is no {place!r}: the run still goes on, was aborted, or was killed.",
            code="certificate.none",
            fix="`consentry reach` says which; only a run that came to its end has a certificate",
        ) from error


@contextmanager
def open_file(place: str) -> Iterator[IO[bytes]]:
    """A file at a path or an fsspec URL. Raises InvalidInput where it cannot be read."""

    try:
        file = fsspec.open(place, "rb").open()
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInput(
            f"The file {place!r} cannot be read ({type(error).__name__}).",
            code="input.file",
            fix="name a readable file, or install what the scheme of its URL needs",
        ) from error
    with file:
        yield file


@contextmanager
def _open_reads(named: str | None, beside: str) -> Iterator[pq.ParquetFile | None]:
    """The reads that were named, or those beside the certificate where there are any."""

    place = named or beside
    if named is None:
        files, path = fsspec.core.url_to_fs(place)
        if not files.exists(path):
            yield None
            return
    with open_file(place) as file:
        yield open_read_file(file, place)


def _as_data(certificate: Certificate, report: CertificateReport) -> dict[str, object]:
    return {
        "status": STATUS[report.status],
        "checked": report.checked,
        "wrong": report.wrong,
        "unclear": report.unclear,
        "violations": {
            reason.value: number for reason, number in sorted(report.violations.items())
        },
        "members": report.members,
        "key": certificate.key_id,
        "is_verified": certificate.is_verified,
        "certificate": certificate.statement,
    }


def _print(certificate: Certificate, report: CertificateReport) -> None:
    told = certificate.statement
    # Before the signature is known to hold its texts may be anybody's: nothing of them may steer a
    # terminal.
    typer.echo(f"{STATUS[report.status].upper()}  run {told['run_id']!s:.36}")
    typer.echo(
        f"  {told['rows_read']:,} rows of {told['members_read']:,} members, from "
        f"{told['dataset']!r:.140} "
        f"{told['dataset_version']!r:.140}, for {told['purpose']!r:.70}"
    )
    typer.echo(
        f"  {date_text(told['started_at'])} to {date_text(told['ended_at'])}, by "
        f"{told['subscriber']!r:.70}"
    )
    for label, texts in (
        ("holds", report.checked),
        ("WRONG", report.wrong),
        ("cannot tell", report.unclear),
    ):
        for text in texts:
            typer.echo(f"  {label:<11}  {text}")
    for member in report.members:
        typer.echo(f"    {member}")
    typer.echo(f"  limit        {told['limit']!s:.200}")
