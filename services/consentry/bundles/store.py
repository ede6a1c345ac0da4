"""The store of bundles: a directory in any file system or object store that fsspec knows.

Reads are bounded; each write is whole or absent.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from consentry.bundles.errors import BundleRefused
from consentry.bundles.manifest import BUNDLE_ID_PATTERN
from consentry.domain.errors import Refused, Unavailable

_BLOCK: Final = 8 << 20


class NotThere(Exception):
    """Raised when a bundle's file is not in the store. Never leaves this package."""


class BundleStore:
    """A store of bundles: a directory on a disk, in S3 or in memory.

    Examples are `/srv/bundles`, `s3://bucket/bundles` and `memory://bundles`.

    `options` are those of the fsspec file system; credentials belong there or in its own
    configuration, never in the URL. Raises Refused for a URL of which no file system is installed.
    """

    def __init__(self, url: str | Path, options: Mapping[str, Any] | None = None) -> None:
        self.url = str(url)
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url, **(options or {}))
        except (ImportError, ValueError) as error:
            raise Refused(
                f"The store of bundles cannot be opened: {error}.",
                code="bundle.store_driver",
                fix="install the fsspec package of the store, such as s3fs, gcsfs or adlfs, and "
                "check the URL",
            ) from error
        self._root = str(root).rstrip("/") or "/"
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def __repr__(self) -> str:
        return f"BundleStore({type(self._fs).__name__})"  # a URL may hold credentials

    def read(self, *names: str, bytes_max: int) -> bytes:
        """Return the content of a bundle's file, at most `bytes_max` + 1 bytes.

        One more than the maximum, so that the caller sees when there is more. Raises NotThere;
        BundleRefused for what is not a plain file; Unavailable where the store does not answer.
        """
        with self._translated():
            if self._is_local:
                return self._read_local(names, bytes_max + 1)
            return self._read(names, bytes_max + 1)

    def write(self, *names: str, content: bytes) -> None:
        """Write a bundle's file at once: readers see all of it or what was there before.

        Raises Unavailable.
        """
        with self._translated():
            if self._is_local:
                _replace(Path(self._root, *names), content)
            else:
                path = self._path(names)
                self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
                self._fs.pipe_file(path, content)

    def bundle_ids(self) -> list[str]:
        """Return every bundle with a directory in the store, the oldest first.

        Unfinished ones are among them.

        Raises Unavailable.
        """
        with self._translated():
            try:
                self._fs.invalidate_cache(self._root)
                paths = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        bundle_ids: list[str] = []
        for path in paths:
            name = str(path).rstrip("/").rsplit("/", 1)[-1]
            if BUNDLE_ID_PATTERN.fullmatch(name):
                bundle_ids.append(name)
        return sorted(bundle_ids)

    def remove(self, bundle_id: str) -> None:
        """Delete a bundle's directory, if the store has one. Raises Unavailable."""
        assert BUNDLE_ID_PATTERN.fullmatch(bundle_id), bundle_id
        with self._translated():
            try:
                self._fs.rm(self._path((bundle_id,)), recursive=True)
            except FileNotFoundError:
                return

    def _path(self, names: tuple[str, ...]) -> str:
        return "/".join((self._root.rstrip("/"), *names))

    def _read(self, names: tuple[str, ...], limit: int) -> bytes:
        # One ranged request: opening the file would believe a listing of before, also of its size.
        content: bytes = self._fs.cat_file(self._path(names), start=0, end=limit)
        return content[:limit]

    def _read_local(self, names: tuple[str, ...], limit: int) -> bytes:
        """Read below the root without following any link: anybody may have put one there."""
        directory = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names[:-1]:
                inner = os.open(
                    name,
                    os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
                    dir_fd=directory,
                )
                os.close(directory)
                directory = inner
            # Without O_NONBLOCK a named pipe would have us wait for ever.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(names[-1], flags, dir_fd=directory)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
                raise _special() from error
            raise
        finally:
            os.close(directory)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _special()
            return _read_blocks(file.read, limit)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotThere from error
        except (BundleRefused, NotThere):
            raise
        except Exception as error:
            # Every fsspec store has errors of its own; their texts may hold URLs with credentials.
            raise Unavailable(
                f"The store of bundles did not answer ({type(error).__name__}).",
                code="bundle.store_unavailable",
                fix="check the URL, the credentials and the store; the call may be repeated",
            ) from error


def _special() -> BundleRefused:
    return BundleRefused(
        "special_file",
        "A file of the bundle is a link, or something else that is not a plain file.",
    )


def _read_blocks(read: Any, limit: int) -> bytes:
    blocks, left = [], limit
    while left > 0:
        block = read(min(_BLOCK, left))
        if not block:
            break
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside, sync and rename it: a power cut leaves the old or the new, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with beside.open("xb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
