"""The columns that the trainer decides by, and the one rule for their ids, texts and times.

Tables of Arrow, frames, batches of a loader and rows of JSON are all read by what is here, so that
a row gets the same answer whichever library holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import pyarrow as pa

from consentry.domain.errors import InvalidInput
from consentry.domain.values import MEMBER_ID_BYTES_MAX, Micros

NO_ONE_TYPE: Final = (
    pa.ArrowInvalid,
    pa.ArrowTypeError,
    pa.ArrowNotImplementedError,
    OverflowError,
    UnicodeError,
)
"""The errors that Arrow raises of values for which it finds no common type: which of these depends
on the values and their order.
"""
_WHOLE_NUMBER: Final = int | np.integer
_INTEGERS_OF_64_BITS: Final = range(-(1 << 63), 1 << 64)
_LONGER_THAN_ANY_ID: Final = 10**MEMBER_ID_BYTES_MAX
_NO_TEXT: Final = "?"
"""A jurisdiction and a category that no control names."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_JSON_MICROS_MAX: Final = 1 << 62
_NAMES_SHOWN_MAX: Final = 100


# ---- finding the columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The names of the columns that the trainer decides a table by; None where it has none."""

    member: str = "member_id"
    jurisdiction: str | None = None
    category: str | None = None
    collected: str | None = None

    @property
    def names(self) -> list[str]:
        """The columns to read for deciding a table, each once, the member's first."""
        names = (self.member, self.jurisdiction, self.category, self.collected)
        return list(dict.fromkeys(name for name in names if name is not None))


CONVENTIONAL: Final = Columns(
    jurisdiction="jurisdiction", category="category", collected="collected_at"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSpec:
    """The columns to decide by that a command or a request names.

    None: the conventional one, if it is there.
    """

    member: str = CONVENTIONAL.member
    jurisdiction: str | None = None
    category: str | None = None
    collected: str | None = None

    def find_among(self, names: Sequence[str]) -> Columns:
        """Return the columns to decide a table by that has these names.

        Raises InvalidInput where one is missing or there twice, and where a name differs from one
        that is looked for only in case or spaces: without that column the answer may be laxer.
        """
        wanted = Columns(
            member=self.member,
            jurisdiction=self.jurisdiction or CONVENTIONAL.jurisdiction,
            category=self.category or CONVENTIONAL.category,
            collected=self.collected or CONVENTIONAL.collected,
        )
        _refuse_lookalikes(names, wanted.names, holder="The table")
        columns = Columns(
            member=self.member,
            jurisdiction=self.jurisdiction or _if_there(CONVENTIONAL.jurisdiction, names),
            category=self.category or _if_there(CONVENTIONAL.category, names),
            collected=self.collected or _if_there(CONVENTIONAL.collected, names),
        )
        check_columns(names, columns)
        return columns


def find_columns(
    names: Sequence[str], columns: Columns | None, *, holder: str = "The table"
) -> Columns:
    """Return the columns to decide a table by: those a caller named, or conventional ones.

    `names` are all columns of the table; `holder` begins the sentence of an error. Raises
    InvalidInput where `columns` is no Columns, where one of them is missing or there twice, and
    where none are given and a name is conventional but for its case or spaces: other engines take
    it for ours, and its pauses count.
    """
    if columns is None:
        # Beside the very name that is looked for, another spelling of it is a column of its own.
        others = [name for name in CONVENTIONAL.names if name not in names]
        _refuse_lookalikes(names, others, holder=holder)
        columns = Columns(
            jurisdiction=_if_there(CONVENTIONAL.jurisdiction, names),
            category=_if_there(CONVENTIONAL.category, names),
            collected=_if_there(CONVENTIONAL.collected, names),
        )
    if not isinstance(columns, Columns):
        raise InvalidInput(
            f"columns is a {type(columns).__name__}, which does not say which column is which.",
            code="input.columns",
            fix='give consentry.trainer.Columns(member="…", jurisdiction="…"), or rename the '
            "columns and give none",
        )
    check_columns(names, columns, holder=holder)
    return columns


def check_columns(names: Sequence[str], columns: Columns, *, holder: str = "The table") -> None:
    """Raise InvalidInput unless each column to decide a table by is there exactly once."""
    for name in columns.names:
        count = names.count(name)
        if count == 0:
            shown = ", ".join(map(repr, names[:_NAMES_SHOWN_MAX]))
            raise InvalidInput(
                f"{holder} has no column {name!r}; it has {shown}.",
                code="input.column",
                fix="name the right columns; member ids are needed, the others are optional",
            )
        if count > 1:
            raise InvalidInput(
                f"{holder} has {count} columns named {name!r}, so nobody can say which one counts.",
                code="input.column",
                fix="rename all but one of them",
            )


def _if_there(name: str | None, names: Sequence[str]) -> str | None:
    return name if name in names else None


def _refuse_lookalikes(names: Sequence[str], wanted: Sequence[str], *, holder: str) -> None:
    wanted_by_spelling = {_spelling(name): name for name in wanted}
    for name in names:
        meant = wanted_by_spelling.get(_spelling(name))
        if meant is not None and name not in wanted:
            raise InvalidInput(
                f"{holder} has a column {name!r}, which differs from {meant!r} only in case or "
                "spaces.",
                code="input.column",
                fix=f"name the column {name!r} for what it holds, or rename it; keep only one of "
                "such names",
            )


def _spelling(name: str) -> str:
    return name.strip().casefold()


# ---- one value


def member_id(value: Any) -> str | None:
    """Return the text by which a value in a trainer's table names a member; None for nobody.

    A text names the member itself, a whole number the member with its decimal text. True, 1.0,
    numpy.True_, bytes, and a text with half of a surrogate pair, which cannot be written as UTF-8,
    name nobody. Whether a text is a well-formed id is decided later, for whole columns at once.
    """
    if isinstance(value, str):
        return value if value.isascii() or _is_writable(value) else None
    if not isinstance(value, _WHOLE_NUMBER) or isinstance(value, bool):
        return None
    number = int(value)
    return str(number) if abs(number) < _LONGER_THAN_ANY_ID else None


def text_of(value: Any) -> str | None:
    """Return a jurisdiction or category in a trainer's table as text; None if unsaid.

    Whatever is no text becomes one that is no jurisdiction and that no control names, never None:
    a row that says nonsense is not one that says nothing.
    """
    if value is None:
        return None
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if text.isascii() else text.encode(errors="replace").decode()


def json_member_id(value: Any) -> str | None:
    """Return the member that a JSON value of a row to decide names, as `member_id`.

    No number beyond 64 bits names one. Many writers of JSON round such numbers to another
    member's.
    """
    if isinstance(value, int) and value not in _INTEGERS_OF_64_BITS:
        return None
    return member_id(value)


def json_text_of(value: Any) -> str | None:
    """Return a JSON jurisdiction or category of a row to decide as text, as `text_of`.

    Values that are neither text nor number are not written out: they may be deep or long.
    """
    is_scalar = value is None or isinstance(value, str)
    return text_of(value) if is_scalar else json_member_id(value) or _NO_TEXT


def json_micros_of(value: Any) -> Micros | None:
    """Return a JSON time of collection of a row to decide in microseconds.

    It is written in ISO 8601 or in microseconds. Without a zone it is UTC. Raises InvalidInput
    where it is no time: the side of a cut-off that the row is on would be a guess.
    """
    if value is None:
        return None
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if is_number and abs(value) < _JSON_MICROS_MAX:
        return Micros(value)
    try:
        moment = datetime.fromisoformat(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return Micros((moment - _EPOCH) // timedelta(microseconds=1))
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(
            "A time of collection is neither a date and time in ISO 8601 nor a number of "
            "microseconds.",
            code="input.collected",
            fix="write 2024-10-11T09:00:00Z, or microseconds since 1970-01-01 UTC",
        ) from None


def _is_writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- a column of Python values


def member_id_column(values: Sequence[Any], *, numbers_beside_others: bool) -> pa.Array:
    """Return mixed values as the id column of a table to decide; null names nobody.

    Without `numbers_beside_others` numbers are ids only where all values are numbers or None:
    between texts they are somebody's mistake, such as two columns mixed up. With it each row is
    read by itself.
    """
    are_numbers_ids = numbers_beside_others or all(map(_is_number_or_gap, values))
    read = member_id if are_numbers_ids else _text_member_id
    return pa.array(list(map(read, values)), pa.large_string())


def _is_number_or_gap(value: Any) -> bool:
    return value is None or (isinstance(value, _WHOLE_NUMBER) and not isinstance(value, bool))


def _text_member_id(value: Any) -> str | None:
    return member_id(value) if isinstance(value, str) else None


def texts_column(values: Sequence[Any]) -> pa.Array:
    """Return mixed values as a table's column of jurisdictions or categories to decide by.

    They are read by `text_of`.
    """
    return pa.array(list(map(text_of, values)), pa.large_string())


def arrow_reads_exactly(values: Any) -> bool:
    """Return True where Arrow reads a trainer's column of ids as `member_id` does.

    It does not where Python objects are mixed: it makes a 1 of numpy.True_, or of 1.5 in half
    precision.
    """
    dtype = getattr(values, "dtype", None)
    categories = getattr(dtype, "categories", None)
    if categories is not None:
        return arrow_reads_exactly(categories)
    if dtype is not None and str(dtype) != "object":
        return True
    return all(map(_arrow_reads_type, set(map(type, values))))


def _arrow_reads_type(kind: type) -> bool:
    is_gap = kind.__name__ in ("NoneType", "NAType", "NaTType")
    return is_gap or (issubclass(kind, str | float | _WHOLE_NUMBER) and kind is not bool)


# ---- a column of Arrow


def is_text_type(kind: pa.DataType) -> bool:
    """Return True for each of Arrow's types of texts, in a table to decide."""
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(is_string or pa.types.is_string_view(kind))


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values in a table to decide.

    Of a dictionary it is the type of what it holds.
    """
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def written_out(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a dictionary column of a table to decide as its values, one a row.

    Any other column stays as it is. Arrow itself does not do so for string views: these become
    strings.
    """
    if not pa.types.is_dictionary(column.type):
        return column
    kind = column.type.value_type
    kind = pa.string() if pa.types.is_string_view(kind) else kind
    chunks = [chunk.dictionary.cast(kind).take(chunk.indices) for chunk in column.chunks]
    return pa.chunked_array(chunks, kind)


def member_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the ids of a table to decide, no integers, as texts; null where none is text.

    A column of texts, or a dictionary of them, is given back as it is. Numbers of a union among
    texts are no ids.
    """
    if is_text_type(value_type(column.type)):
        return column
    ids = list(map(_text_member_id, column.to_pylist()))
    return pa.chunked_array([pa.array(ids, pa.string())])


def texts_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a table's jurisdictions or categories to decide by as texts, by `text_of`.

    A column of texts, or a dictionary of them, is given back as it is.
    """
    if is_text_type(value_type(column.type)):
        return column
    texts = list(map(text_of, column.to_pylist()))
    return pa.chunked_array([pa.array(texts, pa.string())])


def plain_texts_of(column: pa.ChunkedArray) -> pa.Array:
    """Return a column of a table to decide as one array of strings.

    Integers become their decimal texts, all else is as in `texts_of`.
    """
    column = written_out(column)
    if not pa.types.is_integer(column.type):
        column = texts_of(column)
    return column.cast(pa.string()).combine_chunks()


def micros_of(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return a table's times of collection to decide by, in microseconds, as int64.

    They count since 1970-01-01 UTC. Dates, timestamps of any unit and whole microseconds are
    times. Raises InvalidInput where it holds anything else, or a time out of all bounds; `name` is
    for that error.
    """
    try:
        times = written_out(column)
        kind = times.type
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            # Only nanoseconds lose something, which no cut-off can tell; a time that wraps round
            # would be another one.
            times = times.cast(pa.timestamp("us"), safe=getattr(kind, "unit", "") != "ns")
        elif not pa.types.is_integer(kind) and not pa.types.is_null(kind):
            raise _no_times(name, column.type)
        return times.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:  # no times, or out of bounds
        raise _no_times(name, column.type) from error


def _no_times(name: str, kind: pa.DataType) -> InvalidInput:
    return InvalidInput(
        f"The column {name!r} holds {kind}, which is not a time of collection, or one out of all "
        "bounds.",
        code="input.column",
        fix="give it a date or timestamp type, or microseconds since 1970-01-01 UTC",
    )
