"""What the filters of all libraries share: which columns are asked about, what each batch gets, and
what is counted.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Reason
from consentry.trainer.deciding.decide_table import Columns, check_columns, columns_of
from consentry.trainer.deciding.decider import Decider

NO_ONE_TYPE: Final = (
    pa.ArrowInvalid,
    pa.ArrowTypeError,
    pa.ArrowNotImplementedError,
    OverflowError,
    UnicodeError,
)
"""What Arrow raises of values that it finds no one type for: which of these depends on the values
and their order.
"""
_WHOLE: Final = int | np.integer


class BatchFilter:
    """One question, asked of a data set batch by batch, maybe on several threads.

    `names` are the data set's columns. Raises InvalidInput where a column that is asked about is
    not among them, or more than once.
    """

    def __init__(
        self,
        decider: Decider,
        names: Iterable[Any],
        *,
        purpose: str,
        columns: Columns | None,
        at_least: str | None,
        tally: Counter[Reason] | None,
    ) -> None:
        self._decider = decider
        self._purpose = purpose
        self._at_least = at_least
        self._tally: Counter[Reason] = Counter() if tally is None else tally
        self._counting = threading.Lock()
        # A label that is no text is no column of that text.
        told = [
            name if isinstance(name, str) else f"{type(name).__name__} {name!r}" for name in names
        ]
        self.columns = _columns_among(told, columns)

    @property
    def names(self) -> list[str]:
        """The columns that are asked about, each once."""
        columns = self.columns
        every = (columns.member, columns.jurisdiction, columns.category, columns.collected)
        return list(dict.fromkeys(name for name in every if name is not None))

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """True for each row that may be used; `table` has the columns of `names`.

        Every row is counted.
        """
        decisions = self._decider.decide_table(
            table, purpose=self._purpose, columns=self.columns, at_least=self._at_least
        )
        with self._counting:
            self._tally.update(decisions.counts())
        return decisions.mask

    def mask_of(self, values: Mapping[str, Sequence[Any]]) -> npt.NDArray[np.bool_]:
        """As `mask`, of Python values by column."""
        return self.mask(pa.table({name: self.column(name, values[name]) for name in self.names}))

    def column(self, name: str, values: Sequence[Any]) -> pa.Array:
        """Python values as an Arrow column, also where they are of several types: then what is no
        text is no id.

        Raises InvalidInput where the times of collection are of several types.
        """
        is_member = name == self.columns.member
        if is_member and not are_plain(values):
            return _ids(values)
        try:
            found = pa.array(values, from_pandas=True)
            # Texts among bytes are taken for bytes.
            if not pa.types.is_binary(found.type):
                return found
        except NO_ONE_TYPE as error:
            if name == self.columns.collected:
                raise InvalidInput(
                    f"The column {name!r} holds values of several types, which are no times of "
                    "collection.",
                    code="input.column",
                    fix="give it a date or timestamp type, or microseconds since 1970-01-01 UTC",
                ) from error
        return (
            _ids(values)
            if is_member
            else pa.array([_as_text(value) for value in values], pa.large_string())
        )


def are_plain(values: Any) -> bool:
    """Whether Arrow reads a column of ids as Python does: it makes a 1 of numpy.True_, or of 1.5 in
    half precision.
    """
    dtype = getattr(values, "dtype", None)
    of_categories = getattr(dtype, "categories", None)
    if of_categories is not None:
        return are_plain(of_categories)
    return (dtype is not None and str(dtype) != "object") or all(
        map(_is_plain, set(map(type, values)))
    )


def _is_plain(kind: type) -> bool:
    is_gap = kind.__name__ in ("NoneType", "NAType", "NaTType")
    return is_gap or (issubclass(kind, str | float | _WHOLE) and kind is not bool)


def _columns_among(names: list[str], columns: Columns | None) -> Columns:
    # Only the names count here, whatever the library calls the types.
    stand_in = pa.schema([pa.field(name, pa.null()) for name in names]).empty_table()
    columns = columns_of(stand_in, columns)
    check_columns(stand_in, columns)
    for name in (columns.member, columns.jurisdiction, columns.category, columns.collected):
        if name is not None and names.count(name) > 1:
            raise InvalidInput(
                f"The table has {names.count(name)} columns named {name!r}, so it cannot be told "
                "which one counts.",
                code="input.column",
                fix="rename all but one of them",
            )
    return columns


def _ids(values: Sequence[Any]) -> pa.Array:
    """Texts, or the decimal texts of whole numbers where there is nothing but these; null what is
    no id.
    """
    is_numbers = all(
        value is None or (isinstance(value, _WHOLE) and type(value) is not bool) for value in values
    )
    read = _decimal if is_numbers else as_id
    return pa.array([read(value) for value in values], pa.large_string())


def _decimal(value: Any) -> str | None:
    return None if value is None else str(int(value))


def as_id(value: Any) -> str | None:
    """A text that can be written as UTF-8; None for anything else."""
    return value if isinstance(value, str) and _is_writable(value) else None


def _as_text(value: Any) -> str | None:
    """No number is a jurisdiction or a category, so not-a-number, which stands for a gap, needs no
    care.
    """
    if value is None:
        return None
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if _is_writable(text) else text.encode(errors="replace").decode()


def _is_writable(text: str) -> bool:
    """Whether it can be written as UTF-8, which half of a surrogate pair cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
