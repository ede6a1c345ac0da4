"""The records of very many members in memory, found for millions of rows at once.

`keys` holds member ids column-wise and hashes them, `segment` is an immutable part with its index, `files` how it lies
in a file, `writing` makes one of members who come by and by, `store` is the whole: a few segments and what has changed
since.
"""

from consentry.wire.record_store.keys import IntegerKeys, Keys, TextKeys, in_hash_order
from consentry.wire.record_store.segment import Segment
from consentry.wire.record_store.store import Found, RecordStore, Regression
from consentry.wire.record_store.writing import SegmentWriter

__all__ = [
    "Found",
    "IntegerKeys",
    "Keys",
    "RecordStore",
    "Regression",
    "Segment",
    "SegmentWriter",
    "TextKeys",
    "in_hash_order",
]
