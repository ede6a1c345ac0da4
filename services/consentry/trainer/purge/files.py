"""The files of a Parquet data set: which there are, what identifies each, and what their folders
say of their rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consentry.domain.errors import InvalidInput
from consentry.trainer.deciding.columns import Columns, find_columns

_NULL_FOLDER: Final = "__HIVE_DEFAULT_PARTITION__"
_ROWS_AT_ONCE: Final = 1 << 20
_MAGIC: Final = b"PAR1"
_LENGTH_MIN: Final = 12


class Fingerprint(NamedTuple):
    """What identifies a file's content without reading it all: size, time of change, and its
    Parquet footer.
    """

    size: int
    modified_ns: int
    footer: str

    def same_content(self, other: Fingerprint) -> bool:
        """Whether both are one content, even if copied in between."""
        return (self.size, self.footer) == (other.size, other.footer)


def fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of a file. Raises OSError, InvalidInput for what is no Parquet file."""
    with path.open("rb") as file:
        told = os.fstat(file.fileno())
        tail = b"" if told.st_size < _LENGTH_MIN else _tail(file, told.st_size, 8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > told.st_size - _LENGTH_MIN:
            raise InvalidInput(
                f"The file {path.name!r} is not a whole Parquet file: its rows cannot be looked "
                "at.",
                code="input.dataset",
                fix="let its writer finish, or take it out of the data set",
            )
        footer = hashlib.blake2b(_tail(file, told.st_size, 8 + length), digest_size=16).hexdigest()
        return Fingerprint(told.st_size, told.st_mtime_ns, footer)


def open_native(path: Path) -> pa.NativeFile:
    """A file for Arrow to read. Raises OSError.

    Never a file object of Python: Arrow's threads may let go of its bytes when Python has ended,
    which aborts the process with a status that looks like a failure.
    """
    return pa.OSFile(str(path), "rb")


def _tail(file: BinaryIO, size: int, length: int) -> bytes:
    file.seek(size - length)
    return file.read(length)


def dataset_files(directory: Path) -> list[Path]:
    """The Parquet files of a data set, in order of name.

    Raises InvalidInput where there is no such directory.
    """
    if not directory.is_dir():
        raise InvalidInput(
            f"The data set {str(directory)!r} is not a directory.",
            code="input.dataset",
            fix="name the directory that holds the Parquet files",
        )
    return sorted(path for path in walk(directory) if path.suffix == ".parquet")


def walk(directory: Path) -> Iterator[Path]:
    """What a reader would take for data: neither hidden files nor what is in hidden folders."""
    with os.scandir(directory) as entries:
        for entry in entries:
            # Readers take `_name=value` for a partition, though it begins as hidden folders do.
            if entry.name.startswith(".") or (entry.name.startswith("_") and "=" not in entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from walk(Path(entry.path))
            else:
                yield Path(entry.path)


def understood_files(directory: Path) -> list[Path]:
    """As dataset_files; raises InvalidInput where a file could hold rows that we would not see or
    could not destroy.
    """
    for path in walk(directory) if directory.is_dir() else ():
        if path.is_symlink():
            raise InvalidInput(
                f"The data set holds {path.name!r}, which is a link: its rows would stay where it "
                "points to.",
                code="input.dataset",
                fix="purge the directory that holds the file itself",
            )
        if path.suffix != ".parquet":
            raise InvalidInput(
                f"The data set holds {path.name!r}, which is not a .parquet file: its rows cannot "
                "be looked at.",
                code="input.dataset",
                fix="rename it to .parquet if it is one, else keep it elsewhere",
            )
    files = dataset_files(directory)
    for folder in {path.parent for path in files} | {directory}:
        if (folder / "_metadata").exists():
            raise InvalidInput(
                f"The data set keeps the places of all row groups in {folder.name}/_metadata, "
                "which would be wrong.",
                code="input.dataset",
                fix="remove _metadata; a reader does without, and it can be written again",
            )
    return files


def listing(directory: Path) -> dict[str, Fingerprint]:
    """Every data file by name, relative to the data set, with its fingerprint.

    Raises InvalidInput, OSError.
    """
    return {
        path.relative_to(directory).as_posix(): fingerprint(path)
        for path in understood_files(directory)
    }


def version_of_listing(files: Mapping[str, Fingerprint]) -> str:
    """Identity of the content: a digest over each file's name, size and footer."""
    digest = hashlib.blake2b(digest_size=16)
    for name, found in sorted(files.items()):
        digest.update(f"{name}\n{found.size}\n{found.footer}\n".encode())
    return digest.hexdigest()


def dataset_version(directory: Path) -> str:
    """Identity of a data set's content: a digest over each file's name, size and Parquet footer."""
    return version_of_listing(
        {
            path.relative_to(directory).as_posix(): fingerprint(path)
            for path in dataset_files(directory)
        }
    )


def folder_values(name: str) -> dict[str, str | None]:
    """What the folders of a hive-partitioned data set say of all rows of a file, by column."""
    pairs = [folder.split("=", 1) for folder in name.split("/")[:-1] if "=" in folder]
    return {unquote(key): None if value == _NULL_FOLDER else unquote(value) for key, value in pairs}


class Chunk(NamedTuple):
    """Some row groups of a file: the columns that decide, and which row groups they are."""

    table: pa.Table
    columns: Columns
    groups: range


def chunks(
    file: pq.ParquetFile, name: str, columns: Columns | None, said: Mapping[str, str | None]
) -> Iterator[Chunk]:
    """The deciding columns of a file, at most some million rows at once; those that are `said` of
    it are among them.

    Without `columns` they are found by their conventional names. Raises InvalidInput for a missing
    column.
    """
    names = [*file.schema_arrow.names, *(key for key in said if key not in file.schema_arrow.names)]
    chosen = find_columns(names, columns, holder=f"The file {name!r}")
    stored = [key for key in chosen.names if key in file.schema_arrow.names]
    for groups in _batches(file.metadata):
        rows = sum(file.metadata.row_group(place).num_rows for place in groups)
        table = file.read_row_groups(list(groups), columns=stored, use_threads=False)
        for key in chosen.names:
            if key in said:
                table = _with_folder_value(table, rows, key, said[key], name)
        yield Chunk(table, chosen, groups)


def _with_folder_value(
    table: pa.Table, rows: int, key: str, value: str | None, name: str
) -> pa.Table:
    column = pa.array([value], pa.string()).take(pa.array([0] * rows, pa.int32()))
    if key not in table.column_names:
        return table.append_column(key, column) if table.num_columns else pa.table({key: column})
    own = table[key].cast(pa.string())
    if not pc.all(pc.or_kleene(pc.equal(own, column), pc.is_null(own)), min_count=0).as_py():
        raise InvalidInput(
            f"The file {name!r} has a column {key!r} that does not say what its folder says.",
            code="input.dataset",
            fix="readers differ in which they believe: remove the column, or move the rows to the "
            "right folder",
        )
    return table


def _batches(told: pq.FileMetaData) -> Iterator[range]:
    begun, rows = 0, 0
    for place in range(told.num_row_groups):
        rows += told.row_group(place).num_rows
        if rows >= _ROWS_AT_ONCE or place == told.num_row_groups - 1:
            yield range(begun, place + 1)
            begun, rows = place + 1, 0


def read_file(path: Path) -> pa.Table:
    """The table of one Parquet file, opened once: reading by path opens it twice, and it may be
    replaced in between.
    """
    with open_native(path) as file:
        return pq.read_table(file)


def read_dataset(directory: Path) -> Iterator[tuple[Path, pa.Table]]:
    """Each file of a data set and its table."""
    for path in dataset_files(directory):
        yield path, read_file(path)
