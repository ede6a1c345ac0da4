"""The part that all libraries' filters share: deciding a batch, and counting its reasons."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import (
    NO_ONE_TYPE,
    Columns,
    arrow_reads_exactly,
    find_columns,
    member_id_column,
    texts_column,
)
from consentry.trainer.deciding.decider import Decider


class BatchFilter:
    """The shared part of all filters: decides a data set batch by batch, for one purpose.

    It may do so on several threads. `names` are the data set's columns. `tally` counts the rows by
    reason. Raises InvalidInput where a column that decides is not among the names, or more than
    once.
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
        if tally is None:
            tally = Counter()
        self._tally = tally
        self._counting = threading.Lock()
        self.columns = find_columns(list(map(_label, names)), columns)

    @property
    def names(self) -> list[str]:
        """The columns that decide in the filtered batches, each once."""
        return self.columns.names

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Return True for each row of a filtered batch that may be used; count every row.

        `table` has the columns of `names`.
        """
        decisions = self._decider.decide_table(
            table, purpose=self._purpose, columns=self.columns, at_least=self._at_least
        )
        with self._counting:
            self._tally.update(decisions.counts())
        return decisions.mask

    def mask_of(self, values: Mapping[str, Sequence[Any]]) -> npt.NDArray[np.bool_]:
        """Return the filter's mask of rows whose values are Python objects, by column."""
        arrays = {name: self.column(name, values[name]) for name in self.names}
        return self.mask(pa.table(arrays))

    def column(self, name: str, values: Sequence[Any]) -> pa.Array:
        """Return Python values as an Arrow column to filter by, also where types are mixed.

        Then only texts are ids. Raises InvalidInput where times of collection are of several types.
        """
        is_member = name == self.columns.member
        if is_member and not arrow_reads_exactly(values):
            return _ids(values)
        try:
            array = pa.array(values, from_pandas=True)
            # Arrow takes texts among bytes for bytes.
            if not pa.types.is_binary(array.type):
                return array
        except NO_ONE_TYPE as error:
            if name == self.columns.collected:
                raise InvalidInput(
                    f"The column {name!r} holds values of several types, which are no times of "
                    "collection.",
                    code="input.column",
                    fix="give it a date or timestamp type, or microseconds since 1970-01-01 UTC",
                ) from error
        if is_member:
            return _ids(values)
        return texts_column(values)


def _label(name: Any) -> str:
    # A label that is not a text is not the column of that text.
    if isinstance(name, str):
        return name
    return f"{type(name).__name__} {name!r}"


def _ids(values: Sequence[Any]) -> pa.Array:
    return member_id_column(values, numbers_beside_others=False)
