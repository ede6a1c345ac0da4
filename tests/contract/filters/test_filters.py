"""The filters of libraries that hold rows in this process keep one contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from tests.contract.filters.filter_contract import FilterContract


def streamed(table: pa.Table, *, shards: int = 1) -> Any:
    """A stream of the rows; the library itself makes none of no rows."""
    if table.num_rows:
        return datasets.Dataset(table).to_iterable_dataset(num_shards=shards)
    features = datasets.Features.from_arrow_schema(table.schema)
    return datasets.IterableDataset.from_generator(lambda: iter(()), features=features)


class TestArrowTable(FilterContract):
    def make(self, table: pa.Table) -> Any:
        return table

    def read(self, data: Any) -> pa.Table:
        return data


class TestArrowRecordBatch(FilterContract):
    def make(self, table: pa.Table) -> Any:
        arrays = [
            pa.concat_arrays(column.chunks) if column.chunks else column.combine_chunks()
            for column in table.columns
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=table.schema)

    def read(self, data: Any) -> pa.Table:
        return pa.Table.from_batches([data])


class TestArrowReader(FilterContract):
    is_lazy = True

    def make(self, table: pa.Table) -> Any:
        return table.to_reader(max_chunksize=300)

    def read(self, data: Any) -> pa.Table:
        return data.read_all() if isinstance(data, pa.RecordBatchReader) else data.to_table()

    def result_type(self, data: Any) -> type:
        found: type = pa.RecordBatchReader
        return found


class TestArrowDataset(TestArrowReader):
    def make(self, table: pa.Table) -> Any:
        return pads.dataset(table)


class TestArrowScanner(TestArrowReader):
    def make(self, table: pa.Table) -> Any:
        return pads.dataset(table).scanner(batch_size=300)


class TestPolarsFrame(FilterContract):
    def make(self, table: pa.Table) -> Any:
        return pl.from_arrow(table)

    def read(self, data: Any) -> pa.Table:
        return data.to_arrow()


class TestPolarsLazyFrame(FilterContract):
    is_lazy = True
    engine: Any = "in-memory"

    def make(self, table: pa.Table) -> Any:
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame.lazy()

    def read(self, data: Any) -> pa.Table:
        return data.collect(engine=self.engine).to_arrow()


class TestPolarsStreaming(TestPolarsLazyFrame):
    engine = "streaming"


class TestPandas(FilterContract):
    def make(self, table: pa.Table) -> Any:
        # Without nullable types pandas makes integers with a gap to floating point numbers.
        return table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)

    def read(self, data: Any) -> pa.Table:
        return pa.Table.from_pandas(data, preserve_index=False)


class TestDuckdb(FilterContract):
    is_lazy = True

    @pytest.fixture(autouse=True)
    def connected(self) -> Iterator[None]:
        with duckdb.connect() as self.connection:
            yield

    def make(self, table: pa.Table) -> Any:
        return self.connection.from_arrow(table)

    def read(self, data: Any) -> pa.Table:
        return data.to_arrow_table()


class TestHuggingFace(FilterContract):
    def make(self, table: pa.Table) -> Any:
        return datasets.Dataset(table)

    def read(self, data: Any) -> pa.Table:
        return data.with_format("arrow")[:]


class TestHuggingFaceStream(FilterContract):
    is_lazy = True

    def make(self, table: pa.Table) -> Any:
        return streamed(table, shards=3)

    def read(self, data: Any) -> pa.Table:
        return pa.Table.from_pylist(list(data), schema=data.features.arrow_schema)


class TestHuggingFaceStreamOfTables(TestHuggingFaceStream):
    def make(self, table: pa.Table) -> Any:
        return super().make(table).with_format("arrow")

    def read(self, data: Any) -> pa.Table:
        schema = data.features.arrow_schema
        return pa.concat_tables([schema.empty_table(), *data.iter(batch_size=1000)])


class TestHuggingFaceSplits(FilterContract):
    def make(self, table: pa.Table) -> Any:
        half = table.num_rows // 2
        return datasets.DatasetDict(
            {
                "train": datasets.Dataset(table.slice(0, half)),
                "test": datasets.Dataset(table.slice(half)),
            }
        )

    def read(self, data: Any) -> pa.Table:
        return pa.concat_tables([split.with_format("arrow")[:] for split in data.values()])


class TestHuggingFaceStreamedSplits(FilterContract):
    is_lazy = True

    def make(self, table: pa.Table) -> Any:
        half = table.num_rows // 2
        splits = {"train": streamed(table.slice(0, half)), "test": streamed(table.slice(half))}
        return datasets.IterableDatasetDict(splits)

    def read(self, data: Any) -> pa.Table:
        return pa.concat_tables([TestHuggingFaceStream().read(split) for split in data.values()])
