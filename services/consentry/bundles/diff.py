"""The difference between two bundles: members added, changed, removed, newly excluded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from consentry.bundles.reader import Bundle

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The difference between two bundles, as sorted member ids.

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
        """True if both bundles hold the same records and controls."""
        differences = (
            self.added,
            self.changed,
            self.removed,
            self.controls_added,
            self.controls_removed,
            *self.newly_excluded.values(),
            *self.no_longer_excluded.values(),
        )
        return not any(differences)


class _RecordSummary(NamedTuple):
    """The parts of a member that are compared; the record itself is not kept."""

    digest: bytes
    is_damaged: bool
    purposes: frozenset[str]
    """Those that the member's own facts exclude."""

    def is_other_than(self, other: _RecordSummary) -> bool:
        """Say whether the record, or what is known of it, differs."""
        return (self.digest, self.is_damaged) != (other.digest, other.is_damaged)


def compare(before: Bundle, after: Bundle) -> Difference:
    """Return what changed from one bundle to another. Raises BundleRefused, Unavailable."""
    old, new = _members(before), _members(after)
    old_controls, new_controls = _controls(before), _controls(after)
    purposes = sorted({*before.manifest.purposes, *after.manifest.purposes})
    in_both = new.keys() & old.keys()
    changed = [member for member in in_both if new[member].is_other_than(old[member])]
    newly_excluded: dict[str, tuple[str, ...]] = {}
    no_longer_excluded: dict[str, tuple[str, ...]] = {}
    for purpose in purposes:
        newly_excluded[purpose] = _only_in(new, old, purpose)
        no_longer_excluded[purpose] = _only_in(old, new, purpose)
    return Difference(
        added=tuple(sorted(new.keys() - old.keys())),
        changed=tuple(sorted(changed)),
        removed=tuple(sorted(old.keys() - new.keys())),
        newly_excluded=newly_excluded,
        no_longer_excluded=no_longer_excluded,
        controls_added=len(new_controls - old_controls),
        controls_removed=len(old_controls - new_controls),
    )


def _controls(bundle: Bundle) -> set[tuple[int, bytes | None]]:
    return {(control.offset, control.value) for control in bundle.controls()}


def _only_in(
    here: Mapping[str, _RecordSummary], there: Mapping[str, _RecordSummary], purpose: str
) -> tuple[str, ...]:
    """Return the members whom the first excludes and the second does not."""
    members: list[str] = []
    for member, summary in here.items():
        other = there.get(member)
        is_excluded_there = other is not None and purpose in other.purposes
        if purpose in summary.purposes and not is_excluded_there:
            members.append(member)
    return tuple(sorted(members))


def _members(bundle: Bundle) -> dict[str, _RecordSummary]:
    purposes = bundle.manifest.purposes
    exclusion_columns = [f"own_exclusion_{purpose}" for purpose in purposes]
    names = ("member_id", "record", "damaged", *exclusion_columns)
    members: dict[str, _RecordSummary] = {}
    for batch in bundle.record_batches(columns=None):
        columns = [batch.column(name).to_pylist() for name in names]
        for member, record, is_damaged, *exclusions in zip(*columns, strict=True):
            if record is None and not is_damaged:
                members.pop(member, None)
                continue
            digest = b"" if record is None else blake2b(record, digest_size=_DIGEST_BYTES).digest()
            excluded = zip(purposes, exclusions, strict=True)
            members[member] = _RecordSummary(
                digest,
                is_damaged,
                frozenset(purpose for purpose, is_excluded in excluded if is_excluded),
            )
    return members
