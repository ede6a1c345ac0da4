"""Putting a new file in an old one's place in one step, and noticing what was really in that
place.
"""

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
    """Let two files exchange their names in one step; False where this system cannot.

    Raises OSError.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if (
        call(
            _AT_FDCWD,
            os.fsencode(first),
            _AT_FDCWD,
            os.fsencode(second),
            ctypes.c_uint(_RENAME_EXCHANGE),
        )
        == 0
    ):
        return True
    number = ctypes.get_errno()
    if number in _NOT_HERE:
        return False
    raise OSError(number, os.strerror(number), str(second))


def swap(path: Path, staged: Path, old: Fingerprint, new: Fingerprint) -> None:
    """Put the file `staged` in the place of `path`; afterwards the old one is under the name
    `staged`, or nowhere.

    Raises DatasetChanged, with `path` as its last writer left it, where that is not `old`. Where
    names can be exchanged that is certain: what was taken out is looked at, and put back. Elsewhere
    a file that is replaced in the instant between the last look and the rename is lost.
    """
    expect(path, old)
    try:
        is_exchanged = exchange(staged, path)
    except FileNotFoundError as error:
        raise _changed(path, "has vanished") from error
    if is_exchanged:
        try:
            expect(staged, old, told=path)
        except DatasetChanged:
            put_back(path, staged, new)
            raise
        return
    kept = staged.with_name(staged.name + KEPT_SUFFIX)
    os.link(path, kept)
    try:
        expect(kept, old, told=path)
        staged.replace(path)
    finally:
        kept.unlink()


def put_back(path: Path, staged: Path, new: Fingerprint) -> None:
    """Undo an exchange: what was taken out goes back, until `staged` is ours again."""
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
    """Whether there is such a file, and it is whole, with the expected content."""
    try:
        return fingerprint(path).same_content(expected)
    except (FileNotFoundError, InvalidInput):
        return False


def expect(path: Path, expected: Fingerprint, *, told: Path | None = None) -> None:
    """Raise DatasetChanged, naming `told` or `path`, unless the file is the expected one."""
    try:
        found = fingerprint(path)
    except FileNotFoundError as error:
        raise _changed(told or path, "has vanished") from error
    except InvalidInput as error:
        raise _changed(told or path, "is being written") from error
    if found != expected:
        raise _changed(told or path, "was written anew")


def _changed(path: Path, how: str) -> DatasetChanged:
    return DatasetChanged(
        f"The file {path.name!r} in {path.parent.name!r} {how} while the data set was purged."
    )


def sync_file(path: Path) -> None:
    """Have the disk hold a file's content, or a directory's names."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_folders(paths: Iterable[Path]) -> None:
    """Have the disk hold the names of these files."""
    for folder in {path.parent for path in paths}:
        sync_file(folder)
