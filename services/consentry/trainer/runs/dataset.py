"""A version for a data set that has none of its own."""

from __future__ import annotations

import hashlib

import fsspec

from consentry.domain.errors import InvalidInput, Unavailable

_BLOCK_BYTES = 1 << 20


def digest_of_files(url: str) -> str:
    """`sha256:` and the digest of all files under a path or an fsspec URL: of their names, sizes
    and content.

    It reads everything; where a table has a version or a bucket has a commit, give that instead.
    Raises InvalidInput where there are none, Unavailable where one cannot be read.
    """
    found = hashlib.sha256()
    try:
        files, root = fsspec.core.url_to_fs(url)
        root = root.rstrip("/")
        names = sorted(files.find(root))
        for name in names:
            content, size = hashlib.sha256(), 0
            with files.open(name, "rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    content.update(block)
                    size += len(block)
            told = name.removeprefix(root).lstrip("/").encode()
            found.update(b"%d:%b %d %b\n" % (len(told), told, size, content.hexdigest().encode()))
    except (OSError, ValueError, ImportError) as error:
        raise Unavailable(
            f"The data set {url!r} cannot be read ({type(error).__name__}).",
            code="dataset.unreadable",
            fix="name its directory, file or URL, and install what the scheme of the URL needs",
        ) from error
    if not names:
        raise InvalidInput(
            f"There is no file at {url!r}.",
            code="input.dataset",
            fix="name the data set's directory",
        )
    return f"sha256:{found.hexdigest()}"
