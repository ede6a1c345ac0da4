"""The files of a Parquet data set that is purged: list, fingerprints, values of folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from consentry.domain.errors import InvalidInput

_NULL_FOLDER: Final = "__HIVE_DEFAULT_PARTITION__"
_MAGIC: Final = b"PAR1"
_BYTES_MIN: Final = 12


class Fingerprint(NamedTuple):
    """The identity of a purged data file's content, without reading all of the file.

    Size in bytes, time of change in nanoseconds, and a digest of the Parquet footer.
    """

    size: int
    modified_ns: int
    footer: str

    def same_content(self, other: Fingerprint) -> bool:
        """Return True where two fingerprints are of one content, also of a copy."""
        return (self.size, self.footer) == (other.size, other.footer)


def fingerprint(path: Path) -> Fingerprint:
    """Return the fingerprint of a Parquet file of a data set that is purged.

    Raises OSError, and InvalidInput for a file that is not a whole Parquet file.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        tail = b""
        if size >= _BYTES_MIN:
            tail = _tail(file, size, 8)
        footer_length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or footer_length > size - _BYTES_MIN:
            raise InvalidInput(
                f"The file {path.name!r} is not a whole Parquet file: its rows cannot be looked "
                "at.",
                code="input.dataset",
                fix="let its writer finish, or take it out of the data set",
            )
        footer = hashlib.blake2b(_tail(file, size, 8 + footer_length), digest_size=16)
        return Fingerprint(size, status.st_mtime_ns, footer.hexdigest())


def open_native(path: Path) -> pa.NativeFile:
    """Open a file of a data set that is purged, for Arrow to read. Raises OSError.

    Never a file object of Python: Arrow's threads may let go of its bytes when Python has ended,
    which aborts the process with a status that looks like a failure.
    """
    return pa.OSFile(str(path), "rb")


def _tail(file: BinaryIO, size: int, length: int) -> bytes:
    file.seek(size - length)
    return file.read(length)


def dataset_files(directory: Path) -> list[Path]:
    """Return the Parquet files of a data set that is purged, in order of name.

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
    """Yield the data files of a folder that is purged: none hidden, none in hidden folders."""
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
    """Return the files of a data set that is purged, each of which can be; see dataset_files.

    Raises InvalidInput where a file could hold rows that we would not see or could not destroy.
    """
    paths: Iterable[Path] = ()
    if directory.is_dir():
        paths = walk(directory)
    for path in paths:
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
    """Return each file of a data set that is purged, by name, with its fingerprint.

    Raises InvalidInput as understood_files, and OSError.
    """
    return _fingerprints(directory, understood_files(directory))


def _fingerprints(directory: Path, paths: Sequence[Path]) -> dict[str, Fingerprint]:
    fingerprints: dict[str, Fingerprint] = {}
    for path in paths:
        name = path.relative_to(directory).as_posix()
        fingerprints[name] = fingerprint(path)
    return fingerprints


def version_of_listing(files: Mapping[str, Fingerprint]) -> str:
    """Return the version of a data set that is purged: a digest of its list of files."""
    digest = hashlib.blake2b(digest_size=16)
    for name, file in sorted(files.items()):
        digest.update(f"{name}\n{file.size}\n{file.footer}\n".encode())
    return digest.hexdigest()


def dataset_version(directory: Path) -> str:
    """Return the version of a data set that is purged; see version_of_listing."""
    files = _fingerprints(directory, dataset_files(directory))
    return version_of_listing(files)


def folder_values(name: str) -> dict[str, str | None]:
    """Return the values that the folders of a hive-partitioned file give, to purge its rows."""
    values: dict[str, str | None] = {}
    for folder in name.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if equals:
            values[unquote(key)] = _folder_value(value)
    return values


def _folder_value(text: str) -> str | None:
    if text == _NULL_FOLDER:
        return None
    return unquote(text)


def read_file(path: Path) -> pa.Table:
    """Return the table of one Parquet file of a data set that is purged, opened once.

    Reading by path opens it twice, and it may be replaced in between.
    """
    with open_native(path) as file:
        return pq.read_table(file)


def read_dataset(directory: Path) -> Iterator[tuple[Path, pa.Table]]:
    """Yield each Parquet file of a data set that is purged, and its table."""
    for path in dataset_files(directory):
        yield path, read_file(path)
