"""Build a record index segment from batches of members, without their records in memory."""

from __future__ import annotations

from typing import IO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consentry.record_index.segment import Segment, ascend, hashes_of, index_of, with_room
from consentry.record_index.segment_file import (
    HEAD_BYTES,
    FileSpan,
    buffers_of,
    map_segment,
    map_texts,
    write_buffers,
    write_rest,
)

BYTES_MAX: Final = 1 << 30
"""The most bytes of ids, or of records: offsets have 32 bits."""


class SegmentWriter:
    """Writes one segment of the record index to a file, from batches of members.

    Members in the order of their hashes, as bundles have them, need no sorting; others are sorted.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Begin in `file`, which is empty and open for writing and reading."""
        self._file = file
        self._ids: list[pa.Array] = []
        self._ends: list[npt.NDArray[np.int32]] = [np.zeros(1, np.int32)]
        self._ids_size = self._records_size = 0
        file.seek(HEAD_BYTES)

    def add(self, ids: pa.Array, records: pa.Array) -> bool:
        """Take members and their records into the segment, both binary; say whether they fit.

        Where they do not fit, none is taken.
        """
        (ids_ends, _), (ends, data) = buffers_of(ids), buffers_of(records)
        first, last = int(ends[0]), int(ends[-1])
        ids_size = self._ids_size + int(ids_ends[-1] - ids_ends[0])
        records_size = self._records_size + last - first
        if self._ids and max(ids_size, records_size) > BYTES_MAX:
            return False
        self._file.write(data[first:last].data)
        self._ends.append(ends[1:] + np.int32(self._records_size - first))
        self._ids.append(ids)
        self._ids_size, self._records_size = ids_size, records_size
        return True

    def finish(self) -> Segment:
        """Return the written segment, mapped from the file.

        Raises InvalidInput where a member is named twice, or for too many.
        """
        file, ids = self._file, pa.concat_arrays([pa.array([], pa.binary()), *self._ids])
        offsets, records_span = np.concatenate(self._ends), FileSpan(HEAD_BYTES, self._records_size)
        self._ids, self._ends = [], []
        hashes = hashes_of(ids)
        if ascend(hashes):
            write_rest(file, index_of(hashes, ids), with_room(ids), offsets, records_span)
        else:
            spans = [*write_buffers(file, [offsets]), records_span]
            segment = Segment.of_arrow(ids, map_texts(file, len(ids), spans))
            offsets, data = buffers_of(segment.records)
            [records_span] = write_buffers(file, [data])
            write_rest(file, segment.index, segment.ids, offsets, records_span)
        return Segment(*map_segment(file, is_own=True))
