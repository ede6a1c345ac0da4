"""A store of bundles for those who hand the files on: finds a file, and reads it in pieces.

Nothing is checked here.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import IO, cast

from consentry.bundles.store import BundleStore, NotThere


class DownloadStore(BundleStore):
    """A store of bundles whose files are handed on in pieces; see BundleStore.

    Names are those of a bundle and of a file in it, checked by the caller.
    """

    def find(self, *names: str, bytes_max: int) -> bytes | None:
        """Read a bundle's file as `read` does; None where there is no such file."""
        try:
            return self.read(*names, bytes_max=bytes_max)
        except NotThere:
            return None

    def open_file(self, bundle_id: str, name: str) -> IO[bytes] | None:
        """Open a bundle's file to read it in pieces and close it; None if there is none.

        Nothing but a plain file is opened.

        Raises Unavailable.
        """
        try:
            with self._translated():
                if self._is_local:
                    return _open_plain(self._root, bundle_id, name)
                return cast(IO[bytes], self._fs.open(self._path((bundle_id, name)), "rb"))
        except NotThere:
            return None

    def read_piece(self, file: IO[bytes], size: int) -> bytes:
        """Return the next piece of an opened bundle file; empty at its end.

        Raises Unavailable.
        """
        with self._translated():
            return file.read(size)


def _open_plain(root: str, bundle_id: str, name: str) -> IO[bytes]:
    """Open without following a link: somebody may have put one there. Raises FileNotFoundError."""
    directory = os.open(
        os.path.join(root, bundle_id), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    )
    try:
        # Without O_NONBLOCK a named pipe would have us wait for ever.
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise FileNotFoundError(name) from error
        raise
    finally:
        os.close(directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(name)
    return os.fdopen(descriptor, "rb", buffering=0)
