"""An index in memory of very many members' records, for looking up millions of rows at once.

`keys` holds member ids column-wise and hashes them. `segment` is an immutable part with its index,
`segment_file` is its layout in a file, and `segment_writer` builds one from batches. `index` is the
whole: a few segments and the changes since.
"""

from consentry.record_index.index import FoundRecords, IndexRegression, RecordIndex
from consentry.record_index.keys import IntegerKeys, Keys, TextKeys, in_hash_order
from consentry.record_index.segment import Segment
from consentry.record_index.segment_writer import SegmentWriter

__all__ = [
    "FoundRecords",
    "IndexRegression",
    "IntegerKeys",
    "Keys",
    "RecordIndex",
    "Segment",
    "SegmentWriter",
    "TextKeys",
    "in_hash_order",
]
