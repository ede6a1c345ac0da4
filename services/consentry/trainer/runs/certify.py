"""Writes what a training run's certificate states: the reads, and that none was excluded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from consentry.domain.values import Micros, Reason
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.certificates import FORMAT, LIMIT
from consentry.trainer.runs.certificates.reads import LEAF
from consentry.trainer.runs.exclusions import (
    EXCLUDED_WHATEVER_THE_ROW,
    ExcludedMembers,
    excluded_members,
)
from consentry.trainer.runs.read_files import open_read_files, read_pieces
from consentry.trainer.runs.reads_summary import ReadsAccumulator, ReadsSummary
from consentry.trainer.runs.reexamine import CANNOT_TELL, VIOLATED, reexamine
from consentry.trainer.runs.store import READS_FILE, RunFolder

DISJOINT: Final = (
    "each read was decided once more under the view at the end, as of its first and last time, by "
    "what had been recorded lease_micros before; a violation was excluded by everything the run "
    "may have known"
)
"""How `disjoint` was found, as the certificate states it. Part of a signed document: never changed
without a new FORMAT."""


def certificate_statement(
    folder: RunFolder,
    snapshot: Snapshot,
    *,
    start: Mapping[str, Any],
    end: Mapping[str, Any],
    totals: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the certificate's statement of a completed training run with merged reads.

    `start` is its run.json, `end` the time and the snapshot at its end, `totals` the numbers of
    batches and rows. Reads the run's reads once and decides each of them again.

    Raises Unavailable where the reads cannot be read.
    """
    purpose = start["purpose"]
    summary, violations, unclear = _reexamine_reads(
        folder, snapshot, purpose=purpose, bound=start["lease_micros"]
    )
    excluded = excluded_members(
        snapshot, purpose=purpose, at=end["ended_at"], known_at=end["known_at_end"]
    )
    return {
        **start,
        **end,
        **totals,
        "format": FORMAT,
        "rows_read": summary.rows,
        "members_read": summary.members,
        "reads": _reads_part(summary),
        "exclusions": _exclusions_part(excluded),
        "disjoint": {
            "holds": not violations and not unclear,
            "violations": violations,
            "unclear": unclear,
            "how": DISJOINT,
        },
        "limit": LIMIT,
    }


def _reexamine_reads(
    folder: RunFolder, snapshot: Snapshot, *, purpose: str, bound: Micros
) -> tuple[ReadsSummary, int, int]:
    """Return the summary of the merged reads, and how many are violations and how many unclear."""
    reads = ReadsAccumulator()
    violations: Counter[Reason] = Counter()
    unclear: Counter[Reason] = Counter()
    with open_read_files(folder, [READS_FILE]) as (file,):
        for piece in read_pieces(file):
            reads.add(piece)
            outcomes = reexamine(snapshot, piece, purpose=purpose, bound=bound)
            violations.update(outcomes.counts(VIOLATED))
            unclear.update(outcomes.counts(CANNOT_TELL))
    return reads.summary(), violations.total(), unclear.total()


def _reads_part(summary: ReadsSummary) -> dict[str, Any]:
    return {
        "leaves": summary.leaves,
        "leaf": LEAF,
        "tree": "RFC 6962, SHA-256",
        "merkle_root": summary.root.hex(),
        "first_read_at": summary.first_read_at,
        "last_read_at": summary.last_read_at,
    }


def _exclusions_part(excluded: ExcludedMembers) -> dict[str, Any]:
    return {
        "members": excluded.member_count,
        "digest": excluded.digest,
        "definition": EXCLUDED_WHATEVER_THE_ROW,
    }
