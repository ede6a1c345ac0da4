"""Batches of every kind that a run filters: seen as an Arrow table, and cut down to the rows that
may be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import compress
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consentry.domain.errors import InvalidInput
from consentry.trainer.deciding.decide_table import Columns, as_columns
from consentry.trainer.filters.batch_filter import NO_ONE_TYPE, are_plain, as_id

_CONVENTIONAL: Final = Columns(
    jurisdiction="jurisdiction", category="category", collected="collected_at"
)
_Mask = npt.NDArray[np.bool_]


class RunBatch(NamedTuple):
    """A batch of rows: its decisive columns, their names, and what it is with some of its rows."""

    table: pa.Table
    columns: Columns
    kept: Callable[[_Mask], Any]


def is_batch(given: Any) -> bool:
    """Whether this is one batch, rather than something that gives batches."""
    return (
        isinstance(given, pa.Table | pa.RecordBatch | Mapping)
        or _is_polars(given)
        or _is_pandas(given)
    )


def batches(given: Any) -> Iterable[Any]:
    """The batches that something gives, such as a loader, an Arrow data set or scanner.

    Raises InvalidInput.
    """
    # An Arrow data set gives batches too, but is no iterable; a lazy Polars frame is neither.
    found = (
        given.to_batches()
        if hasattr(given, "to_batches") and not hasattr(given, "__iter__")
        else given
    )
    if isinstance(found, Iterable) and not isinstance(found, str | bytes):
        return found
    raise InvalidInput(
        f"A {type(given).__name__} is neither a batch of rows nor something that gives such.",
        code="input.batch",
        fix="give an Arrow table, a Polars or pandas frame, a mapping of columns, or an iterable "
        "of these",
    )


def batch_of(given: Any, columns: Columns | None) -> RunBatch:
    """A batch as something to be judged. Raises InvalidInput where it is none, or lacks a
    column.
    """
    if isinstance(given, pa.Table | pa.RecordBatch):
        named = _named(given.schema.names, columns)
        chosen = {name: given.column(name) for name in _names(named)}
        return RunBatch(pa.table(chosen), named, lambda mask: given.filter(pa.array(mask)))
    if _is_polars(given):
        named = _named(given.columns, columns)
        return RunBatch(_of_polars(given, named), named, given.filter)
    if _is_pandas(given):
        named = _named([str(name) for name in given.columns], columns)
        return RunBatch(_table(given, named), named, lambda mask: given[mask])
    if isinstance(given, Mapping):
        return _mapping(given, columns)
    raise InvalidInput(
        f"A {type(given).__name__} is no batch of rows.",
        code="input.batch",
        fix="give Arrow tables, Polars or pandas frames, or mappings of columns",
    )


def _mapping(given: Mapping[str, Any], columns: Columns | None) -> RunBatch:
    """A batch as loaders make it: a list, array or tensor for each column, all of one length."""
    named = _named(list(given), columns)
    if texts := [name for name, values in given.items() if isinstance(values, str | bytes)]:
        raise InvalidInput(
            f"The column {texts[0]!r} of a batch is one text: a mapping is a batch of columns, "
            "not one row.",
            code="input.batch",
            fix="give a list of values for each column, or Arrow, Polars or pandas batches",
        )
    lengths = {
        name: len(values) if hasattr(values, "__len__") else None for name, values in given.items()
    }
    if None in lengths.values() or len(set(lengths.values())) > 1:
        raise InvalidInput(
            f"The columns of a batch are not of one length: {lengths}.",
            code="input.batch",
            fix="give each column one value for each row; leave out what is not of rows",
        )
    return RunBatch(
        _table(given, named),
        named,
        lambda mask: {name: _kept(values, mask) for name, values in given.items()},
    )


def _table(given: Any, columns: Columns) -> pa.Table:
    return pa.table(
        {name: _array(given[name], is_member=name == columns.member) for name in _names(columns)}
    )


def _of_polars(given: Any, columns: Columns) -> pa.Table:
    from consentry.trainer.filters.polars_ import arrow_of  # noqa: PLC0415 - Polars is there

    def values(name: str) -> Any:
        return arrow_of(
            given[name], lambda listed: _array(listed, is_member=name == columns.member)
        )

    return pa.table({name: values(name) for name in _names(columns)})


def _array(values: Any, *, is_member: bool) -> pa.Array | pa.ChunkedArray:
    """A column of any kind; what has no one type becomes texts, and null what is neither text nor
    whole number.
    """
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if _is_tensor(values):
        values = values.detach().cpu().numpy()
    if not is_member or are_plain(values):
        try:
            return pa.array(values)
        except NO_ONE_TYPE:
            pass  # they become texts, below
    return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return as_id(value)
    is_number = isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)
    return str(int(value)) if is_number else None


def _kept(values: Any, mask: _Mask) -> Any:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.filter(pa.array(mask))
    if isinstance(values, np.ndarray) or _is_tensor(values):
        return values[mask]
    found = compress(values, mask.tolist())
    return tuple(found) if isinstance(values, tuple) else list(found)


def _named(names: list[str], columns: Columns | None) -> Columns:
    """The columns told, or those of conventional names. Raises InvalidInput where one is
    missing.
    """
    if columns is None:
        here = {kind: name for kind, name in _kinds(_CONVENTIONAL).items() if name in names}
        columns = Columns(**{**here, "member": _CONVENTIONAL.member})
    columns = as_columns(columns)
    for name in _names(columns):
        if names.count(name) > 1:
            raise InvalidInput(
                f"The batch has {names.count(name)} columns named {name!r}, so it cannot be told "
                "which one counts.",
                code="input.column",
                fix="rename all but one of them",
            )
        if name not in names:
            raise InvalidInput(
                f"The batch has no column {name!r}; it has {', '.join(map(repr, names))}.",
                code="input.column",
                fix="name the right columns; member ids are needed, the others are optional",
            )
    return columns


def _kinds(columns: Columns) -> dict[str, str | None]:
    return {
        kind: getattr(columns, kind) for kind in ("member", "jurisdiction", "category", "collected")
    }


def _names(columns: Columns) -> list[str]:
    return list(dict.fromkeys(name for name in _kinds(columns).values() if name is not None))


def _is_polars(given: Any) -> bool:
    return _comes_from(given, "polars", "DataFrame")


def _is_pandas(given: Any) -> bool:
    return _comes_from(given, "pandas", "DataFrame")


def _is_tensor(given: Any) -> bool:
    return _comes_from(given, "torch", "Tensor")


def _comes_from(given: Any, package: str, name: str) -> bool:
    """Whether this is an object of that class; none is imported to find out."""
    return any(
        one.__name__ == name and one.__module__.split(".")[0] == package
        for one in type(given).__mro__
    )
