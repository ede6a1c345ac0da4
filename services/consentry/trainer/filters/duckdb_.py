"""The filter for DuckDB: relations."""

from __future__ import annotations

import secrets
from collections import Counter
from inspect import Parameter, Signature

import duckdb
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from consentry.domain.errors import Unavailable
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import Decider
from consentry.trainer.filters.batch_filter import BatchFilter


def filter(
    decider: Decider,
    data: duckdb.DuckDBPyRelation,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
) -> duckdb.DuckDBPyRelation:
    """Return the DuckDB relation of the rows that may be used for `purpose`.

    It is on the same connection. Nothing is read here. Each time that the result is read, its rows
    are decided in the engine's own batches, two thousand at a time; the other columns never leave
    the engine. `tally` counts the rows that were decided, which are fewer than all where the query
    needs fewer. Each call adds one function to the connection.

    Raises InvalidInput where a column is missing or there twice, Unavailable for a DuckDB below 2.
    """
    batch_filter = BatchFilter(
        decider, data.columns, purpose=purpose, columns=columns, at_least=at_least, tally=tally
    )
    names = batch_filter.names
    types = dict(zip(data.columns, data.types, strict=True))

    def is_allowed(*values: pa.ChunkedArray) -> pa.Array:
        table = pa.table(dict(zip(names, values, strict=True)))
        return pa.array(batch_filter.mask(table))

    # The engine asks how many values the function takes, which is known only now.
    parameters = [
        Parameter(f"value_{index}", Parameter.POSITIONAL_ONLY) for index in range(len(names))
    ]
    is_allowed.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    function = f"consentry_allows_{secrets.token_hex(8)}"
    _connection_of(data).create_function(
        function,
        is_allowed,
        [types[name] for name in names],
        duckdb.sqltypes.BOOLEAN,
        type=PythonUDFType.ARROW,
        # A row without a member is decided too, and no answer holds for a second call.
        null_handling=FunctionNullHandling.SPECIAL,
        side_effects=True,
    )
    arguments = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
    return data.filter(f"{function}({arguments})")


def _connection_of(data: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyConnection:
    """Return the connection that a relation belongs to; relations show it since DuckDB 2."""
    connection: duckdb.DuckDBPyConnection | None = getattr(data, "_con", None)
    if connection is None:
        raise Unavailable(
            f"A relation of DuckDB {duckdb.__version__} does not show its connection.",
            code="trainer.duckdb_version",
            fix="install duckdb 2 or newer, or filter relation.to_arrow_reader()",
        )
    return connection
