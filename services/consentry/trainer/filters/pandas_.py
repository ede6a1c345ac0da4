"""The filter for pandas: data frames."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import Decider
from consentry.trainer.filters.batch_filter import BatchFilter


def filter(
    decider: Decider,
    data: pd.DataFrame,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
) -> pd.DataFrame:
    """Return a pandas frame's rows that may be used for `purpose`, with their index.

    All rows are counted in `tally`. Member ids in an object column count where they are texts, or
    all of them integers. pandas turns integers with a gap into floating point numbers, which are
    no ids: read them as Int64. Raises InvalidInput where a column is missing or there twice; the
    index is not a column.
    """
    batch_filter = BatchFilter(
        decider, data.columns, purpose=purpose, columns=columns, at_least=at_least, tally=tally
    )
    columns_to_read = {name: data[name] for name in batch_filter.names}
    return data[batch_filter.mask_of(columns_to_read)]
