"""The totals of a training run's reads and their Merkle root, summed up piece by piece."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Micros
from consentry.trainer.runs.certificates.merkle import MerkleTree
from consentry.trainer.runs.certificates.reads import is_sorted, leaves


class ReadsSummary(NamedTuple):
    """The totals of a training run's reads; `root` is the Merkle root over their leaves.

    Times in microseconds since 1970-01-01 UTC, None where there are no reads.
    """

    root: bytes
    leaves: int
    members: int
    rows: int
    first_read_at: Micros | None
    last_read_at: Micros | None


class ReadsAccumulator:
    """Sums up a training run's reads that come in order, piece by piece."""

    def __init__(self) -> None:
        self._tree = MerkleTree()
        self._members = 0
        self._rows = 0
        self._first: int | None = None
        self._last: int | None = None
        self._last_row: pa.Table | None = None

    def add(self, reads: pa.Table) -> None:
        """Add the next piece of a run's reads. Raises InvalidInput if out of order."""
        if not reads.num_rows:
            return
        self._check_order(reads)
        self._tree.add(leaves(reads))
        self._members += self._new_members(reads["member_id"])
        self._rows += pc.sum(reads["rows"]).as_py()
        # A file that was altered may have nulls here, which min and max leave out.
        first = pc.min(reads["first_read_at"].cast(pa.int64())).as_py()
        last = pc.max(reads["last_read_at"].cast(pa.int64())).as_py()
        self._first = min(first, self._first or first)
        self._last = max(last, self._last or 0)
        self._last_row = reads.slice(reads.num_rows - 1)

    def _check_order(self, reads: pa.Table) -> None:
        joined = reads
        if self._last_row is not None:
            joined = pa.concat_tables([self._last_row, reads])
        if not is_sorted(joined) or reads["member_id"].null_count:
            raise InvalidInput(
                "The reads are not sorted and distinct: they were altered.",
                code="reads.order",
                fix="take the file as the run wrote it",
            )

    def _new_members(self, members: pa.ChunkedArray) -> int:
        """Return how many members the earlier pieces did not have."""
        count: int = pc.count_distinct(members).as_py()
        if self._last_row is not None and self._last_row["member_id"][0] == members[0]:
            count -= 1
        return count

    def summary(self) -> ReadsSummary:
        """Return the totals of all pieces of a training run's reads so far."""
        return ReadsSummary(
            root=self._tree.root(),
            leaves=self._tree.size,
            members=self._members,
            rows=self._rows,
            first_read_at=_as_micros(self._first),
            last_read_at=_as_micros(self._last),
        )


def _as_micros(time: int | None) -> Micros | None:
    if time is None:
        return None
    return Micros(time)
