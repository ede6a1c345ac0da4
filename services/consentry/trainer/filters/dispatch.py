"""Choose the filter for a data set by its library, without importing any other library."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from typing import Any, Final

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import Decider

LIBRARIES: Final = {
    "pyarrow": ("arrow", ("Table", "RecordBatch", "RecordBatchReader", "Dataset", "Scanner")),
    "polars": ("polars_", ("DataFrame", "LazyFrame")),
    "pandas": ("pandas_", ("DataFrame",)),
    "duckdb": ("duckdb_", ("DuckDBPyRelation",)),
    "datasets": (
        "huggingface",
        ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict"),
    ),
    "torch": ("torch_", ("Dataset", "IterableDataset", "DataLoader")),
    "ray": ("ray_", ("Dataset",)),
    "pyspark": ("spark_", ("DataFrame",)),
}
"""For each package that types come from: our module, and the types that it filters."""


def filter_any(
    decider: Decider,
    data: Any,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
) -> Any:
    """Filter a data set of any supported library: return the rows to use for `purpose`.

    The `filter` of its library does the work. Raises InvalidInput for other types, and what that
    filter raises.
    """
    module = import_module(f"consentry.trainer.filters.{_module_of(data)}")
    return module.filter(
        decider, data, purpose=purpose, columns=columns, at_least=at_least, tally=tally
    )


def _module_of(data: Any) -> str:
    """Return the name of our module for the data set's type, or for the nearest base of it."""
    for kind in type(data).__mro__:
        package = kind.__module__.partition(".")[0].lstrip("_")
        module, names = LIBRARIES.get(package, ("", ()))
        if kind.__name__ in names:
            return module
        # Some of Arrow's types have names of their own for each way in which they are stored.
        if package == "pyarrow" and kind.__name__.endswith(names):
            return module
    libraries = []
    for package, (_, names) in LIBRARIES.items():
        libraries.append(f"{package}: {', '.join(names)}")
    known = "; ".join(libraries)
    raise InvalidInput(
        f"A {type(data).__module__}.{type(data).__qualname__} cannot be filtered: it is not a data "
        "set of a known library.",
        code="input.dataset",
        fix=f"give one of these. {known}",
    )
