"""Certificates of training runs: what they say and how it is signed, and the Merkle tree over what
was read.
"""

from consentry.trainer.runs.certificates.canonical import canonical, read_canonical
from consentry.trainer.runs.certificates.envelope import (
    BYTES_MAX,
    FORMAT,
    LIMIT,
    Certificate,
    read_certificate,
    write_certificate,
)
from consentry.trainer.runs.certificates.merkle import Inclusion, MerkleTree, inclusions

__all__ = [
    "BYTES_MAX",
    "FORMAT",
    "LIMIT",
    "Certificate",
    "Inclusion",
    "MerkleTree",
    "canonical",
    "inclusions",
    "read_canonical",
    "read_certificate",
    "write_certificate",
]
