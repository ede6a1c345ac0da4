"""Checking a certificate: what it says, what was read, and, with a view, every read decided once
more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Micros, Reason
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.certificates import Certificate
from consentry.trainer.runs.read_log import Summing
from consentry.trainer.runs.reexamine import CANNOT_TELL, VIOLATED, examine, exclusions
from consentry.wire.tokens import TokenKeys, read_token

_SHOWN_MAX: Final = 1000


@dataclass(slots=True)
class CertificateReport:
    """What was found:

    `wrong` does not hold, `unclear` cannot be told, `checked` was looked at and holds.
    """

    checked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    violations: Counter[Reason] = field(default_factory=Counter)
    """Reads that were excluded when they were read, by the reason that excluded them."""
    members: list[str] = field(default_factory=list)
    """Whose reads these are; at most a thousand, and only where they were asked for."""

    @property
    def status(self) -> int:
        """0: all of it holds. 1: something does not. 2: something cannot be told."""
        return 1 if self.wrong else 2 if self.unclear else 0


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
    """Check all that can be checked with what there is.

    `reads` gives the reads of the run in order, in pieces; `snapshot` is that of a bundle, or of
    anything that knows as much as the certificate's token names. `bound`, in microseconds, replaces
    the certificate's own lease.
    """
    report = CertificateReport()
    statement = certificate.statement
    _check_signature(report, certificate, key_is_given=key_is_given)
    if reads is None:
        report.unclear.append("the reads are missing: nothing can be said of what was read")
    knows = snapshot is not None and _knows_enough(report, statement, snapshot)
    if snapshot is None:
        report.unclear.append(
            "no bundle was given: whether a member was excluded cannot be decided anew"
        )
    if reads is not None:
        asked = Micros(statement["lease_micros"]) if bound is None else bound
        _check_reads(
            report,
            statement,
            _told(reads, progress),
            snapshot if knows else None,
            asked,
            show_members,
        )
    if knows and snapshot is not None:
        _check_exclusions(report, statement, snapshot)
    return report


def _told(reads: Iterable[pa.Table], progress: Callable[[int], object]) -> Iterator[pa.Table]:
    for piece in reads:
        yield piece
        progress(piece.num_rows)


def _check_signature(
    report: CertificateReport, certificate: Certificate, *, key_is_given: bool
) -> None:
    if certificate.is_verified:
        report.checked.append(f"signed by the key {certificate.key_id}")
    elif certificate.key_id:
        report.unclear.append(
            f"it is signed by the key {certificate.key_id}, which "
            + ("is none of the keys given" if key_is_given else "was not given")
        )
    elif key_is_given:
        report.unclear.append(
            "it is not signed: whoever could write the file could have written it"
        )
    else:
        report.checked.append(
            "its digest; it is not signed, so that shows no more than that it is whole"
        )


def _knows_enough(report: CertificateReport, statement: dict[str, Any], snapshot: Snapshot) -> bool:
    """Whether the view is at least as fresh as the certificate's end."""
    text = statement["token_end"]
    if not text:
        report.unclear.append(
            "the certificate names no token: which log its run followed cannot be told"
        )
        return False
    if missing := snapshot.missing(read_token(text, TokenKeys())):
        report.unclear.append(f"the bundle does not know what the run knew at its end: {missing}")
        return False
    report.checked.append("the bundle knows all that the run knew at its end")
    return True


def _check_reads(
    report: CertificateReport,
    statement: dict[str, Any],
    reads: Iterable[pa.Table],
    snapshot: Snapshot | None,
    bound: Micros,
    show_members: bool,
) -> None:
    summing, unclear = Summing(), Counter[Reason]()
    try:
        for piece in reads:
            summing.add(piece)
            if snapshot is None:
                continue
            found = examine(snapshot, piece, purpose=statement["purpose"], bound=bound)
            report.violations.update(found.counts(VIOLATED))
            unclear.update(found.counts(CANNOT_TELL))
            if show_members and len(report.members) < _SHOWN_MAX:
                _name(
                    report,
                    piece["member_id"].take(pa.array(np.flatnonzero(found.outcomes == VIOLATED))),
                )
    except InvalidInput as error:
        report.wrong.append(error.message)
        return
    _compare(report, statement, summing)
    for reason, number in sorted(report.violations.items()):
        report.wrong.append(f"{number} reads were excluded when they were read: {reason.value}")
    for reason, number in sorted(unclear.items()):
        report.unclear.append(
            f"{number} reads cannot be decided anew: {reason.value} without a date, or in between"
        )
    if snapshot is not None and not report.violations and not unclear:
        report.checked.append(
            f"every read decided anew as of its time, by what was recorded {bound / 1e6:g} s before"
        )


def _name(report: CertificateReport, members: pa.ChunkedArray) -> None:
    """Name these too, each once, until there are as many as are shown."""
    named = dict.fromkeys([*report.members, *members.unique().to_pylist()])
    report.members = list(named)[:_SHOWN_MAX]


def _compare(report: CertificateReport, statement: dict[str, Any], summing: Summing) -> None:
    """What the reads come to, with what the certificate says of them."""
    found = summing.summary()
    told = statement["reads"]
    pairs = (
        ("the Merkle root", told["merkle_root"], found.root.hex()),
        ("leaves", told["leaves"], found.leaves),
        ("members", statement["members_read"], found.members),
        ("rows", statement["rows_read"], found.rows),
        ("the first read", told["first_read_at"], found.first_read_at),
        ("the last read", told["last_read_at"], found.last_read_at),
    )
    different = [name for name, says, is_ in pairs if says != is_]
    allowed = sum(statement["counts"].get(reason.value, 0) for reason in Reason if reason.allows)
    if allowed > found.rows:
        different.append("rows that were answered as allowed")
    first, last = (
        found.first_read_at or statement["started_at"],
        found.last_read_at or statement["ended_at"],
    )
    if not statement["started_at"] <= first <= last <= statement["ended_at"]:
        different.append("times, which are not those of the run")
    if different:
        report.wrong.append(f"the reads are not those of the certificate: {', '.join(different)}")
    else:
        report.checked.append(
            f"the reads: {found.rows} rows of {found.members} members, the Merkle root over them"
        )
    if not statement["disjoint"]["holds"]:
        report.wrong.append(
            f"the run itself found {statement['disjoint']['violations']} reads of excluded members"
        )


def _check_exclusions(
    report: CertificateReport, statement: dict[str, Any], snapshot: Snapshot
) -> None:
    """Who was excluded at the end, by the view, with the digest in the certificate."""
    told = statement["exclusions"]
    found = exclusions(
        snapshot,
        purpose=statement["purpose"],
        at=Micros(statement["ended_at"]),
        known_at=Micros(statement["known_at_end"]),
    )
    if (found.members, found.digest) == (told["members"], told["digest"]):
        report.checked.append(f"the digest of the {found.members} members excluded at its end")
        return
    text = (
        f"the bundle excludes {found.members} members at its end, the certificate {told['members']}"
    )
    if found.undated:
        report.unclear.append(
            f"{text}; {found.undated} are held or folded, of which no date is known"
        )
    else:
        report.wrong.append(text)
