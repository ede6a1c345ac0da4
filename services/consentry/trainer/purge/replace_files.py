"""Replace a data file by its purged successor in one step; notice which was really replaced."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from consentry.domain.errors import InvalidInput
from consentry.trainer.purge.dataset import DatasetChanged
from consentry.trainer.purge.files import Fingerprint, fingerprint

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_NOT_HERE: Final = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_PUT_BACK_MAX: Final = 100
KEPT_SUFFIX: Final = ".kept"


def exchange(first: Path, second: Path) -> bool:
    """Exchange a data file and its purged successor in one step; False if it cannot be.

    Raises OSError. Source: renameat2(2), RENAME_EXCHANGE.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    flags = ctypes.c_uint(_RENAME_EXCHANGE)
    status = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), flags)
    if status == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_HERE:
        return False
    raise OSError(number, os.strerror(number), str(second))


def replace_file(path: Path, staged: Path, old: Fingerprint, new: Fingerprint) -> None:
    """Replace a data file by its purged successor `staged`.

    The old one is then under the name `staged`, or nowhere. Raises DatasetChanged where `path` is
    not `old`, and leaves it as its last writer left it. Where names can be exchanged this is
    certain: the file that was taken out is examined, and put back. Elsewhere a file is lost that
    somebody replaces between the last check and the rename.
    """
    check_unchanged(path, old)
    try:
        is_exchanged = exchange(staged, path)
    except FileNotFoundError as error:
        raise _changed(path, "has vanished") from error
    if is_exchanged:
        try:
            check_unchanged(staged, old, named=path)
        except DatasetChanged:
            put_back(path, staged, new)
            raise
        return
    kept = staged.with_name(staged.name + KEPT_SUFFIX)
    os.link(path, kept)
    try:
        check_unchanged(kept, old, named=path)
        staged.replace(path)
    finally:
        kept.unlink()


def put_back(path: Path, staged: Path, new: Fingerprint) -> None:
    """Undo the exchange of a purged file: the one taken out goes back.

    It is repeated until `staged` is ours again.
    """
    for _ in range(_PUT_BACK_MAX):
        exchange(staged, path)
        if is_content(staged, new):
            return
        # Yet another file was put there in between; it is the one that has to stay.
    raise DatasetChanged(
        f"The file {path.name!r} is replaced all the time; one state of it is kept as "
        f"{str(staged)!r}."
    )


def is_content(path: Path, expected: Fingerprint) -> bool:
    """Return True where a file of a purge is there, whole, with the expected content."""
    try:
        return fingerprint(path).same_content(expected)
    except (FileNotFoundError, InvalidInput):
        return False


def check_unchanged(path: Path, expected: Fingerprint, *, named: Path | None = None) -> None:
    """Raise DatasetChanged unless a file is still the one that the purge examined.

    The error is about the file `named`, or `path`.
    """
    named = named or path
    try:
        current = fingerprint(path)
    except FileNotFoundError as error:
        raise _changed(named, "has vanished") from error
    except InvalidInput as error:
        raise _changed(named, "is being written") from error
    if current != expected:
        raise _changed(named, "was written anew")


def _changed(path: Path, how: str) -> DatasetChanged:
    return DatasetChanged(
        f"The file {path.name!r} in {path.parent.name!r} {how} while the data set was purged."
    )


def sync_file(path: Path) -> None:
    """Write a purged file's content, or a directory's names, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(paths: Iterable[Path]) -> None:
    """Write the names of a purge's files, in their folders, through to the disk."""
    for folder in {path.parent for path in paths}:
        sync_file(folder)
