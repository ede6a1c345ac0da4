"""Certificates of training runs: the statement, its signature, the Merkle tree of the reads."""

from consentry.trainer.runs.certificates.canonical import canonical, read_canonical
from consentry.trainer.runs.certificates.merkle import MerkleTree
from consentry.trainer.runs.certificates.writer import FORMAT, LIMIT, write_certificate

__all__ = [
    "FORMAT",
    "LIMIT",
    "MerkleTree",
    "canonical",
    "read_canonical",
    "write_certificate",
]
