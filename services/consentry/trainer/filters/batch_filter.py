"""What the filters of all libraries share: which columns are asked about, what each batch gets, and
what is counted.
"""

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
        self.columns = find_columns(told, columns)

    @property
    def names(self) -> list[str]:
        """The columns that are asked about, each once."""
        return self.columns.names

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
        if is_member and not arrow_reads_exactly(values):
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
        return _ids(values) if is_member else texts_column(values)


def _ids(values: Sequence[Any]) -> pa.Array:
    return member_id_column(values, numbers_beside_others=False)
