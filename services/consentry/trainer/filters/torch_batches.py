"""Filter examples and batches as PyTorch holds them: decide them, and take rows out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
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
    """Decides PyTorch examples and batches for one purpose, for the filter.

    The columns that decide are called the keys of examples. `tally` counts rows by reason. Raises
    Unavailable where the answer is STALE.
    """

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
        self._names: dict[Any, None] = {}  # the fields that examples had up to now

    def keys(self, values: Mapping[str, Sequence[Any]]) -> pa.Table:
        """Return the keys that the filter decides Python rows by, from columns of objects.

        The id of a row never depends on another row.
        """
        batch_filter = self._batch_filter(values)
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
        """Return the keys that PyTorch examples are decided by; a lacking field is null.

        Raises InvalidInput where an example is no mapping.
        """
        for example in examples:
            if not isinstance(example, Mapping):
                raise InvalidInput(
                    f"An example is a {type(example).__name__}, which does not say whose it is.",
                    code="input.example",
                    fix="have the data set give dicts with the member id among their fields, or "
                    "Arrow tables",
                )
        self._names |= dict.fromkeys(name for example in examples for name in example)
        values: dict[str, list[Any]] = {}
        for name in self._batch_filter(self._names).names:
            values[name] = [example.get(name) for example in examples]
        return self.keys(values)

    def keys_of_batch(self, batch: Any) -> pa.Table:
        """Return the keys that a PyTorch batch is decided by.

        Raises InvalidInput where it has no entry for each row.
        """
        if isinstance(batch, pa.Table | pa.RecordBatch):
            return self.keys_of_table(batch)
        if not isinstance(batch, Mapping):
            raise InvalidInput(
                f"A batch is a {type(batch).__name__}, which does not say whose its rows are.",
                code="input.batch",
                fix="give batches that are dicts, with the member ids among their fields",
            )
        names = self._batch_filter(batch).names
        columns = {name: _listed(batch[name]) for name in names}
        if len(set(map(len, columns.values()))) != 1:
            raise InvalidInput(
                f"The fields {', '.join(map(repr, names))} of a batch are not equally long.",
                code="input.batch",
                fix="have each of them hold one entry a row",
            )
        return self.keys(columns)

    def keys_of_table(self, table: Any) -> pa.Table:
        """Return the keys that the filter decides an Arrow table or batch by."""
        whole = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
        return whole.select(self._batch_filter(whole.column_names).names)

    def _batch_filter(self, names: Iterable[Any]) -> BatchFilter:
        return BatchFilter(
            self._decider,
            names,
            purpose=self._purpose,
            columns=self._columns,
            at_least=self._at_least,
            tally=self.tally,
        )

    def reasons(self, keys: pa.Table) -> npt.NDArray[np.int8]:
        """Return the index in REASONS of each row's reason in the filter. Nothing is counted."""
        columns = self._batch_filter(keys.column_names).columns
        decisions = self._decider.decide_table(
            keys, purpose=self._purpose, columns=columns, at_least=self._at_least
        )
        if (decisions.reasons == _STALE).any():
            self.tally[Reason.STALE] += keys.num_rows
            raise stale(self._decider)
        return decisions.reasons

    def mask(self, keys: pa.Table) -> npt.NDArray[np.bool_]:
        """Return True for each row that the filter lets through, and count every row."""
        decisions = Decisions(self.reasons(keys))
        self.tally.update(decisions.counts())
        return decisions.mask


def _listed(column: Any) -> Sequence[Any]:
    if isinstance(column, torch.Tensor | np.ndarray):
        values: list[Any] = column.tolist() if column.ndim else [column.item()]
        return values
    return list(column)


def _plain(value: Any) -> Any:
    """Return a number or text as a Python object; not-a-number is a gap."""
    if isinstance(value, torch.Tensor | np.generic | np.ndarray) and value.ndim == 0:
        if isinstance(value, np.datetime64):
            return value
        value = value.item()
    return None if isinstance(value, float) and value != value else value


# ---- taking rows out of batches


def filter_batch(batch: Any, mask: npt.NDArray[np.bool_], *, is_first: bool) -> Any:
    """Return the rows of a PyTorch batch where the filter's mask is True.

    None where there is none. Rows are taken out of the first batch in any case, so that a batch
    from which none can be taken is refused at once, and not when somebody opts out.
    """
    allowed = take_rows(batch, mask) if is_first or not mask.all() else batch
    return allowed if mask.any() else None


def take_rows(batch: Any, mask: npt.NDArray[np.bool_]) -> Any:
    """Return the rows of a PyTorch batch where the filter's mask is True, out of each field.

    Raises InvalidInput where a field has no entry for each row.
    """
    if isinstance(batch, pa.Table | pa.RecordBatch):
        return batch.filter(pa.array(mask))
    if isinstance(batch, Mapping):
        return {name: take_rows(field, mask) for name, field in batch.items()}
    if isinstance(batch, torch.Tensor) and _has_rows(batch, mask):
        return batch[torch.from_numpy(mask).to(batch.device)]
    if isinstance(batch, np.ndarray) and _has_rows(batch, mask):
        return batch[mask]
    if isinstance(batch, list | tuple):
        are_fields = bool(batch) and all(_has_rows(field, mask) for field in batch)
        if len(batch) == len(mask) and not are_fields:
            return list(compress(batch, mask.tolist()))
        if are_fields and len(batch) != len(mask):
            return [take_rows(field, mask) for field in batch]
    raise InvalidInput(
        f"Rows cannot be taken out of a {type(batch).__name__} in a batch of {len(mask)}, as none "
        "of its entries belongs to one row.",
        code="input.batch",
        fix="have each field of a batch hold one entry a row: a tensor, an array or a list",
    )


def _has_rows(field: Any, mask: npt.NDArray[np.bool_]) -> bool:
    if isinstance(field, torch.Tensor | np.ndarray):
        return field.ndim > 0 and len(field) == len(mask)
    return isinstance(field, list | tuple) and len(field) == len(mask)
