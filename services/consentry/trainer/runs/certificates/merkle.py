"""Merkle trees as in RFC 6962, section 2.1:

SHA-256, leaves and nodes told apart by their first byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

EMPTY_ROOT: Final = sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf."""
    return sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node with two children."""
    return sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """The root over leaves that come one after another; holds one hash for each bit of their
    number.
    """

    def __init__(self) -> None:
        self.size = 0
        self._whole: list[bytes] = []
        """Roots of whole subtrees, the largest first: one for each bit that is set in `size`."""

    def add(self, leaves: Iterable[bytes]) -> None:
        """Take more leaves in, in order."""
        whole, size = self._whole, self.size
        for leaf in leaves:
            found = sha256(b"\x00" + leaf).digest()
            bits = size
            while bits & 1:
                found = sha256(b"\x01" + whole.pop() + found).digest()
                bits >>= 1
            whole.append(found)
            size += 1
        self.size = size

    def root(self) -> bytes:
        """The root over the leaves so far; that of no leaves is the hash of nothing."""
        if not self._whole:
            return EMPTY_ROOT
        *rest, found = self._whole
        for left in reversed(rest):
            found = node_hash(left, found)
        return found


class Inclusion(NamedTuple):
    """That a leaf stands at a place in a tree of `size` leaves: the hashes beside the way from it
    to the root.
    """

    leaf: bytes
    place: int
    size: int
    path: tuple[bytes, ...]

    def root(self) -> bytes:
        """The root of the tree that this proves the leaf to be in.

        Raises ValueError where the path does not fit.
        """
        sides = _sides(self.place, self.size)
        if len(sides) != len(self.path):
            raise ValueError(f"the path has {len(self.path)} hashes, not {len(sides)}")
        found = leaf_hash(self.leaf)
        for (start, _), beside in zip(sides, self.path, strict=True):
            found = node_hash(beside, found) if start < self.place else node_hash(found, beside)
        return found


def inclusions(
    pieces: Iterable[Sequence[bytes]], places: Sequence[int], size: int
) -> list[Inclusion]:
    """Proofs for the leaves at these places of `size`, from one pass over all leaves, which come in
    pieces.
    """
    wanted = {place: _sides(place, size) for place in places}
    trees = {span: MerkleTree() for sides in wanted.values() for span in sides}
    found: dict[int, bytes] = {}
    begin = 0
    for piece in pieces:
        end = begin + len(piece)
        found |= {place: piece[place - begin] for place in wanted if begin <= place < end}
        for (start, stop), tree in trees.items():
            tree.add(piece[max(start, begin) - begin : max(min(stop, end) - begin, 0)])
        begin = end
    roots = {span: tree.root() for span, tree in trees.items()}
    return [
        Inclusion(found[place], place, size, tuple(roots[span] for span in wanted[place]))
        for place in places
    ]


def _sides(place: int, size: int) -> list[tuple[int, int]]:
    """The subtrees beside the way from a leaf to the root, the lowest first, each as the span of
    its leaves.
    """
    if not 0 <= place < size:
        raise ValueError(f"there is no leaf {place} among {size}")
    start, stop, found = 0, size, []
    while stop - start > 1:
        middle = start + (1 << (stop - start - 1).bit_length() - 1)
        if place < middle:
            found.append((middle, stop))
            stop = middle
        else:
            found.append((start, middle))
            start = middle
    return found[::-1]
