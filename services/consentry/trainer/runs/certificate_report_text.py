"""The outcome of verifying a training run's certificate, as text and as JSON fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from consentry.domain.explain import date_text
from consentry.trainer.runs.certificates.reader import Certificate
from consentry.trainer.runs.verify import CertificateReport

OUTCOMES: Final = ("holds", "violated", "cannot tell")
"""The outcome by exit status."""


def report_fields(certificate: Certificate, report: CertificateReport) -> dict[str, Any]:
    """Return a verified certificate's outcome as JSON fields, with its statement."""
    violations = {reason.value: rows for reason, rows in sorted(report.violations.items())}
    return {
        "status": OUTCOMES[report.status],
        "checked": report.checked,
        "wrong": report.wrong,
        "unclear": report.unclear,
        "violations": violations,
        "members": report.members,
        "key": certificate.key_id,
        "is_verified": certificate.is_verified,
        "certificate": certificate.statement,
    }


def report_lines(certificate: Certificate, report: CertificateReport) -> Iterator[str]:
    """Give the outcome of verifying a training run's certificate, line by line.

    Before its signature is known to hold, a certificate's texts may be anybody's: each is quoted
    and cut, so that none can steer a terminal.
    """
    statement = certificate.statement
    yield f"{OUTCOMES[report.status].upper()}  run {statement['run_id']!s:.36}"
    yield (
        f"  {statement['rows_read']:,} rows of {statement['members_read']:,} members, from "
        f"{statement['dataset']!r:.140} {statement['dataset_version']!r:.140}, for "
        f"{statement['purpose']!r:.70}"
    )
    yield (
        f"  {date_text(statement['started_at'])} to {date_text(statement['ended_at'])}, by "
        f"{statement['subscriber']!r:.70}"
    )
    for text in report.checked:
        yield _labelled("holds", text)
    for text in report.wrong:
        yield _labelled("WRONG", text)
    for text in report.unclear:
        yield _labelled("cannot tell", text)
    for member in report.members:
        yield f"    {member}"
    yield _labelled("limit", f"{statement['limit']!s:.200}")


def _labelled(label: str, text: str) -> str:
    return f"  {label:<11}  {text}"
