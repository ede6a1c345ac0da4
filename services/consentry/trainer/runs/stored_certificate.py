"""The files of a training run that is verified: its certificate and reads, at paths or URLs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

import fsspec
import pyarrow.parquet as pq

from consentry.bundles import PublicKeys
from consentry.domain.errors import InvalidInput, Unavailable
from consentry.trainer.runs.certificates.reader import BYTES_MAX, Certificate, read_certificate
from consentry.trainer.runs.read_files import open_read_file
from consentry.trainer.runs.store import CERTIFICATE_FILE, READS_FILE


class StoredCertificate(NamedTuple):
    """The addresses of a training run's certificate and of the reads beside it."""

    certificate: str
    reads: str

    @classmethod
    def named(cls, name: str) -> StoredCertificate:
        """Return the addresses of a certificate named by its own, or by its run's folder."""
        path = name.rstrip("/")
        if not path.endswith(".json"):
            path = f"{path}/{CERTIFICATE_FILE}"
        folder = path.rpartition("/")[0] or "."
        return cls(path, f"{folder}/{READS_FILE}")

    def read(self, keys: PublicKeys | None) -> Certificate:
        """Read a run's certificate, its signature checked by `keys` if they are given.

        Raises Unavailable where a run has none, and InvalidInput.
        """
        try:
            with open_file(self.certificate) as file:
                # One byte more than any certificate has: a larger file is refused.
                raw = file.read(BYTES_MAX + 1)
        except InvalidInput as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise Unavailable(
                f"There is no {self.certificate!r}: the run still goes on, was aborted, or was "
                "killed.",
                code="certificate.none",
                fix="`consentry reach` says which; only a run that came to its end has a "
                "certificate",
            ) from error
        return read_certificate(raw, keys)

    @contextmanager
    def open_reads(self, named: str | None) -> Iterator[pq.ParquetFile | None]:
        """Open a run's reads at `named`, or those beside its certificate.

        None where it has none there. Raises InvalidInput, and Unavailable where the file holds no
        reads.
        """
        if named is None:
            files, path = fsspec.core.url_to_fs(self.reads)
            if not files.exists(path):
                yield None
                return
        address = named or self.reads
        with open_file(address) as file:
            yield open_read_file(file, address)


@contextmanager
def open_file(address: str) -> Iterator[IO[bytes]]:
    """Open a file of a training run that is verified, at a path or URL.

    Raises InvalidInput where it cannot be read.
    """
    try:
        file = fsspec.open(address, "rb").open()
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInput(
            f"The file {address!r} cannot be read ({type(error).__name__}).",
            code="input.file",
            fix="name a readable file, or install what the scheme of its URL needs",
        ) from error
    with file:
        yield file
