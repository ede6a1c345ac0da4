"""A version for a training run's data set that has none of its own."""

from __future__ import annotations

import hashlib
from typing import Any

import fsspec

from consentry.domain.errors import InvalidInput, Unavailable

_BLOCK_BYTES = 1 << 20


def digest_of_files(url: str) -> str:
    """Return the version of a training run's data set: the digest of all its files.

    It is `sha256:` and the digest of all files under a path or an fsspec URL. The digest is over
    their names, sizes and content, so it reads everything. Where a table has a version or a bucket
    has a commit, give that instead. Raises InvalidInput where there are no files, Unavailable
    where one cannot be read.
    """
    digest = hashlib.sha256()
    try:
        files, root = fsspec.core.url_to_fs(url)
        root = root.rstrip("/")
        paths = sorted(files.find(root))
        for path in paths:
            name = path.removeprefix(root).lstrip("/").encode()
            digest.update(_line_of_file(files, path, name))
    except (OSError, ValueError, ImportError) as error:
        raise Unavailable(
            f"The data set {url!r} cannot be read ({type(error).__name__}).",
            code="dataset.unreadable",
            fix="name its directory, file or URL, and install what the scheme of the URL needs",
        ) from error
    if not paths:
        raise InvalidInput(
            f"There is no file at {url!r}.",
            code="input.dataset",
            fix="name the data set's directory",
        )
    return f"sha256:{digest.hexdigest()}"


def _line_of_file(files: Any, path: str, name: bytes) -> bytes:
    """Return the line that stands for one file: the length of its name, name, size, SHA-256."""
    content = hashlib.sha256()
    size = 0
    with files.open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            content.update(block)
            size += len(block)
    return b"%d:%b %d %b\n" % (len(name), name, size, content.hexdigest().encode())
