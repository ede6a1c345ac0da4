"""Member events of a whole batch from bytes, column by column: as strict as events.py, many times
cheaper.

What it recognises, it has proven to be the canonical bytes of a well-formed event whose member is
the record key: the fixed-width head by looking at all rows at once, the middle (purpose,
jurisdiction, notice, source …) because the same bytes were read strictly before, the end because it
must be the key. Everything else it leaves to `read_event`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from consentry.domain.errors import UndecodableEvent
from consentry.domain.events import AGE_BAND_KINDS, CHOICE_KINDS, FactKind
from consentry.domain.values import AgeBand, Choice
from consentry.wire.catalog import Catalog
from consentry.wire.events import EVENT_BYTES_MAX, read_event
from consentry.wire.frames import FRAME_LENGTH
from consentry.wire.records import fact_body
from consentry.wire.schemas import schema

_MIDDLES_MAX: Final = 8192
_KEY_MAX: Final = 63
"""Up to 63 bytes the length of a string is one byte; a key of 64 takes the strict path."""
_ID_CHARACTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_-"
_FIXED_BODY: Final = 25
"""Bytes of a fact body before `observed_version`: kind, two instants, tag."""
_LENGTH_BYTES: Final = [bytes((size << 1,)) for size in range(_KEY_MAX + 1)]
"""By size, the length byte that Avro writes before a string."""
_new_tuple: Final = tuple.__new__


class FastFact(NamedTuple):
    """What the batch knows of one event: the bytes of its fact, its tag, kind, and when it was
    recorded (µs).
    """

    body: bytes
    tag: bytes
    kind: int
    recorded_at: int


class _Shape(NamedTuple):
    """Where the fixed-width head of a record type lies, and which kind of fact each symbol
    makes.
    """

    name: str
    enums: tuple[int, ...]
    instants_at: int
    kinds: npt.NDArray[np.uint8]
    symbols: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.instants_at + 16


def _kinds(symbols: Sequence[FactKind]) -> npt.NDArray[np.uint8]:
    return np.array([kind << 1 for kind in symbols], dtype=np.uint8)


def _symbols(name: str, field: int) -> list[str]:
    return list(schema(name).parsed["fields"][field]["type"]["symbols"])


_ID_END: Final = FRAME_LENGTH + 16

_SHAPES: Final = (
    _Shape(
        "ConsentChanged",
        enums=(_ID_END, _ID_END + 1),
        instants_at=_ID_END + 2,
        kinds=_kinds([CHOICE_KINDS[Choice(symbol)] for symbol in _symbols("ConsentChanged", 1)]),
        symbols=(3, 4),
    ),
    _Shape(
        "MemberRelocated",
        enums=(_ID_END,),
        instants_at=_ID_END + 1,
        kinds=_kinds(
            [AGE_BAND_KINDS[AgeBand(symbol)] for symbol in _symbols("MemberRelocated", 1)]
        ),
        symbols=(3,),
    ),
    _Shape(
        "MemberErased", enums=(), instants_at=_ID_END, kinds=_kinds([FactKind.ERASED]), symbols=()
    ),
)


class EventColumns:
    """Reads batches of member events; keeps the middles it has seen, so that each is decoded
    once.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._middles: dict[str, dict[bytes, bytes]] = {shape.name: {} for shape in _SHAPES}

    def read(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None]
    ) -> list[FastFact | None]:
        """One FastFact for each event that is recognised, None for each that the strict path has to
        judge.
        """
        found: list[FastFact | None] = [None] * len(values)
        rows = [value or b"" for value in values]
        rows_keys = [key or b"" for key in keys]
        sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        key_sizes = np.fromiter(map(len, rows_keys), dtype=np.int64, count=len(rows))
        fits = (sizes <= EVENT_BYTES_MAX) & (key_sizes > 0) & (key_sizes <= _KEY_MAX)
        heads = [row[:FRAME_LENGTH] for row in rows]
        shapes = {
            b"\x00" + schema_id.to_bytes(4, "big"): shape
            for shape in _SHAPES
            for schema_id in self._catalog.ids_of(shape.name)
        }
        for head in set(heads) & shapes.keys():
            shape = shapes[head]
            places = [place for place, this in enumerate(heads) if this == head]
            asked = np.array(places, dtype=np.int64)
            asked = asked[fits[asked] & (sizes[asked] > shape.length + key_sizes[asked])]
            if len(asked):
                self._read_group(shape, asked.tolist(), rows, rows_keys, found)
        return found

    def _read_group(
        self,
        shape: _Shape,
        places: list[int],
        values: Sequence[bytes],
        keys: Sequence[bytes],
        found: list[FastFact | None],
    ) -> None:
        """Read the rows at `places`, all of this shape's frame and long enough for its head, a
        length and the key.
        """
        length = shape.length
        rows = [values[place] for place in places]
        rows_keys = [keys[place] for place in places]
        table = np.frombuffer(b"".join([row[:length] for row in rows]), dtype=np.uint8).reshape(
            len(rows), length
        )
        good = _heads_are_canonical(table, shape)
        good &= _keys_are_ids(rows_keys)
        tails = [_LENGTH_BYTES[len(key)] + key for key in rows_keys]
        good &= np.fromiter(map(bytes.endswith, rows, tails), dtype=np.bool_, count=len(rows))
        middles = [row[length : -len(tail)] for row, tail in zip(rows, tails, strict=True)]
        bodies = _fixed_bodies(table, shape)
        columns = zip(
            places,
            good.tolist(),
            middles,
            map(self._middles[shape.name].get, middles),
            bodies.view("V25")[:, 0].tolist(),
            np.ascontiguousarray(bodies[:, 17:]).view("V8")[:, 0].tolist(),
            (bodies[:, 0] >> 1).tolist(),
            _instant(table, shape.instants_at + 8).tolist(),
            strict=True,
        )
        for place, is_good, middle, known, fixed, tag, kind, recorded_at in columns:
            if not is_good:
                continue
            end = known or self._read_middle(shape.name, middle, values[place], keys[place])
            if end is not None:
                # The constructor of a NamedTuple is a Python function; this is what it does.
                found[place] = _new_tuple(FastFact, (fixed + end, tag, kind, recorded_at))

    def _read_middle(self, name: str, middle: bytes, value: bytes, key: bytes) -> bytes | None:
        """The variable end of the fact's bytes, read strictly as these bytes are new;

        None where they are bad.
        """
        try:
            event = read_event(value, key, self._catalog)
        except UndecodableEvent:
            return None
        known = fact_body(event.fact())[_FIXED_BODY:]
        middles = self._middles[name]
        if len(middles) >= _MIDDLES_MAX:
            middles.clear()
        middles[middle] = known
        return known


def _heads_are_canonical(table: npt.NDArray[np.uint8], shape: _Shape) -> npt.NDArray[np.bool_]:
    """Per row: enums in range and even, both instants exactly eight bytes, positive, and not
    over-long.
    """
    good = np.ones(len(table), dtype=np.bool_)
    for column, count in zip(shape.enums, shape.symbols, strict=True):
        good &= (table[:, column] & 1 == 0) & (table[:, column] < count * 2)
    for start in (shape.instants_at, shape.instants_at + 8):
        eight = table[:, start : start + 8]
        good &= (eight[:, :7] >= 0x80).all(axis=1)
        good &= (eight[:, 7] < 0x80) & (eight[:, 7] > 0)
        good &= eight[:, 0] & 1 == 0
    return good


def _keys_are_ids(keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """Per row: whether the key has only the characters of a member id.

    One look at all of them usually suffices.
    """
    if not b"".join(keys).translate(None, _ID_CHARACTERS):
        return np.ones(len(keys), dtype=np.bool_)
    return np.array([not key.translate(None, _ID_CHARACTERS) for key in keys], dtype=np.bool_)


def _instant(table: npt.NDArray[np.uint8], start: int) -> npt.NDArray[np.int64]:
    """The value of an eight-byte zig-zag varint per row; meaningful where the head is canonical."""
    zigzag = np.zeros(len(table), dtype=np.int64)
    for byte in range(8):
        zigzag |= (table[:, start + byte].astype(np.int64) & 0x7F) << (7 * byte)
    return zigzag >> 1


def _fixed_bodies(table: npt.NDArray[np.uint8], shape: _Shape) -> npt.NDArray[np.uint8]:
    """The first 25 bytes of every row's fact: kind, both instants, tag."""
    bodies = np.empty((len(table), _FIXED_BODY), dtype=np.uint8)
    if shape.enums:
        # A row whose enum is out of range is refused elsewhere; here it must only not reach beyond
        # the list.
        bodies[:, 0] = shape.kinds[np.minimum(table[:, shape.enums[0]] >> 1, len(shape.kinds) - 1)]
    else:
        bodies[:, 0] = shape.kinds[0]
    bodies[:, 1:17] = table[:, shape.instants_at : shape.instants_at + 16]
    bodies[:, 17:25] = (
        table[:, FRAME_LENGTH : FRAME_LENGTH + 8] ^ table[:, FRAME_LENGTH + 8 : FRAME_LENGTH + 16]
    )
    return bodies
