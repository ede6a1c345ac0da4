"""What lies between two bundles: who came, whose record changed, who is excluded that was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from consentry.bundles.reader import Bundle

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Member ids, sorted.

    `newly_excluded` and `no_longer_excluded` are by purpose, by the members' own facts.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    newly_excluded: Mapping[str, tuple[str, ...]]
    no_longer_excluded: Mapping[str, tuple[str, ...]]
    controls_added: int
    controls_removed: int

    @property
    def is_empty(self) -> bool:
        """Whether both hold the same records and controls."""
        moved = any(
            (self.added, self.changed, self.removed, self.controls_added, self.controls_removed)
        )
        return (
            not moved
            and not any(self.newly_excluded.values())
            and not any(self.no_longer_excluded.values())
        )


class _RecordSummary(NamedTuple):
    """What is compared of a member, without holding the record."""

    digest: bytes
    is_damaged: bool
    purposes: frozenset[str]


def compare(before: Bundle, after: Bundle) -> Difference:
    """What changed from one bundle to the other. Raises BundleRefused, Unavailable."""
    old, new = _members(before), _members(after)
    controls = [
        {(one.offset, one.value) for one in bundle.controls()} for bundle in (before, after)
    ]
    purposes = sorted({*before.manifest.purposes, *after.manifest.purposes})
    return Difference(
        added=tuple(sorted(new.keys() - old.keys())),
        changed=tuple(
            sorted(one for one in new.keys() & old.keys() if new[one][:2] != old[one][:2])
        ),
        removed=tuple(sorted(old.keys() - new.keys())),
        newly_excluded={purpose: _only_in(new, old, purpose) for purpose in purposes},
        no_longer_excluded={purpose: _only_in(old, new, purpose) for purpose in purposes},
        controls_added=len(controls[1] - controls[0]),
        controls_removed=len(controls[0] - controls[1]),
    )


def _only_in(
    here: Mapping[str, _RecordSummary], there: Mapping[str, _RecordSummary], purpose: str
) -> tuple[str, ...]:
    """Whom the first excludes and the second does not."""
    found = (one for one, held in here.items() if purpose in held.purposes)
    return tuple(
        sorted(one for one in found if one not in there or purpose not in there[one].purposes)
    )


def _members(bundle: Bundle) -> dict[str, _RecordSummary]:
    purposes = bundle.manifest.purposes
    found: dict[str, _RecordSummary] = {}
    for batch in bundle.record_batches(columns=None):
        names = (
            "member_id",
            "record",
            "damaged",
            *(f"own_exclusion_{purpose}" for purpose in purposes),
        )
        for member, record, is_damaged, *excluded in zip(
            *(batch.column(name).to_pylist() for name in names), strict=True
        ):
            if record is None and not is_damaged:
                found.pop(member, None)
                continue
            digest = b"" if record is None else blake2b(record, digest_size=_DIGEST_BYTES).digest()
            held = frozenset(
                purpose for purpose, one in zip(purposes, excluded, strict=True) if one
            )
            found[member] = _RecordSummary(digest, is_damaged, held)
    return found
