"""Merkle trees over a training run's reads: RFC 6962, section 2.1, with SHA-256.

A first byte tells a leaf from a node.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

EMPTY_ROOT: Final = sha256(b"").digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node with two children, in the Merkle tree of a certificate."""
    return sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """The Merkle root of a run's certificate, over leaves that are added one after another.

    It holds one hash for each bit of their number: after 13 leaves (8 + 4 + 1), the roots of
    subtrees of 8, 4 and 1 leaves. One more leaf makes the last two subtrees of 1 leaf one of 2, as
    a carry does in binary addition.
    """

    def __init__(self) -> None:
        self.size = 0
        self._subtrees: list[bytes] = []
        """Roots of complete subtrees, the largest first: one for each bit set in `size`."""

    def add(self, leaves: Iterable[bytes]) -> None:
        """Add leaves to the certificate's Merkle tree, in order."""
        # Called for each of millions of leaves: it hashes in place, without a call of its own.
        subtrees, size = self._subtrees, self.size
        for leaf in leaves:
            root = sha256(b"\x00" + leaf).digest()
            carry = size
            while carry & 1:
                root = sha256(b"\x01" + subtrees.pop() + root).digest()
                carry >>= 1
            subtrees.append(root)
            size += 1
        self.size = size

    def root(self) -> bytes:
        """Return the Merkle root over the leaves so far; of none it is the hash of no bytes."""
        if not self._subtrees:
            return EMPTY_ROOT
        *rest, root = self._subtrees
        for left in reversed(rest):
            root = node_hash(left, root)
        return root
