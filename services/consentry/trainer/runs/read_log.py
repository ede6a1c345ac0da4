"""What a run has read: kept in memory for a moment, then in parts in the run store, merged when the
run ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consentry.domain.errors import InvalidInput, Unavailable
from consentry.domain.values import Micros
from consentry.ops.clock import Clock
from consentry.trainer.deciding.decide_table import Columns
from consentry.trainer.runs.certificates.merkle import Inclusion, MerkleTree, inclusions
from consentry.trainer.runs.certificates.reads import SCHEMA, distinct, is_sorted, leaves
from consentry.trainer.runs.store import READS_FILE, RunFolder

SPOOL_SECONDS: Final = 1.0
SPOOL_ROWS: Final = 1_000_000
_GROUP_ROWS: Final = 32_768
_RANGE_ROWS: Final = 1_000_000
_MERGED_AT_ONCE: Final = 32
"""So many neighbouring parts of one length become one; a run of days then has some hundred parts,
not one a second.
"""


class ReadLog:
    """Records reads; nothing of it may be used by two threads at once.

    What was read longer than `spool_seconds` before the last batch, and all but the last
    `spool_rows` rows, is in the store: that is the tail which a kill can lose. With 0 seconds each
    batch is there before it is handed out.
    """

    def __init__(
        self,
        folder: RunFolder,
        clock: Clock,
        *,
        spool_seconds: float = SPOOL_SECONDS,
        spool_rows: int = SPOOL_ROWS,
    ) -> None:
        self.rows = 0
        self._folder = folder
        self._clock = clock
        self._spool_micros = round(spool_seconds * 1e6)
        self._spool_rows = spool_rows
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._next = 1
        self._lengths: list[int] = []
        """How many numbers each part in the store stands for."""
        self._flushed_at = clock()

    def record(self, reads: pa.Table) -> None:
        """Take the reads of one batch in, and write to the store what is due. Raises
        Unavailable.
        """
        self.rows += reads.num_rows
        self._pending.append(reads)
        self._pending_rows += reads.num_rows
        due = self._clock() - self._flushed_at >= self._spool_micros
        if due or self._pending_rows >= self._spool_rows:
            self.flush()

    def flush(self) -> None:
        """Write everything to the store. Raises Unavailable."""
        if self._pending_rows:
            found = distinct(pa.concat_tables(self._pending))
            self._folder.write_part(self._next, self._next, lambda file: _write_table(found, file))
            self._next += 1
            self._lengths.append(1)
            self._merge_neighbours()
        self._pending, self._pending_rows = [], 0
        self._flushed_at = self._clock()

    def _merge_neighbours(self) -> None:
        while (
            len(tail := self._lengths[-_MERGED_AT_ONCE:]) == _MERGED_AT_ONCE and len(set(tail)) == 1
        ):
            total = sum(tail)
            names = self._folder.parts()[-_MERGED_AT_ONCE:]
            with opened(self._folder, names) as files:
                if sum(file.metadata.num_rows for file in files) > _MERGED_AT_ONCE * _GROUP_ROWS:
                    return  # as large as these are, merging them once more costs more than it saves
                self._folder.write_part(
                    self._next - total, self._next - 1, lambda out: _merge(files, out)
                )
            self._folder.remove_parts(merged_only=True)
            self._lengths[-_MERGED_AT_ONCE:] = [total]

    def merge(self) -> None:
        """Make one sorted file of all parts; they stay until `remove_parts`."""
        self.flush()
        with opened(self._folder, self._folder.parts()) as files:
            self._folder.write_with(READS_FILE, lambda out: _merge(files, out))


class Summary(NamedTuple):
    """What a table of reads comes to; `root` is the Merkle root over its leaves."""

    root: bytes
    leaves: int
    members: int
    rows: int
    first_read_at: Micros | None
    last_read_at: Micros | None


class Summing:
    """Sums reads up that come in order, piece by piece.

    `add` raises InvalidInput where they are not in order.
    """

    def __init__(self) -> None:
        self._tree = MerkleTree()
        self._members = self._rows = 0
        self._first: int | None = None
        self._last: int | None = None
        self._before: pa.Table | None = None

    def add(self, reads: pa.Table) -> None:
        """Take the next piece in."""
        if not reads.num_rows:
            return
        behind = reads if self._before is None else pa.concat_tables([self._before, reads])
        if not is_sorted(behind) or reads["member_id"].null_count:
            raise InvalidInput(
                "The reads are not sorted and distinct: they were altered.",
                code="reads.order",
                fix="take the file as the run wrote it",
            )
        self._tree.add(leaves(reads))
        members = reads["member_id"]
        is_known = self._before is not None and self._before["member_id"][0] == members[0]
        self._members += pc.count_distinct(members).as_py() - is_known
        self._rows += pc.sum(reads["rows"]).as_py()
        first, last = (
            pc.min_max(reads[name].cast(pa.int64())) for name in ("first_read_at", "last_read_at")
        )
        self._first = min(first["min"].as_py(), self._first or first["min"].as_py())
        self._last = max(last["max"].as_py(), self._last or 0)
        self._before = reads.slice(reads.num_rows - 1)

    def summary(self) -> Summary:
        """What all pieces come to."""
        first = None if self._first is None else Micros(self._first)
        last = None if self._last is None else Micros(self._last)
        return Summary(self._tree.root(), self._tree.size, self._members, self._rows, first, last)


@contextmanager
def opened(folder: RunFolder, names: Sequence[str]) -> Iterator[list[pq.ParquetFile]]:
    """Files of reads, open. Raises Unavailable where one is damaged."""
    with ExitStack() as stack:
        yield [open_reads(stack.enter_context(folder.open(name)), name) for name in names]


def open_reads(file: IO[bytes], name: str) -> pq.ParquetFile:
    """A file of reads. Raises Unavailable where it is none."""
    try:
        found = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(name) from error
    if found.schema_arrow.names != SCHEMA.names:
        raise _damaged(name)
    return found


def pieces(file: pq.ParquetFile, name: str = "reads") -> Iterator[pa.Table]:
    """A file's reads in order, about a million rows at a time.

    Raises Unavailable where it is damaged.
    """
    groups: list[int] = []
    rows = 0
    for group in range(file.num_row_groups):
        groups.append(group)
        rows += file.metadata.row_group(group).num_rows
        if rows >= _RANGE_ROWS or group == file.num_row_groups - 1:
            yield _read(file, groups, name)
            groups, rows = [], 0


def reads_of(file: pq.ParquetFile, member: str, name: str = "reads") -> pa.Table:
    """The reads of one member."""
    found = _read(file, _groups_between(file, member, member), name)
    return found.filter(pc.equal(found["member_id"], member))


def proofs_of(file: pq.ParquetFile, member: str) -> list[Inclusion]:
    """That each read of a member is in the tree of a certificate: to be shown to them, it names
    nobody else.
    """
    places: list[int] = []
    begin = 0
    for piece in pieces(file):
        rows = pc.indices_nonzero(pc.equal(piece["member_id"], member))
        places += [begin + row for row in rows.to_pylist()]
        begin += piece.num_rows
    return inclusions((leaves(piece) for piece in pieces(file)), places, begin)


def _read(file: pq.ParquetFile, groups: Sequence[int], name: str) -> pa.Table:
    try:
        return file.read_row_groups(list(groups)).cast(SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(name) from error


def _damaged(name: str) -> Unavailable:
    return Unavailable(
        f"The file {name} holds no reads, or is damaged.", code="reads.damaged", fix="restore it"
    )


def _write_table(table: pa.Table, file: IO[bytes]) -> None:
    pq.write_table(table, file, compression="zstd", row_group_size=_GROUP_ROWS)


def _merge(files: Sequence[pq.ParquetFile], out: IO[bytes]) -> None:
    """Write the distinct reads of all files, in order."""
    with pq.ParquetWriter(out, SCHEMA, compression="zstd") as writer:
        for piece in merged(files):
            writer.write_table(piece, row_group_size=_GROUP_ROWS)


def merged(files: Sequence[pq.ParquetFile]) -> Iterator[pa.Table]:
    """The distinct reads of all files, in order, about a million at a time; all of a member's are
    in one piece.
    """
    for lowest, highest in _ranges(files):
        found = pa.concat_tables([_between(file, lowest, highest) for file in files])
        yield found if len(files) == 1 else distinct(found)


def _ranges(files: Sequence[pq.ParquetFile]) -> list[tuple[str | None, str | None]]:
    """Spans of members, from the first one's (inclusive) to the second one's (exclusive), of about
    a million rows.
    """
    begins = sorted(
        (*_bounds(file, group)[:1], file.metadata.row_group(group).num_rows)
        for file, group in _groups(files)
    )
    edges: list[str] = []
    rows = 0
    for lowest, number in begins:
        if rows >= _RANGE_ROWS and (not edges or lowest > edges[-1]):
            edges.append(lowest)
            rows = 0
        rows += number
    return list(zip([None, *edges], [*edges, None], strict=True)) if begins else []


def _groups(files: Sequence[pq.ParquetFile]) -> Iterator[tuple[pq.ParquetFile, int]]:
    for file in files:
        for group in range(file.num_row_groups):
            if file.metadata.row_group(group).num_rows:
                yield file, group


def _bounds(file: pq.ParquetFile, group: int) -> tuple[str, str]:
    """The first and the last member of a row group, as its statistics have it."""
    statistics = file.metadata.row_group(group).column(0).statistics
    if statistics is None or not statistics.has_min_max:
        raise _damaged("reads")
    return statistics.min, statistics.max


def _groups_between(file: pq.ParquetFile, lowest: str | None, highest: str | None) -> list[int]:
    """The row groups that may hold members from the first to the second one, both inclusive."""
    found = []
    for _, group in _groups([file]):
        first, last = _bounds(file, group)
        if (highest is None or first <= highest) and (lowest is None or last >= lowest):
            found.append(group)
    return found


def _between(file: pq.ParquetFile, lowest: str | None, highest: str | None) -> pa.Table:
    found = _read(file, _groups_between(file, lowest, highest), "reads")
    if lowest is not None:
        found = found.filter(pc.greater_equal(found["member_id"], lowest))
    return found if highest is None else found.filter(pc.less(found["member_id"], highest))


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
        return pa.nulls(count, pa.string()) if name is None else _texts(table[name])

    collected = (
        pa.nulls(count, pa.int64())
        if columns.collected is None
        else _times(table[columns.collected])
    )
    return ReadRows(
        texts(columns.member), texts(columns.jurisdiction), texts(columns.category), collected
    )


def _texts(column: pa.ChunkedArray) -> pa.Array:
    """A column as texts; whole numbers become decimal texts."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_dictionary(column.type):
        column = column.cast(kind)
    if pa.types.is_string(kind):
        found = column
    elif (
        pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_integer(kind)
    ):
        found = column.cast(pa.string())
    else:
        found = pa.chunked_array(
            [pa.array([_as_text(value) for value in column.to_pylist()], pa.string())]
        )
    return found.combine_chunks()


def _as_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return None if value is None else str(value)


def _times(column: pa.ChunkedArray) -> pa.Array:
    """A column of times in microseconds."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us"), safe=getattr(kind, "unit", "") != "ns")
    return column.cast(pa.int64()).combine_chunks()
