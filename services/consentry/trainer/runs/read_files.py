"""Parquet files of a training run's reads: opened, read in pieces, merged into a sorted file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consentry.domain.errors import Unavailable
from consentry.trainer.runs.certificates.reads import SCHEMA, distinct_reads
from consentry.trainer.runs.store import RunFolder

GROUP_ROWS: Final = 32_768
"""Rows of a row group: at least one group is read to find the reads of one member."""
_PIECE_ROWS: Final = 1_000_000


@contextmanager
def open_read_files(folder: RunFolder, names: Sequence[str]) -> Iterator[list[pq.ParquetFile]]:
    """Open files of a training run's reads. Raises Unavailable where one is damaged."""
    with ExitStack() as stack:
        files = []
        for name in names:
            file = stack.enter_context(folder.open(name))
            files.append(open_read_file(file, name))
        yield files


def open_read_file(file: IO[bytes], name: str) -> pq.ParquetFile:
    """Open one file of a training run's reads. Raises Unavailable where it is not one."""
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(name) from error
    if parquet.schema_arrow.names != SCHEMA.names:
        raise _damaged(name)
    return parquet


def read_pieces(file: pq.ParquetFile, name: str = "reads") -> Iterator[pa.Table]:
    """Give a training run's reads from a file in order, about a million rows at a time.

    Raises Unavailable where it is damaged.
    """
    groups: list[int] = []
    rows = 0
    for group in range(file.num_row_groups):
        groups.append(group)
        rows += file.metadata.row_group(group).num_rows
        if rows >= _PIECE_ROWS or group == file.num_row_groups - 1:
            yield _read_groups(file, groups, name)
            groups, rows = [], 0


def reads_of_member(file: pq.ParquetFile, member: str, name: str = "reads") -> pa.Table:
    """Return the reads of one member in the files of a training run."""
    reads = _read_groups(file, _groups_between(file, member, member), name)
    return reads.filter(pc.equal(reads["member_id"], member))


def merge_reads(files: Sequence[pq.ParquetFile]) -> Iterator[pa.Table]:
    """Give a training run's distinct reads of all files in order, about a million at a time.

    All reads of one member are in one piece.
    """
    for lowest, beyond in _member_ranges(files):
        reads = pa.concat_tables([_reads_between(file, lowest, beyond) for file in files])
        if len(files) > 1:
            reads = distinct_reads(reads)
        yield reads


def write_reads(reads: pa.Table, out: IO[bytes]) -> None:
    """Write a table of a training run's reads as a Parquet file."""
    pq.write_table(reads, out, compression="zstd", row_group_size=GROUP_ROWS)


def write_merged(files: Sequence[pq.ParquetFile], out: IO[bytes]) -> None:
    """Write a training run's distinct reads of all files as one file, in order."""
    with pq.ParquetWriter(out, SCHEMA, compression="zstd") as writer:
        for piece in merge_reads(files):
            writer.write_table(piece, row_group_size=GROUP_ROWS)


def _read_groups(file: pq.ParquetFile, groups: Sequence[int], name: str) -> pa.Table:
    try:
        return file.read_row_groups(list(groups)).cast(SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(name) from error


def _member_ranges(files: Sequence[pq.ParquetFile]) -> list[tuple[str | None, str | None]]:
    """Return ranges of members with about a million rows each.

    Each range goes from its first member (inclusive) to its second (exclusive); None is open.
    """
    groups: list[tuple[str, int]] = []
    for file in files:
        for group in _filled_groups(file):
            first, _ = _member_bounds(file, group)
            groups.append((first, file.metadata.row_group(group).num_rows))
    if not groups:
        return []
    edges: list[str] = []
    rows = 0
    for first, group_rows in sorted(groups):
        if rows >= _PIECE_ROWS and (not edges or first > edges[-1]):
            edges.append(first)
            rows = 0
        rows += group_rows
    return list(zip([None, *edges], [*edges, None], strict=True))


def _filled_groups(file: pq.ParquetFile) -> Iterator[int]:
    for group in range(file.num_row_groups):
        if file.metadata.row_group(group).num_rows:
            yield group


def _member_bounds(file: pq.ParquetFile, group: int) -> tuple[str, str]:
    """Return the first and the last member of a row group, from its statistics."""
    statistics = file.metadata.row_group(group).column(0).statistics
    if statistics is None or not statistics.has_min_max:
        raise _damaged("reads")
    return statistics.min, statistics.max


def _groups_between(file: pq.ParquetFile, lowest: str | None, highest: str | None) -> list[int]:
    """Return the row groups that may hold members from `lowest` to `highest`, both inclusive."""
    groups = []
    for group in _filled_groups(file):
        first, last = _member_bounds(file, group)
        if (highest is None or first <= highest) and (lowest is None or last >= lowest):
            groups.append(group)
    return groups


def _reads_between(file: pq.ParquetFile, lowest: str | None, beyond: str | None) -> pa.Table:
    """Return the reads of the members from `lowest` (inclusive) to `beyond` (exclusive)."""
    reads = _read_groups(file, _groups_between(file, lowest, beyond), "reads")
    if lowest is not None:
        reads = reads.filter(pc.greater_equal(reads["member_id"], lowest))
    if beyond is not None:
        reads = reads.filter(pc.less(reads["member_id"], beyond))
    return reads


def _damaged(name: str) -> Unavailable:
    return Unavailable(
        f"The file {name} holds no reads, or is damaged.", code="reads.damaged", fix="restore it"
    )
