"""The snapshot in a trainer's memory: the records, the controls, and how fresh both are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from consentry.domain.controls import Control, Controls
from consentry.domain.decisions import Decision, Ground, Row, decide, stale
from consentry.domain.jurisdictions import Jurisdictions
from consentry.domain.records import Record
from consentry.domain.values import MemberId, Micros, Reason
from consentry.record_index import Keys, RecordIndex, Segment, TextKeys
from consentry.trainer.deciding.member_classes import (
    QUARANTINED_CLASS,
    ControlBoundaries,
    MemberClasses,
)
from consentry.wire.freshness import FOREVER, Freshness
from consentry.wire.frontiers import Frontier
from consentry.wire.partitions import partition_of, partitions_of
from consentry.wire.records import (
    DIGEST_BITS,
    DamagedRecord,
    is_ancestor,
    read_record,
    record_digest,
    verify_checksum,
)
from consentry.wire.tokens import Token

_SIDE_BY_SIDE: Final = 65_536
_PURPOSES_MAX: Final = 8
"""For so many purposes it is remembered which members stand alike."""


class Snapshot:
    """The trainer's snapshot: records and controls as of a position, and proof of freshness.

    One thread applies messages, others may ask meanwhile: each answer sees a record and the
    controls as they are at that moment. `partitions` is the partition count of records.
    """

    def __init__(
        self, partitions: int, jurisdictions: Jurisdictions, segments: Sequence[Segment] = ()
    ) -> None:
        self.partitions = partitions
        self.controls = Controls(jurisdictions)
        self.records = RecordIndex(segments)
        self.regressions = 0
        self.positions: dict[tuple[str, int], int] = {}
        """Next offset per (short topic name, partition)."""
        self.freshness = Freshness(partitions)
        self._quarantined: set[bytes] = set()
        self._boundaries = ControlBoundaries(self.controls)
        self._member_classes: dict[str, MemberClasses] = {}

    def __getstate__(self) -> dict[str, Any]:
        # What answers were found so far belongs to the process that was asked, and to its threads.
        return self.__dict__ | {
            "_member_classes": {},
            "_boundaries": ControlBoundaries(self.controls),
        }

    def apply_records(self, partition: int, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Take record messages of one partition into the trainer's snapshot.

        An older version than the one held is ignored and counted.
        """
        good, homes = [], partitions_of(keys, self.partitions).tolist()
        for key, value, home in zip(keys, values, homes, strict=True):
            if home != partition:
                # Some producer put the member on a foreign partition: its events have no order with
                # the others.
                self._quarantined.add(key)
                continue
            try:
                verify_checksum(value, key)
            except DamagedRecord:
                self._quarantined.add(key)
                continue
            good.append((key, value))
        for member, held, older in self.records.apply(*zip(*good, strict=True)) if good else ():
            self.regressions += 1
            if not is_ancestor(older, held):
                # Not an older state of what is held: two histories of one member exist, and one
                # lost an event.
                self._quarantined.add(member)

    def quarantine(self, members: Iterable[bytes]) -> None:
        """Quarantine members in the snapshot for good: something could not be believed."""
        self._quarantined.update(members)

    @property
    def quarantined(self) -> frozenset[bytes]:
        """The members who are quarantined in this snapshot for good."""
        return frozenset(self._quarantined)

    def apply_control(self, control: Control) -> None:
        """Take one control into the trainer's snapshot."""
        self.controls = self.controls.after(control)

    def apply_frontier(self, frontier: Frontier, appended_at: Micros = FOREVER) -> None:
        """Take a frontier into the trainer's snapshot; see Freshness."""
        self.freshness.apply(frontier, appended_at)

    def settle_frontiers(self) -> None:
        """Let the snapshot's frontiers count whose positions were reached by now."""
        self.freshness.settle(self.positions)

    def missing(self, token: Token) -> str:
        """Return what a token demands and the snapshot still lacks; empty if it has all."""
        return self.freshness.missing(token, self.positions)

    def staleness_seconds(self, now: Micros) -> float:
        """Return the age of the snapshot's least fresh partition, in seconds.

        It is infinite while any has never been proven fresh.
        """
        return self.freshness.staleness_seconds(now)

    @property
    def newest_frontier(self) -> Micros:
        """The latest time that any partition of the snapshot was proven fresh for."""
        return self.freshness.newest

    @property
    def snapshot_id(self) -> str:
        """The name of all that the snapshot's answers rest on.

        It is equal only where the same records and controls were read.
        """
        told = hashlib.blake2b(digest_size=16)
        logs = {partition: frontier.log for partition, frontier in self.freshness.counted().items()}
        told.update(
            json.dumps([sorted(dict(self.positions).items()), sorted(logs.items())]).encode()
        )
        return told.hexdigest()

    def record(self, member: MemberId) -> Record | None:
        """Return the member's record in the snapshot, or None. Raises DamagedRecord."""
        key = member.encode()
        raw = self.records.get(key)
        return None if raw is None else read_record(raw, key)

    def is_quarantined(self, member: bytes) -> bool:
        """Return True if the snapshot excludes a member as something could not be read."""
        tainted = self.freshness.tainted
        return member in self._quarantined or (
            bool(tainted) and partition_of(member, self.partitions) in tainted
        )

    @property
    def boundaries(self) -> ControlBoundaries:
        """The boundaries that the snapshot's present controls draw between members."""
        found = self._boundaries
        if found.controls is not self.controls:
            found = self._boundaries = ControlBoundaries(self.controls)
        return found

    def member_classes(self, purpose: str, opt_ins_voided_at: tuple[Micros, ...]) -> MemberClasses:
        """Return the snapshot's members by classes that get the same answers.

        The answers are those for this purpose. `opt_ins_voided_at` is that of the boundaries asked
        under.
        """
        found = self._member_classes.get(purpose)
        if found is None or found.opt_ins_voided_at != opt_ins_voided_at:
            found = MemberClasses(purpose, opt_ins_voided_at)
            kept = [item for item in self._member_classes.items() if item[0] != purpose][
                1 - _PURPOSES_MAX :
            ]
            # Another dict, as the thread that applies records may be going through this one.
            self._member_classes = {**dict(kept), purpose: found}
        return found

    def classes(
        self,
        members: Sequence[bytes] | Keys,
        member_classes: MemberClasses,
        *,
        at: Micros,
        known_at: Micros,
    ) -> npt.NDArray[np.int32]:
        """Return the class of each member in the snapshot: a place in `member_classes.states`.

        Times are in microseconds.
        """
        keys = TextKeys.of(members) if isinstance(members, Sequence) else members
        found = self.records.find(keys)
        live = set(self.records.segments()) | {one.segment for one in found}
        classes = member_classes.classes(found, len(keys), live, at=at, known_at=known_at)
        if self._quarantined:
            held = list(self._quarantined)
            classes[
                Segment.of(held, [b""] * len(held)).find(keys, keys.hashes(decimals=True)) >= 0
            ] = QUARANTINED_CLASS
        if self.freshness.tainted:
            homes = partitions_of(keys.to_list(), self.partitions)
            classes[np.isin(homes, list(self.freshness.tainted))] = QUARANTINED_CLASS
        return classes

    def decide(
        self,
        member: MemberId,
        row: Row | None,
        *,
        purpose: str,
        at: Micros,
        known_at: Micros,
        stale_detail: str,
    ) -> Decision:
        """Decide one member or row by the trainer's snapshot.

        `stale_detail` is not empty where freshness is not proven.
        """
        if stale_detail:
            return stale(stale_detail)
        if self.is_quarantined(member.encode()):
            return QUARANTINED
        try:
            record = self.record(member)
        except DamagedRecord:
            return QUARANTINED
        return decide(record, row, self.controls, purpose=purpose, at=at, known_at=known_at)

    def digests(self) -> dict[int, str]:
        """Return a digest over the snapshot's records in each partition.

        It is the sum of their digests: equal exactly where the same records are held.
        """
        sums = dict.fromkeys(range(self.partitions), 0)
        pairs = self.records.pairs()
        while some := list(islice(pairs, _SIDE_BY_SIDE)):
            homes = partitions_of([member for member, _ in some], self.partitions).tolist()
            for (member, record), home in zip(some, homes, strict=True):
                sums[home] = (sums[home] + record_digest(member, record)) % (1 << DIGEST_BITS)
        return {partition: f"{total:032x}" for partition, total in sums.items()}


QUARANTINED: Final = Decision(
    False,
    Reason.QUARANTINED,
    (Ground(Reason.QUARANTINED, "something about the member could not be read"),),
)
