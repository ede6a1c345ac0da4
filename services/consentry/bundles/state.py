"""The content that a bundle is written from: newest records, controls, positions, freshness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from consentry.domain.controls import Controls
from consentry.domain.values import Micros
from consentry.wire.catalog import Catalog
from consentry.wire.controls import read_control_or_pause
from consentry.wire.freshness import Freshness
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.partitions import partitions_of
from consentry.wire.records import (
    DIGEST_BITS,
    DamagedRecord,
    is_ancestor,
    record_digest,
    verify_checksum,
    version_of,
)
from consentry.wire.schemas import CONTROLS, RECORDS

_MODULUS: Final = 1 << DIGEST_BITS


class StoredControl(NamedTuple):
    """A control's message in a bundle, as it stands in the log.

    `appended_at` is the broker's time, in microseconds.
    """

    offset: int
    appended_at: Micros
    value: bytes | None


class Regression(NamedTuple):
    """An older version of a record that came after a newer one, on the way into a bundle.

    `newest` is the record that is kept.
    """

    partition: int
    member: bytes
    newest: bytes
    arrived: bytes


class BundleState:
    """The state that a bundle is written from: every member's newest record, and all controls.

    The rules are those of a trainer's Snapshot.

    The rest is all that a manifest says. `catalog` reads the controls. `logs` are those of a
    manifest: the identities of the topics that are followed. One thread applies messages and writes
    bundles.
    """

    def __init__(
        self, partitions: int, catalog: Catalog, *, logs: Mapping[str, str] | None = None
    ) -> None:
        self.partitions = partitions
        self.catalog = catalog
        self.logs = dict(logs or {})
        self.controls = Controls(iso_jurisdictions())
        self.stored_controls: list[StoredControl] = []
        """Every control's message, in log order."""
        self.damaged: set[bytes] = set()
        """Members whom each reader of the bundle quarantines: bytes of theirs were not believed."""
        self.positions: dict[tuple[str, int], int] = {}
        """Next offset per (short topic name, partition)."""
        self.freshness = Freshness(partitions)
        self._records: dict[bytes, bytes] = {}
        self._before: dict[bytes, bytes | None] | None = None
        """The record in the last bundle, of each member who changed since; None: no bundle yet."""
        self._sums = [0] * partitions
        self._counts = [0] * partitions
        self._known_totals: tuple[list[int], list[int]] | None = None
        """The sums and counts as of now, until something changes."""

    # ---- taking messages in

    def apply_records(
        self,
        partition: int,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        on_regression: Callable[[Regression], None] | None = None,
    ) -> None:
        """Take record messages of one partition into the state of a bundle.

        It is done as Snapshot.apply_records does it.

        Older versions are ignored, and `on_regression` is called with each.
        """
        records = self._records
        homes = partitions_of(keys, self.partitions).tolist()
        for key, value, home in zip(keys, values, homes, strict=True):
            if home != partition:
                self.damage(key)
                continue
            try:
                verify_checksum(value, key)
            except DamagedRecord:
                self.damage(key)
                continue
            known = records.get(key)
            if known is None or version_of(known) <= version_of(value):
                if known != value:
                    self._note(key, known)
                    records[key] = value
                continue
            if not is_ancestor(value, known):
                self.damage(key)  # two histories of one member exist, and one lost an event
            if on_regression is not None:
                on_regression(Regression(partition, key, known, value))

    def apply_control(self, stored: StoredControl) -> None:
        """Take one control's message in; one that cannot be read pauses everything."""
        self.stored_controls.append(stored)
        control = read_control_or_pause(
            stored.value,
            offset=stored.offset,
            appended_at=stored.appended_at,
            catalog=self.catalog,
        )
        self.controls = self.controls.after(control)
        self.move(CONTROLS, 0, stored.offset + 1)

    def move(self, topic: str, partition: int, position: int) -> None:
        """Note how far a topic has been read into the state."""
        key = (topic, partition)
        self.positions[key] = max(position, self.positions.get(key, 0))

    def settle_frontiers(self) -> None:
        """Let the frontiers count whose positions have been reached by now."""
        self.freshness.settle(self.positions)

    def damage(self, member: bytes) -> None:
        """Quarantine a member for good: bytes of theirs cannot be believed."""
        if member not in self.damaged:
            self._note(member, self._records.get(member))
            self.damaged.add(member)

    def put(self, member: bytes, record: bytes | None, *, damaged: bool) -> None:
        """Set a member's record, as a row of a bundle says; None removes it."""
        self._note(member, self._records.get(member))
        if record is None:
            self._records.pop(member, None)
        else:
            self._records[member] = record
        if damaged:
            self.damaged.add(member)
        else:
            self.damaged.discard(member)

    def _note(self, member: bytes, record: bytes | None) -> None:
        self._known_totals = None
        if self._before is not None:
            self._before.setdefault(member, record)

    # ---- asking

    def __len__(self) -> int:
        return len(self._records)

    def get(self, member: bytes) -> bytes | None:
        """Return the bytes of a member's record, or None."""
        return self._records.get(member)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Return every member with a record, in no order."""
        return iter(self._records.items())

    def members(self) -> list[bytes]:
        """Return everybody of whom a bundle has a row."""
        without_record = [member for member in self.damaged if member not in self._records]
        return [*self._records, *without_record]

    @property
    def changed(self) -> list[bytes] | None:
        """The members whose row may differ from the last bundle's; None without one."""
        if self._before is None:
            return None
        return list(self._before)

    @property
    def newest_policy(self) -> str | None:
        """The version of the policy that stands last in the log."""
        policies = self.controls.policies
        if not policies:
            return None
        return policies[-1].version

    @property
    def purposes(self) -> tuple[str, ...]:
        """Every purpose that any policy names, sorted."""
        return tuple(sorted(self.controls.purposes))

    def position(self, topic: str, partition: int) -> int:
        """Return the next offset to read of a topic's partition."""
        return self.positions.get((topic, partition), 0)

    def records_offset(self, partition: int) -> int:
        """Return the next offset of records to read."""
        return self.position(RECORDS, partition)

    # ---- digests, and what changed since a bundle

    def digests(self) -> list[str]:
        """Return per partition the sum of all records' digests, as Snapshot.digests() does."""
        sums, _ = self._totals()
        return [f"{total:032x}" for total in sums]

    def counts(self) -> list[int]:
        """Return the number of members with a record, per partition."""
        _, counts = self._totals()
        return list(counts)

    def mark(self) -> None:
        """Count changes from here on: a bundle of this state was written."""
        self._sums, self._counts = self._totals()
        self._before = {}

    def _totals(self) -> tuple[list[int], list[int]]:
        """Return the sums and counts as of now: those of the last bundle, and each change."""
        if self._known_totals is not None:
            return self._known_totals
        sums, counts = list(self._sums), list(self._counts)
        changed = self.changed
        if changed is None:
            changed = list(self._records)
        partitions = partitions_of(changed, self.partitions).tolist()
        for member, partition in zip(changed, partitions, strict=True):
            before = None if self._before is None else self._before[member]
            now = self._records.get(member)
            if before is not None:
                sums[partition] -= record_digest(member, before)
                counts[partition] -= 1
            if now is not None:
                sums[partition] += record_digest(member, now)
                counts[partition] += 1
        sums = [total % _MODULUS for total in sums]
        self._known_totals = (sums, counts)
        return self._known_totals
