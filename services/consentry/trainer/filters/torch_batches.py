"""What is asked of examples and batches as torch has them, and how rows are taken out of such a
batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns, member_id_column, texts_column
from consentry.trainer.deciding.decide_table import REASONS, Decisions
from consentry.trainer.deciding.decider import Decider
from consentry.trainer.filters.batch_filter import BatchFilter
from consentry.trainer.filters.portable import stale

_STALE: Final = REASONS.index(Reason.STALE)


class BatchQuestion:
    """What is asked of examples and batches. Raises Unavailable where the answer is STALE."""

    def __init__(
        self,
        decider: Decider,
        purpose: str,
        columns: Columns | None,
        at_least: str | None,
        tally: Counter[Reason],
    ) -> None:
        self._decider = decider
        self._purpose = purpose
        self._columns = columns
        self._at_least = at_least
        self.tally = tally
        self._names: dict[Any, None] = {}  # that examples had so far

    def keys(self, values: Mapping[str, Sequence[Any]]) -> pa.Table:
        """The columns that are asked about, of Python values by name.

        One row's id never depends on another row.
        """
        batch_filter = self._sieve(values)
        columns = batch_filter.columns
        arrays: dict[str, pa.Array] = {}
        for name in columns.names:
            plain = list(map(_plain, values[name]))
            if name == columns.collected:
                arrays[name] = batch_filter.column(name, plain)
            elif name == columns.member:
                arrays[name] = member_id_column(plain, numbers_beside_others=True)
            else:
                arrays[name] = texts_column(plain)
        return pa.table(arrays)

    def keys_of_examples(self, examples: Sequence[Any]) -> pa.Table:
        """The columns that are asked about, of examples; a name that one of them lacks is a null
        there.
        """
        for example in examples:
            if not isinstance(example, Mapping):
                raise InvalidInput(
                    f"An example is a {type(example).__name__}, which does not tell whose it is.",
                    code="input.example",
                    fix="have the data set give dicts with the member id among their fields, or "
                    "Arrow tables",
                )
        self._names |= dict.fromkeys(name for example in examples for name in example)
        asked = self._sieve(self._names).names
        return self.keys({name: [example.get(name) for example in examples] for name in asked})

    def keys_of_batch(self, batch: Any) -> pa.Table:
        """The columns that are asked about, of a batch."""
        if isinstance(batch, pa.Table | pa.RecordBatch):
            return self.keys_of_table(batch)
        if not isinstance(batch, Mapping):
            raise InvalidInput(
                f"A batch is a {type(batch).__name__}, which does not tell whose its rows are.",
                code="input.batch",
                fix="give batches that are dicts, with the member ids among their fields",
            )
        asked = self._sieve(batch).names
        columns = {name: _listed(batch[name]) for name in asked}
        if len({len(column) for column in columns.values()}) != 1:
            raise InvalidInput(
                f"The fields {', '.join(map(repr, asked))} of a batch are not equally long.",
                code="input.batch",
                fix="have each of them hold one entry a row",
            )
        return self.keys(columns)

    def keys_of_table(self, table: Any) -> pa.Table:
        """The columns that are asked about, of an Arrow table or batch."""
        whole = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
        return whole.select(self._sieve(whole.column_names).names)

    def _sieve(self, names: Iterable[Any]) -> BatchFilter:
        return BatchFilter(
            self._decider,
            names,
            purpose=self._purpose,
            columns=self._columns,
            at_least=self._at_least,
            tally=self.tally,
        )

    def reasons(self, keys: pa.Table) -> npt.NDArray[np.int8]:
        """A place in REASONS for each row. Not counted."""
        columns = self._sieve(keys.column_names).columns
        decisions = self._decider.decide_table(
            keys, purpose=self._purpose, columns=columns, at_least=self._at_least
        )
        if (decisions.reasons == _STALE).any():
            self.tally[Reason.STALE] += keys.num_rows
            raise stale(self._decider)
        return decisions.reasons

    def mask(self, keys: pa.Table) -> npt.NDArray[np.bool_]:
        """True for each row that may be used; each is counted."""
        decisions = Decisions(self.reasons(keys))
        self.tally.update(decisions.counts())
        return decisions.mask


def _listed(column: Any) -> Sequence[Any]:
    if isinstance(column, torch.Tensor | np.ndarray):
        found: list[Any] = column.tolist() if column.ndim else [column.item()]
        return found
    return list(column)


def _plain(value: Any) -> Any:
    """A number or text as Python has it; not-a-number is a gap."""
    if isinstance(value, torch.Tensor | np.generic | np.ndarray) and value.ndim == 0:
        if isinstance(value, np.datetime64):
            return value
        value = value.item()
    return None if isinstance(value, float) and value != value else value


# ---- taking rows out of batches


def left_of(batch: Any, mask: npt.NDArray[np.bool_], *, is_first: bool) -> Any:
    """What is left of a batch; None where nothing is.

    Of the first one rows are taken out in any case.

    So that a batch that this cannot be done with is refused at once, and not when somebody opts
    out.
    """
    left = taken(batch, mask) if is_first or not mask.all() else batch
    return left if mask.any() else None


def taken(batch: Any, mask: npt.NDArray[np.bool_]) -> Any:
    """The rows of a batch where the mask is True, out of each field."""
    if isinstance(batch, pa.Table | pa.RecordBatch):
        return batch.filter(pa.array(mask))
    if isinstance(batch, Mapping):
        return {name: taken(field, mask) for name, field in batch.items()}
    if isinstance(batch, torch.Tensor) and _has_rows(batch, mask):
        return batch[torch.from_numpy(mask).to(batch.device)]
    if isinstance(batch, np.ndarray) and _has_rows(batch, mask):
        return batch[mask]
    if isinstance(batch, list | tuple):
        fields = bool(batch) and all(_has_rows(field, mask) for field in batch)
        if len(batch) == len(mask) and not fields:
            return [entry for entry, allowed in zip(batch, mask.tolist(), strict=True) if allowed]
        if fields and len(batch) != len(mask):
            return [taken(field, mask) for field in batch]
    raise InvalidInput(
        f"Rows cannot be taken out of a {type(batch).__name__} in a batch of {len(mask)}, as none "
        "of its is one row's.",
        code="input.batch",
        fix="have each field of a batch hold one entry a row: a tensor, an array or a list",
    )


def _has_rows(field: Any, mask: npt.NDArray[np.bool_]) -> bool:
    if isinstance(field, torch.Tensor | np.ndarray):
        return field.ndim > 0 and len(field) == len(mask)
    return isinstance(field, list | tuple) and len(field) == len(mask)
