"""The store where training runs are registered: any fsspec URL, with one folder for each run.

A folder holds run.json, the reads (in parts while the run goes on), the certificate and end.json.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import fsspec

from consentry.domain.errors import InvalidInput, Unavailable

RUN_FORMAT: Final = "consentry-run/1"
START_FILE: Final = "run.json"
END_FILE: Final = "end.json"
CERTIFICATE_FILE: Final = "certificate.json"
READS_FILE: Final = "reads.parquet"
PARTS_FOLDER: Final = "reads"
_RUN_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_PART: Final = re.compile(r"(\d{8})-(\d{8})\.parquet", re.ASCII)


class RunStore:
    """The store of training runs under one URL.

    Such a URL is file:///var/lib/runs or s3://bucket/runs. Each file appears whole or not at all.
    Raises InvalidInput for a URL that cannot be understood, Unavailable where the store does not
    answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._files, path = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise InvalidInput(
                f"The run store {url!r} cannot be opened ({type(error).__name__}).",
                code="run.store",
                fix="name a directory or a URL that fsspec knows, and install what its scheme "
                "needs",
            ) from error
        self._root = path.rstrip("/")

    def runs(self) -> list[str]:
        """Return the ids of all training runs that were registered in the store, sorted."""
        with _translate_errors(self.url):
            if not self._files.exists(self._root):
                raise Unavailable(
                    f"There is no run store at {self.url!r}.",
                    code="run.store",
                    fix="name where runs are registered",
                )
            paths = self._files.ls(self._root, detail=False)
        names = [path.rstrip("/").rsplit("/", 1)[-1] for path in paths]
        return sorted(name for name in names if _RUN_ID.fullmatch(name))

    def folder(self, run_id: str) -> RunFolder:
        """Return the folder of a training run, even if it does not exist."""
        return RunFolder(
            run_id,
            url=f"{self.url.rstrip('/')}/{run_id}",
            store_url=self.url,
            files=self._files,
            path=f"{self._root}/{run_id}",
        )


class RunFolder:
    """The files of one training run, in its folder of the run store."""

    def __init__(
        self,
        run_id: str,
        *,
        url: str,
        store_url: str,
        files: fsspec.AbstractFileSystem,
        path: str,
    ) -> None:
        self.run_id = run_id
        self.url = url
        self._store_url = store_url
        self._files = files
        self._path = path

    def write(self, name: str, raw: bytes) -> None:
        """Write a file of a training run, whole or not at all."""
        self.write_with(name, lambda file: file.write(raw))

    def write_with(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Write a file of a training run by a function that writes to it.

        The file appears once that has returned.
        """
        path = f"{self._path}/{name}"
        with _translate_errors(self._store_url):
            if _is_local(self._files):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                _write_local(Path(path), write)
                return
            with tempfile.TemporaryDirectory(prefix="consentry-") as directory:
                local = Path(directory) / "file"
                _write_local(local, write)
                self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
                self._files.put_file(str(local), path)

    def exists(self, name: str) -> bool:
        """Return True if a file of a training run is there."""
        with _translate_errors(self._store_url):
            return bool(self._files.exists(f"{self._path}/{name}"))

    def read(self, name: str) -> bytes:
        """Return the bytes of a training run's file. Raises Unavailable if it is not there."""
        with _translate_errors(self._store_url):
            content: bytes = self._files.cat_file(f"{self._path}/{name}")
            return content

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a training run's file.

        Raises Unavailable where it is not there, or not an object.
        """
        try:
            document = json.loads(self.read(name))
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise damaged(self.run_id, name)
        return document

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file of a training run for reading at any position."""
        with (
            _translate_errors(self._store_url),
            self._files.open(f"{self._path}/{name}", "rb") as file,
        ):
            yield file

    def parts(self) -> list[str]:
        """Return the names of the parts of a training run's reads, in order.

        Parts that were merged into a longer one are left out.
        """
        spans = self._spans()
        names: list[str] = []
        for span in spans:
            if not _is_merged(span, spans):
                names.append(_part_name(*span))
        return names

    def remove_parts(self, *, merged_only: bool) -> None:
        """Remove parts of a run's reads: those merged into longer ones, or all."""
        spans = self._spans()
        for span in spans:
            if _is_merged(span, spans) or not merged_only:
                with _translate_errors(self._store_url):
                    self._files.rm_file(f"{self._path}/{_part_name(*span)}")

    def write_part(self, first: int, last: int, write: Callable[[IO[bytes]], object]) -> None:
        """Write the part of a run's reads for the numbers from `first` to `last`."""
        self.write_with(_part_name(first, last), write)

    def _spans(self) -> list[tuple[int, int]]:
        """Return the first and the last number that each part stands for, sorted."""
        with _translate_errors(self._store_url):
            path = f"{self._path}/{PARTS_FOLDER}"
            self._files.invalidate_cache()
            if not self._files.exists(path):
                return []
            paths = self._files.ls(path, detail=False)
        spans = []
        for path in paths:
            match = _PART.fullmatch(path.rsplit("/", 1)[-1])
            if match is not None:
                spans.append((int(match[1]), int(match[2])))
        return sorted(spans)


@contextmanager
def _translate_errors(store_url: str) -> Iterator[None]:
    """Raise Unavailable for an error of the store."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"The run store {store_url!r} failed ({type(error).__name__}).",
            code="run.store",
            fix="check that it is there, writable and not full",
        ) from error


def _is_local(files: fsspec.AbstractFileSystem) -> bool:
    return isinstance(files, fsspec.implementations.local.LocalFileSystem)


def damaged(run_id: str, name: str) -> Unavailable:
    """Return the error for a file of a training run that is not as it was written."""
    return Unavailable(
        f"The file {name} of the run {run_id} is damaged.",
        code="run.damaged",
        fix="restore the run store",
    )


def _part_name(first: int, last: int) -> str:
    return f"{PARTS_FOLDER}/{first:08d}-{last:08d}.parquet"


def _is_merged(span: tuple[int, int], spans: list[tuple[int, int]]) -> bool:
    """Return whether another part holds all that this one does, and more."""
    first, last = span
    for other in spans:
        other_first, other_last = other
        if other != span and other_first <= first and last <= other_last:
            return True
    return False


def _write_local(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file beside it, sync it to the disk, and only then give it its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
