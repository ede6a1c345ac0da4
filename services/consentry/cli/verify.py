"""`consentry verify`: whether certificates of training runs hold, by their reads and a bundle.

Offline: it needs no Kafka.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from consentry.bundles import Bundle, BundleStore, PublicKeys, open_bundle
from consentry.cli.options import BundleKeysOption, JsonOption
from consentry.domain.errors import ConsentryError, InvalidInput
from consentry.domain.values import Micros
from consentry.ops.clock import system_clock
from consentry.trainer.bundled import snapshot_of
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.certificate_report_text import OUTCOMES, report_fields, report_lines
from consentry.trainer.runs.certificates.reader import Certificate
from consentry.trainer.runs.read_files import read_pieces
from consentry.trainer.runs.stored_certificate import StoredCertificate
from consentry.trainer.runs.verify import CertificateReport, verify

app = typer.Typer(add_completion=False)

_VIOLATED = OUTCOMES.index("violated")
_CANNOT_TELL = OUTCOMES.index("cannot tell")


CertificatesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="CERTIFICATE…", help="Certificates, or the folders of runs: paths or URLs."
    ),
]
ReadsOption = Annotated[
    str | None,
    typer.Option(help="File of the run's reads; default: the one beside its certificate."),
]
BundleStoreOption = Annotated[
    str | None,
    typer.Option(metavar="STORE", help="Decide every read once more, by this store's bundle."),
]
SignerKeysOption = Annotated[
    list[Path] | None,
    typer.Option(help="File of the certificate signer's public keys; repeatable."),
]
WithinOption = Annotated[
    float | None,
    typer.Option(min=0, help="Seconds by which the run's decisions may lag; default: its lease."),
]
ShowMembersOption = Annotated[
    bool,
    typer.Option("--show-members", help="Name up to 1,000 members who were read though excluded."),
]


@app.command()
def run(
    certificates: CertificatesArgument,
    reads: ReadsOption = None,
    bundle: BundleStoreOption = None,
    key: SignerKeysOption = None,
    bundle_key: BundleKeysOption = None,
    within: WithinOption = None,
    show_members: ShowMembersOption = False,
    as_json: JsonOption = False,
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
    keys = None
    if key:
        keys = PublicKeys.read(*key)
    opened_bundle = None
    if bundle is not None:
        opened_bundle = bundle_of(bundle, bundle_key)
    bound = None
    if within is not None:
        bound = Micros(round(within * 1e6))
    verification = Verification(
        keys=keys, bundle=opened_bundle, within=bound, show_members=show_members
    )
    outcomes: list[CertificateOutcome] = []
    for name in certificates:
        outcome = _verify(verification, name, reads, among=len(certificates))
        outcomes.append(outcome)
        if not as_json:
            typer.echo("\n".join(outcome.lines))
    if as_json:
        fields = [outcome.fields for outcome in outcomes]
        if len(fields) > 1:
            typer.echo(json.dumps(fields, indent=2))
        else:
            typer.echo(json.dumps(fields[0], indent=2))
    statuses = [outcome.status for outcome in outcomes]
    if _VIOLATED in statuses:
        raise typer.Exit(_VIOLATED)
    raise typer.Exit(max(statuses))


class CertificateOutcome(NamedTuple):
    """The outcome that a command prints for one certificate: exit status, JSON, and lines.

    The lines are for a person.
    """

    status: int
    fields: dict[str, Any]
    lines: list[str]


def _verify(
    verification: Verification, name: str, reads: str | None, *, among: int
) -> CertificateOutcome:
    """Verify one certificate. Raises ConsentryError where it is the only one.

    Of several, one whose run was aborted must not keep the others from being verified.
    """
    try:
        certificate, report = verification.verify(name, reads)
    except ConsentryError as error:
        if among == 1:
            raise
        line = f"{name}: CANNOT TELL. {error}"
        return CertificateOutcome(_CANNOT_TELL, _error_fields(name, error), [line])
    fields = report_fields(certificate, report) | {"bundle_keys": verification.bundle_keys}
    return CertificateOutcome(report.status, fields, list(report_lines(certificate, report)))


class OpenedBundle(NamedTuple):
    """A bundle that a command has opened: its members, and the ids of the keys that signed it.

    `key_ids` also has the keys that signed what it builds on.
    """

    bundle: Bundle
    snapshot: Snapshot
    key_ids: list[str]


class Verification(NamedTuple):
    """The means by which `consentry verify` verifies: keys, a bundle, an allowed lag.

    The lag is the time that certificates may lag.
    """

    keys: PublicKeys | None
    bundle: OpenedBundle | None
    within: Micros | None
    show_members: bool

    @property
    def bundle_keys(self) -> list[str]:
        """The ids of the keys that signed the command's bundle; none without a bundle."""
        if self.bundle is None:
            return []
        return self.bundle.key_ids

    def verify(self, name: str, reads: str | None) -> tuple[Certificate, CertificateReport]:
        """Verify one training run's certificate by its file of reads.

        The reads are at `reads`, or beside the certificate of that name. Raises InvalidInput and
        Unavailable.
        """
        stored = StoredCertificate.named(name)
        certificate = stored.read(self.keys)
        snapshot = None
        if self.bundle is not None:
            snapshot = self.bundle.snapshot
        with stored.open_reads(reads) as file:
            pieces = None
            if file is not None:
                pieces = read_pieces(file)
            report = verify(
                certificate,
                pieces,
                snapshot,
                bound=self.within,
                key_is_given=self.keys is not None,
                show_members=self.show_members,
            )
        if self.bundle is not None:
            bundle_id = self.bundle.bundle.manifest.bundle_id
            keys = ", ".join(self.bundle.key_ids)
            report.checked.append(f"the bundle {bundle_id} is signed by the key {keys}")
        return certificate, report


def bundle_of(url: str, keys: list[Path] | None) -> OpenedBundle:
    """Open the newest bundle of a store, as the command's key arguments allow.

    Only the bundler's own keys are believed: whoever signs certificates could otherwise sign the
    bundle that acquits them. Raises BundleRefused, Unavailable, and InvalidInput without a key.
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
    key_ids = sorted({manifest.signed_by for manifest in bundle.manifests})
    return OpenedBundle(bundle, snapshot_of(bundle), key_ids)


def _error_fields(name: str, error: ConsentryError) -> dict[str, Any]:
    return {
        "status": OUTCOMES[_CANNOT_TELL],
        "named": name,
        "code": error.code,
        "detail": error.message,
    }
