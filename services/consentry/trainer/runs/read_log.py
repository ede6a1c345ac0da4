"""The record of what a run reads: held in memory for a moment, then in parts in the run store.

The parts are merged into one file when the run ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from consentry.domain.values import Micros
from consentry.ops.clock import Clock
from consentry.trainer.deciding.columns import Columns, micros_of, plain_texts_of
from consentry.trainer.runs.batches import RunBatch
from consentry.trainer.runs.certificates.reads import SCHEMA, distinct_reads
from consentry.trainer.runs.read_files import (
    GROUP_ROWS,
    open_read_files,
    write_merged,
    write_reads,
)
from consentry.trainer.runs.store import READS_FILE, RunFolder

SPOOL_SECONDS: Final = 1.0
SPOOL_ROWS: Final = 1_000_000
_PARTS_MERGED: Final = 32
"""This many neighbouring parts of one length are merged into one.

A run of days then has some hundred parts, instead of one for each second.
"""


class ReadLog:
    """Records the reads of one run. Not for two threads at once.

    The store has every read that is older than `spool_seconds` before the last batch, and all but
    the last `spool_rows` rows. Only that tail can be lost when the process is killed. With 0
    seconds each batch is stored before it is handed out.
    """

    def __init__(
        self,
        folder: RunFolder,
        clock: Clock,
        *,
        spool_seconds: float = SPOOL_SECONDS,
        spool_rows: int = SPOOL_ROWS,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._spool_micros = round(spool_seconds * 1e6)
        self._spool_rows = spool_rows
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._next_number = 1
        self._part_lengths: list[int] = []
        """How many numbers each part in the store stands for."""
        self._flushed_at = clock()

    def record(
        self,
        batch: RunBatch,
        mask: npt.NDArray[np.bool_],
        *,
        shard: str,
        at: Micros,
        cut_offs: Sequence[Micros],
    ) -> None:
        """Record the rows of a batch where `mask` is True, and write to the store what is due.

        `at` is the time of the read; `cut_offs` are those of all terms known at that time, in
        ascending order. Raises Unavailable.
        """
        rows = read_rows(batch.table, batch.columns)
        reads = rows.reads(mask, shard=shard, at=at, cut_offs=cut_offs)
        self._pending.append(reads)
        self._pending_rows += reads.num_rows
        is_due = self._clock() - self._flushed_at >= self._spool_micros
        if is_due or self._pending_rows >= self._spool_rows:
            self.flush()

    def flush(self) -> None:
        """Write everything to the store. Raises Unavailable."""
        if self._pending_rows:
            reads = distinct_reads(pa.concat_tables(self._pending))
            number = self._next_number
            self._folder.write_part(number, number, lambda out: write_reads(reads, out))
            self._next_number += 1
            self._part_lengths.append(1)
            self._merge_neighbours()
        self._pending, self._pending_rows = [], 0
        self._flushed_at = self._clock()

    def _merge_neighbours(self) -> None:
        """Merge the last parts while there are enough of one length, as carries in a counter."""
        while True:
            lengths = self._part_lengths[-_PARTS_MERGED:]
            if len(lengths) < _PARTS_MERGED or len(set(lengths)) > 1:
                return
            total = sum(lengths)
            names = self._folder.parts()[-_PARTS_MERGED:]
            with open_read_files(self._folder, names) as files:
                rows = sum(file.metadata.num_rows for file in files)
                if rows > _PARTS_MERGED * GROUP_ROWS:
                    return  # parts of this size cost more to merge than they save
                self._write_merged_part(files, self._next_number - total, self._next_number - 1)
            self._folder.remove_parts(merged_only=True)
            self._part_lengths[-_PARTS_MERGED:] = [total]

    def _write_merged_part(self, files: list[pq.ParquetFile], first: int, last: int) -> None:
        self._folder.write_part(first, last, lambda out: write_merged(files, out))

    def merge(self) -> None:
        """Merge all parts into one sorted file; they stay until `remove_parts`."""
        self.flush()
        with open_read_files(self._folder, self._folder.parts()) as files:
            self._folder.write_with(READS_FILE, lambda out: write_merged(files, out))


class ReadRows(NamedTuple):
    """The rows of one batch as reads are recorded, before it is known which of them may be used."""

    member: pa.Array
    jurisdiction: pa.Array
    category: pa.Array
    collected: pa.Array

    def reads(
        self, mask: npt.NDArray[np.bool_], *, shard: str, at: Micros, cut_offs: Sequence[Micros]
    ) -> pa.Table:
        """The reads that the rows of a mask are."""
        keep = pa.array(mask)
        member, jurisdiction, category, collected = (column.filter(keep) for column in self)
        count = len(member)
        times = pa.repeat(pa.scalar(at, pa.int64()), count).cast(SCHEMA.field("first_read_at").type)
        met = _cut_off_met(collected, cut_offs)
        columns = [member, jurisdiction, category, met, pa.repeat(shard, count), times, times]
        return pa.table([*columns, pa.repeat(pa.scalar(1, pa.int64()), count)], schema=SCHEMA)


def _cut_off_met(collected: pa.Array, cut_offs: Sequence[Micros]) -> pa.Array:
    """For each time the latest of the cut-offs that is not later; null where there is none."""
    kind = SCHEMA.field("collected_from").type
    if not cut_offs or collected.null_count == len(collected):
        return pa.nulls(len(collected), kind)
    edges = np.array([0, *cut_offs], dtype=np.int64)
    early = np.iinfo(np.int64).min
    places = np.searchsorted(
        edges[1:], collected.fill_null(early).to_numpy(zero_copy_only=False), side="right"
    )
    return pa.array(edges[places], pa.int64(), mask=places == 0).cast(kind)


def read_rows(table: pa.Table, columns: Columns) -> ReadRows:
    """The columns of a batch in the types of reads."""
    count = table.num_rows

    def texts(name: str | None) -> pa.Array:
        return pa.nulls(count, pa.string()) if name is None else plain_texts_of(table[name])

    collected = (
        pa.nulls(count, pa.int64())
        if columns.collected is None
        else micros_of(table[columns.collected], columns.collected).combine_chunks()
    )
    return ReadRows(
        texts(columns.member), texts(columns.jurisdiction), texts(columns.category), collected
    )
