"""The record of a training run's reads: in memory briefly, then in parts in the run store.

The parts are merged into one file when the run ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from consentry.domain.values import Micros
from consentry.ops.clock import Clock
from consentry.trainer.deciding.columns import micros_of, plain_texts_of
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
    """Records the reads of one training run. Not for two threads at once.

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
        """Record a run's reads: a batch's rows where `mask` is True; store what is due.

        `at` is the time of the read; `cut_offs` are those of all terms known at that time, in
        ascending order. Raises Unavailable.
        """
        reads = _reads_of_batch(batch, mask, shard=shard, at=at, cut_offs=cut_offs)
        self._pending.append(reads)
        self._pending_rows += reads.num_rows
        is_due = self._clock() - self._flushed_at >= self._spool_micros
        if is_due or self._pending_rows >= self._spool_rows:
            self.flush()

    def flush(self) -> None:
        """Write all recorded reads of a training run to the store. Raises Unavailable."""
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
        """Merge the last parts while there are enough of one length.

        The parts 1 to 32 become 00000001-00000032; later 32 such parts become 00000001-00001024.
        """
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
        """Merge a run's parts of reads into one sorted file.

        The parts stay until `remove_parts`.
        """
        self.flush()
        with open_read_files(self._folder, self._folder.parts()) as files:
            self._folder.write_with(READS_FILE, lambda out: write_merged(files, out))


def _reads_of_batch(
    batch: RunBatch,
    mask: npt.NDArray[np.bool_],
    *,
    shard: str,
    at: Micros,
    cut_offs: Sequence[Micros],
) -> pa.Table:
    """Return one read for each row of a batch where the mask is True."""
    keep = pa.array(mask)
    count = int(mask.sum())
    columns = batch.columns
    collected = _times(batch.table, columns.collected).filter(keep)
    read_at = pa.repeat(pa.scalar(at, pa.int64()), count).cast(SCHEMA.field("first_read_at").type)
    reads = {
        "member_id": _texts(batch.table, columns.member).filter(keep),
        "jurisdiction": _texts(batch.table, columns.jurisdiction).filter(keep),
        "category": _texts(batch.table, columns.category).filter(keep),
        "collected_from": _cut_offs_met(collected, cut_offs),
        "shard": pa.repeat(shard, count),
        "first_read_at": read_at,
        "last_read_at": read_at,
        "rows": pa.repeat(pa.scalar(1, pa.int64()), count),
    }
    return pa.table(reads, schema=SCHEMA)


def _cut_offs_met(collected: pa.Array, cut_offs: Sequence[Micros]) -> pa.Array:
    """Return for each time the latest cut-off that is not later; null where there is none.

    With the cut-offs 10 and 20 the times 5, 10, 15 and 20 give null, 10, 10 and 20.
    """
    kind = SCHEMA.field("collected_from").type
    if not cut_offs or collected.null_count == len(collected):
        return pa.nulls(len(collected), kind)
    before_all = np.iinfo(np.int64).min
    times = collected.fill_null(before_all).to_numpy(zero_copy_only=False)
    numbers_met = np.searchsorted(np.array(cut_offs, dtype=np.int64), times, side="right")
    # Position 0 stands for no cut-off met, and is masked.
    latest_met = np.array([0, *cut_offs], dtype=np.int64)[numbers_met]
    return pa.array(latest_met, pa.int64(), mask=numbers_met == 0).cast(kind)


def _texts(table: pa.Table, name: str | None) -> pa.Array:
    if name is None:
        return pa.nulls(table.num_rows, pa.string())
    return plain_texts_of(table[name])


def _times(table: pa.Table, name: str | None) -> pa.Array:
    if name is None:
        return pa.nulls(table.num_rows, pa.int64())
    return micros_of(table[name], name).combine_chunks()
