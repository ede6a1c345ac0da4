"""Where training runs are registered: `<store>/<run>/run.json`, what they read, their certificates.

Any fsspec URL.
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

START_FILE: Final = "run.json"
END_FILE: Final = "end.json"
CERTIFICATE_FILE: Final = "certificate.json"
READS_FILE: Final = "reads.parquet"
PARTS: Final = "reads"
_RUN_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_PART: Final = re.compile(r"(\d{8})-(\d{8})\.parquet", re.ASCII)


class RunStore:
    """The runs under one URL, such as file:///var/lib/runs or s3://bucket/runs; each file appears
    whole or not at all.

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
        self._is_local = isinstance(self._files, fsspec.implementations.local.LocalFileSystem)

    def runs(self) -> list[str]:
        """The ids of all runs that were registered, sorted."""
        with self._translated():
            if not self._files.exists(self._root):
                raise Unavailable(
                    f"There is no run store at {self.url!r}.",
                    code="run.store",
                    fix="name where runs are registered",
                )
            names = [
                path.rstrip("/").rsplit("/", 1)[-1]
                for path in self._files.ls(self._root, detail=False)
            ]
        return sorted(name for name in names if _RUN_ID.fullmatch(name))

    def folder(self, run_id: str) -> RunFolder:
        """The files of a run."""
        return RunFolder(self, run_id)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unavailable(
                f"The run store {self.url!r} did not do what was asked ({type(error).__name__}).",
                code="run.store",
                fix="check that it is there, writable and not full",
            ) from error


class RunFolder:
    """The files of one run."""

    def __init__(self, store: RunStore, run_id: str) -> None:
        self.run_id = run_id
        self.url = f"{store.url.rstrip('/')}/{run_id}"
        self._store = store
        self._files = store._files
        self._path = f"{store._root}/{run_id}"

    def write(self, name: str, raw: bytes) -> None:
        """Write a file: whole, or not at all."""
        self.write_with(name, lambda file: file.write(raw))

    def write_with(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Write a file by a function that is given one to write to; it appears when that has
        returned.
        """
        path = f"{self._path}/{name}"
        with self._store._translated():
            if self._store._is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                _write_local(Path(path), write)
                return
            with tempfile.TemporaryDirectory(prefix="consentry-") as directory:
                here = Path(directory) / "file"
                _write_local(here, write)
                self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
                self._files.put_file(str(here), path)

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        with self._store._translated():
            return bool(self._files.exists(f"{self._path}/{name}"))

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises Unavailable where it is not there."""
        with self._store._translated():
            found: bytes = self._files.cat_file(f"{self._path}/{name}")
            return found

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a file. Raises Unavailable, also where it holds none."""
        try:
            found = json.loads(self.read(name))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise damaged(self.run_id, name)
        return found

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file to read from any place of it."""
        with self._store._translated(), self._files.open(f"{self._path}/{name}", "rb") as file:
            yield file

    def parts(self) -> list[str]:
        """The parts of what was read, in order; those that were merged into a longer one are left
        out.
        """
        spans = self._spans()
        return [_part_name(*span) for span in spans if _is_whole(span, spans)]

    def remove_parts(self, *, merged_only: bool) -> None:
        """Remove the parts that were merged into others, or all."""
        spans = self._spans()
        for span in spans:
            if not (merged_only and _is_whole(span, spans)):
                with self._store._translated():
                    self._files.rm_file(f"{self._path}/{_part_name(*span)}")

    def write_part(self, first: int, last: int, write: Callable[[IO[bytes]], object]) -> None:
        """Write the part that stands for those with these numbers."""
        self.write_with(_part_name(first, last), write)

    def _spans(self) -> list[tuple[int, int]]:
        with self._store._translated():
            path = f"{self._path}/{PARTS}"
            self._files.invalidate_cache()
            if not self._files.exists(path):
                return []
            names = [found.rsplit("/", 1)[-1] for found in self._files.ls(path, detail=False)]
        matches = (match for name in names if (match := _PART.fullmatch(name)))
        return sorted((int(match[1]), int(match[2])) for match in matches)


def damaged(run_id: str, name: str) -> Unavailable:
    """The error for a file of a run that is not what was written."""
    return Unavailable(
        f"The file {name} of the run {run_id} is damaged.",
        code="run.damaged",
        fix="restore the run store",
    )


def _part_name(first: int, last: int) -> str:
    return f"{PARTS}/{first:08d}-{last:08d}.parquet"


def _is_whole(span: tuple[int, int], spans: list[tuple[int, int]]) -> bool:
    """Whether no other part holds what this one does and more."""
    return not any(one != span and one[0] <= span[0] and span[1] <= one[1] for one in spans)


def _write_local(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write beside it, make sure that it is on the disk, and only then give it its name."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
