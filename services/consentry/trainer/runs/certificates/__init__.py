"""Certificates of training runs: the statement, its signature, the Merkle tree over the reads."""

from consentry.trainer.runs.certificates.canonical import canonical, read_canonical
from consentry.trainer.runs.certificates.envelope import (
    BYTES_MAX,
    FORMAT,
    LIMIT,
    Certificate,
    read_certificate,
    write_certificate,
)
from consentry.trainer.runs.certificates.merkle import MerkleTree

__all__ = [
    "BYTES_MAX",
    "FORMAT",
    "LIMIT",
    "Certificate",
    "MerkleTree",
    "canonical",
    "read_canonical",
    "read_certificate",
    "write_certificate",
]
