"""Verifies a training run's certificate: signature, reads, and each read decided again.

The reads are decided again only with a snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Micros, Reason
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.certificates.reader import Certificate
from consentry.trainer.runs.exclusions import excluded_members
from consentry.trainer.runs.reads_summary import ReadsAccumulator, ReadsSummary
from consentry.trainer.runs.reexamine import CANNOT_TELL, VIOLATED, reexamine
from consentry.wire.tokens import TokenKeys, read_token

_MEMBERS_SHOWN_MAX: Final = 1000


@dataclass(slots=True)
class CertificateReport:
    """The result of verifying a training run's certificate, as sentences.

    `checked` was looked at and holds, `wrong` does not hold, `unclear` could not be decided.
    """

    checked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    violations: Counter[Reason] = field(default_factory=Counter)
    """Reads that were excluded when they were read, by the reason that excluded them."""
    members: list[str] = field(default_factory=list)
    """The members of these reads; at most a thousand, and only where they were asked for."""

    @property
    def status(self) -> int:
        """The exit status of verifying: 0 all holds, 1 something does not, 2 is unclear."""
        if self.wrong:
            return 1
        if self.unclear:
            return 2
        return 0


def verify(
    certificate: Certificate,
    reads: Iterable[pa.Table] | None,
    snapshot: Snapshot | None,
    *,
    bound: Micros | None = None,
    key_is_given: bool = False,
    show_members: bool = False,
    progress: Callable[[int], object] = lambda rows: None,
) -> CertificateReport:
    """Verify a training run's certificate by all that is given.

    `reads` gives the reads of the run in order, in pieces; `snapshot` is that of a bundle, or of
    anything that knows as much as the certificate's token names. `bound`, in microseconds, replaces
    the certificate's own lease. `progress` is called with the number of rows of each piece.
    """
    report = CertificateReport()
    statement = certificate.statement
    _check_signature(report, certificate, key_is_given=key_is_given)
    if reads is None:
        report.unclear.append("the reads are missing: nothing can be said of what was read")
    if snapshot is None:
        report.unclear.append(
            "no bundle was given: whether a member was excluded cannot be decided again"
        )
    elif not _knows_enough(report, statement, snapshot):
        snapshot = None
    if reads is not None:
        if bound is None:
            bound = Micros(statement["lease_micros"])
        check = _ReadsCheck(report, statement, snapshot, bound, show_members=show_members)
        check.check(reads, progress)
    if snapshot is not None:
        _check_exclusions(report, statement, snapshot)
    return report


def _check_signature(
    report: CertificateReport, certificate: Certificate, *, key_is_given: bool
) -> None:
    if certificate.is_verified:
        report.checked.append(f"signed by the key {certificate.key_id}")
    elif certificate.key_id:
        whose = "was not given"
        if key_is_given:
            whose = "is none of the keys given"
        report.unclear.append(f"it is signed by the key {certificate.key_id}, which {whose}")
    elif key_is_given:
        report.unclear.append(
            "it is not signed: whoever could write the file could have written it"
        )
    else:
        report.checked.append(
            "its digest; it is not signed, so that shows no more than that it is whole"
        )


def _knows_enough(report: CertificateReport, statement: dict[str, Any], snapshot: Snapshot) -> bool:
    """Return whether the snapshot is at least as fresh as the run was at its end."""
    token = statement["token_end"]
    if not token:
        report.unclear.append(
            "the certificate names no token: it does not show which log its run followed"
        )
        return False
    missing = snapshot.missing(read_token(token, TokenKeys()))
    if missing:
        report.unclear.append(f"the bundle does not know what the run knew at its end: {missing}")
        return False
    report.checked.append("the bundle knows all that the run knew at its end")
    return True


class _ReadsCheck:
    """Checks the reads of a run, piece by piece, and reports what it finds.

    Without a snapshot the reads are compared with the certificate, and not decided again.
    """

    def __init__(
        self,
        report: CertificateReport,
        statement: dict[str, Any],
        snapshot: Snapshot | None,
        bound: Micros,
        *,
        show_members: bool,
    ) -> None:
        self._report = report
        self._statement = statement
        self._snapshot = snapshot
        self._bound = bound
        self._show_members = show_members
        self._reads = ReadsAccumulator()
        self._unclear: Counter[Reason] = Counter()

    def check(self, reads: Iterable[pa.Table], progress: Callable[[int], object]) -> None:
        """Check all pieces; reads out of order are reported as wrong."""
        try:
            for piece in reads:
                self._reads.add(piece)
                if self._snapshot is not None:
                    self._reexamine(piece, self._snapshot)
                progress(piece.num_rows)
        except InvalidInput as error:
            self._report.wrong.append(error.message)
            return
        _compare(self._report, self._statement, self._reads.summary())
        self._report_outcomes()

    def _reexamine(self, piece: pa.Table, snapshot: Snapshot) -> None:
        report = self._report
        examined = reexamine(snapshot, piece, purpose=self._statement["purpose"], bound=self._bound)
        report.violations.update(examined.counts(VIOLATED))
        self._unclear.update(examined.counts(CANNOT_TELL))
        if self._show_members and len(report.members) < _MEMBERS_SHOWN_MAX:
            violated = np.flatnonzero(examined.outcomes == VIOLATED)
            members = piece["member_id"].take(pa.array(violated)).unique().to_pylist()
            # A member's reads may lie in several pieces: each member is named once.
            named = dict.fromkeys([*report.members, *members])
            report.members = list(named)[:_MEMBERS_SHOWN_MAX]

    def _report_outcomes(self) -> None:
        report = self._report
        for reason, number in sorted(report.violations.items()):
            report.wrong.append(f"{number} reads were excluded when they were read: {reason.value}")
        for reason, number in sorted(self._unclear.items()):
            report.unclear.append(
                f"{number} reads cannot be decided again: {reason.value} without a date, or "
                "between the first and the last read"
            )
        if self._snapshot is not None and not report.violations and not self._unclear:
            report.checked.append(
                "every read decided again as of its time, by what was recorded "
                f"{self._bound / 1e6:g} s before"
            )


def _compare(report: CertificateReport, statement: dict[str, Any], summary: ReadsSummary) -> None:
    """Compare the reads with what the certificate says of them."""
    stated = statement["reads"]
    pairs = (
        ("the Merkle root", stated["merkle_root"], summary.root.hex()),
        ("leaves", stated["leaves"], summary.leaves),
        ("members", statement["members_read"], summary.members),
        ("rows", statement["rows_read"], summary.rows),
        ("the first read", stated["first_read_at"], summary.first_read_at),
        ("the last read", stated["last_read_at"], summary.last_read_at),
    )
    different = [name for name, stated_value, value in pairs if stated_value != value]
    if _rows_allowed(statement) > summary.rows:
        different.append("rows that were answered as allowed")
    begin, end = statement["started_at"], statement["ended_at"]
    first = summary.first_read_at or begin
    last = summary.last_read_at or end
    if not begin <= first <= last <= end:
        different.append("times, which are not those of the run")
    if different:
        report.wrong.append(f"the reads are not those of the certificate: {', '.join(different)}")
    else:
        report.checked.append(
            f"the reads: {summary.rows} rows of {summary.members} members, the Merkle root over "
            "them"
        )
    disjoint = statement["disjoint"]
    if not disjoint["holds"]:
        report.wrong.append(
            f"the run itself found {disjoint['violations']} reads of excluded members"
        )


def _rows_allowed(statement: dict[str, Any]) -> int:
    counts: dict[str, int] = statement["counts"]
    rows = 0
    for reason in Reason:
        if reason.allows:
            rows += counts.get(reason.value, 0)
    return rows


def _check_exclusions(
    report: CertificateReport, statement: dict[str, Any], snapshot: Snapshot
) -> None:
    """Compare the digest of those excluded at the run's end with that of the certificate."""
    stated = statement["exclusions"]
    excluded = excluded_members(
        snapshot,
        purpose=statement["purpose"],
        at=Micros(statement["ended_at"]),
        known_at=Micros(statement["known_at_end"]),
    )
    count = excluded.member_count
    if (count, excluded.digest) == (stated["members"], stated["digest"]):
        report.checked.append(f"the digest of the {count} members excluded at its end")
        return
    difference = (
        f"the bundle excludes {count} members at its end, the certificate {stated['members']}"
    )
    if excluded.undated:
        report.unclear.append(
            f"{difference}; {excluded.undated} are quarantined or folded, at a date that is not "
            "known"
        )
    else:
        report.wrong.append(difference)
