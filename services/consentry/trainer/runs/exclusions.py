"""The digest of all members excluded whatever a row says, for a training run's certificate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import numpy as np

from consentry.domain.values import Micros
from consentry.trainer.deciding.member_classes import MemberClasses
from consentry.trainer.deciding.snapshot import Snapshot

EXCLUDED_WHATEVER_THE_ROW: Final = (
    "SHA-256 over the ids, in the order of their bytes, each followed by a line end, of all "
    "members whose record alone excludes them for the purpose, whatever a row, a pause or terms "
    "say: erased, quarantined, history folded, or the last choice that counts is no opt-in; at "
    "the time the run ended, by what was recorded up to known_at_end"
)
"""The definition of `exclusions`, as the certificate states it. Part of a signed document:
from the first release on it changes only with a new format."""
_CHUNK_ROWS: Final = 16_384


class ExcludedMembers(NamedTuple):
    """A certificate's number of members excluded for every row, and their ids' digest.

    See EXCLUDED_WHATEVER_THE_ROW. `undated` of them are quarantined, or their history is folded: of
    these a later snapshot may say otherwise about the same time.
    """

    member_count: int
    digest: str
    undated: int


def excluded_members(
    snapshot: Snapshot, *, purpose: str, at: Micros, known_at: Micros
) -> ExcludedMembers:
    """Return the certificate's digest of the members excluded whatever a row says.

    Times in microseconds.
    """
    excluded: list[bytes] = []
    undated = 0
    for members in _chunks(snapshot.records):
        # Classes of its own: answers about the past must not be remembered for questions about now.
        member_classes = MemberClasses(purpose, snapshot.boundaries.opt_ins_voided_at)
        classes = snapshot.classes(members, member_classes, at=at, known_at=known_at)
        states = member_classes.states
        is_excluded = np.array([state.is_excluded_by_own_facts for state in states])
        is_undated = np.array([state.is_folded or state.quarantine is not None for state in states])
        undated += int(is_undated[classes].sum())
        excluded += [members[index] for index in np.flatnonzero(is_excluded[classes]).tolist()]
    return ExcludedMembers(len(excluded), "sha256:" + _digest(excluded), undated)


def _digest(members: list[bytes]) -> str:
    """Return the SHA-256 over the ids in the order of their bytes, each followed by a line end."""
    digest = hashlib.sha256()
    for chunk in _chunks(sorted(members)):
        digest.update(b"\n".join(chunk) + b"\n")
    return digest.hexdigest()


def _chunks(members: Iterable[bytes]) -> Iterator[list[bytes]]:
    remaining = iter(members)
    while chunk := list(islice(remaining, _CHUNK_ROWS)):
        yield chunk
