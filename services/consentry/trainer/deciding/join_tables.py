"""The whole decision as small tables to join with, for engines that no Python function should run
in.

Three left joins decide a row: its member gives a *standing*, its jurisdiction a *place*, its
category a *kind*. With the number of cut-offs that its time of collection has reached they make one
code, and `answers` has the reason for each. Every answer is one of the one rule function,
domain.decisions.decide_state: nothing here knows a rule.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consentry.domain.controls import Controls, PauseImposed
from consentry.domain.decisions import NOBODY, UNREADABLE, MemberState, Row, decide_state
from consentry.domain.jurisdictions import ANYWHERE
from consentry.domain.values import Micros
from consentry.trainer.deciding.decide_table import REASONS
from consentry.trainer.deciding.member_classes import QUARANTINED_CLASS, ControlBoundaries
from consentry.trainer.deciding.snapshot import Snapshot

_SIDE_BY_SIDE: Final = 1 << 20
"""Members looked up at once: bounds what is held beside the table that is made."""
_NO_CODE: Final = "?"


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinTables:
    """What every row is joined with.

    The keys of each table are distinct, so that no join multiplies a row.

    `members` (member_id string, standing int32) has everybody of whom something is recorded;
    whoever is not in it has the standing `nobody`, or `held` where the id is null or malformed or
    its partition is among `tainted`. `places` (jurisdiction string, place int32) has every known
    code: null is the place `no_place`, any other text `unknown_place`. `kinds` (category string,
    kind int32) has the categories that controls name: null is `no_kind`, any other `other_kind`.
    `cut_offs`, in microseconds and ascending: a row's number is how many its time of collection has
    reached, 0 where nobody knows when.

    `answers` (code int64, reason int8) has a place in filter.REASONS for each `code`.
    """

    snapshot_id: str
    members: pa.Table
    places: pa.Table
    kinds: pa.Table
    cut_offs: tuple[Micros, ...]
    answers: pa.Table
    nobody: int
    quarantined: int
    no_place: int
    unknown_place: int
    no_kind: int
    other_kind: int
    sizes: tuple[int, int, int]
    """How many places, kinds and counts of cut-offs there are; a code is standing, place, kind,
    count in these bases
    """
    partitions: int
    tainted: frozenset[int]


def decision_tables(
    snapshot: Snapshot, *, purpose: str, at: Micros, known_at: Micros
) -> JoinTables:
    """The tables that decide as `snapshot` does for `purpose`; times in microseconds since
    1970-01-01 UTC.

    They do not move: what is recorded later is not in them. Rows that name no jurisdiction,
    category or time of collection at all have their null. The tables hold member ids: whoever
    writes them down keeps them as such.
    """
    snapshot_id = (
        snapshot.snapshot_id
    )  # asked first: what comes while the tables are made may be in them, never the other way round
    boundaries = snapshot.boundaries
    controls = boundaries.controls
    categories = sorted(boundaries.categories)
    other = max(categories, default="") + "*"
    kinds: list[str | None] = [None, other, *categories]
    codes = _places_alike(controls, kinds, purpose=purpose, at=at, known_at=known_at)
    places: list[str | None] = [None, _NO_CODE, *sorted(set(codes.values()))]
    collected: list[Micros | None] = [None, *boundaries.cut_offs]

    numbered = _MemberStates(codes, boundaries.voiding)
    members = _members(snapshot, numbered, boundaries, purpose=purpose, at=at, known_at=known_at)
    rows = [
        Row(jurisdiction=one[0], category=one[1], collected=one[2])
        for one in product(places, kinds, collected)
    ]
    answers = np.array(
        [
            REASONS.index(
                decide_state(own, row, controls, purpose=purpose, at=at, known_at=known_at).reason
            )
            for own in numbered.found
            for row in rows
        ],
        dtype=np.int8,
    )
    place_of = {place: number for number, place in enumerate(places)}
    return JoinTables(
        snapshot_id=snapshot_id,
        members=members,
        places=_table(
            "jurisdiction", codes, "place", [place_of[alike] for alike in codes.values()]
        ),
        kinds=_table("category", categories, "kind", range(2, len(kinds))),
        cut_offs=boundaries.cut_offs,
        answers=pa.table(
            {"code": pa.array(np.arange(len(answers), dtype=np.int64)), "reason": pa.array(answers)}
        ),
        nobody=numbered.number(NOBODY),
        quarantined=_MemberStates.QUARANTINED,
        no_place=0,
        unknown_place=1,
        no_kind=0,
        other_kind=1,
        sizes=(len(places), len(kinds), len(collected)),
        partitions=snapshot.partitions,
        tainted=frozenset(snapshot.freshness.tainted),
    )


def _table(key: str, keys: Iterable[str], value: str, values: Iterable[int]) -> pa.Table:
    return pa.table(
        {key: pa.array(list(keys), pa.string()), value: pa.array(list(values), pa.int32())}
    )


class _MemberStates:
    """The standings that answers are asked for: members whom no row tells apart share one."""

    QUARANTINED: Final = 0

    def __init__(self, codes: Mapping[str, str], voiding: Sequence[Micros]) -> None:
        self._codes = codes
        self._voiding = voiding
        self.found: Final = [UNREADABLE]
        self._numbers = {UNREADABLE.equivalence_key(voiding): self.QUARANTINED}

    def number(self, own: MemberState) -> int:
        """The place of the standing in `found`."""
        if own.relocation is not None:
            alike = self._codes.get(own.relocation.name, _NO_CODE)
            own = own._replace(relocation=own.relocation._replace(name=alike))
        found = self._numbers.setdefault(own.equivalence_key(self._voiding), len(self.found))
        if found == len(self.found):
            self.found.append(own)
        return found


def _members(
    snapshot: Snapshot,
    numbered: _MemberStates,
    boundaries: ControlBoundaries,
    *,
    purpose: str,
    at: Micros,
    known_at: Micros,
) -> pa.Table:
    """Everybody of whom something is recorded, or who is quarantined, with the number of their
    standing.
    """
    member_classes = snapshot.member_classes(purpose, boundaries.voiding)
    # The follower may take records in meanwhile: one list of members, and on both sides of it who
    # is quarantined, so that nobody who is recorded or held at this moment falls between the two.
    quarantined_before = snapshot.quarantined
    keys = list(snapshot.records)
    only_quarantined = set(quarantined_before | snapshot.quarantined)
    only_quarantined.difference_update(keys)
    classes = [
        snapshot.classes(
            keys[start : start + _SIDE_BY_SIDE], member_classes, at=at, known_at=known_at
        )
        for start in range(0, len(keys), _SIDE_BY_SIDE)
    ]
    # A class is a place in `standings`, which grows while classes are found: so it is read only
    # now.
    numbers = np.array([numbered.number(own) for own in member_classes.standings], dtype=np.int32)
    assert numbers[QUARANTINED_CLASS] == _MemberStates.QUARANTINED
    found: npt.NDArray[np.int32] = (
        numbers[np.concatenate(classes)] if classes else np.zeros(0, dtype=np.int32)
    )
    # Of some who are quarantined nothing else is recorded.
    ids = pa.array([*keys, *sorted(only_quarantined)], pa.binary()).cast(pa.string())
    held = np.full(len(only_quarantined), _MemberStates.QUARANTINED, dtype=np.int32)
    return pa.table({"member_id": ids, "standing": pa.array(np.concatenate([found, held]))})


def _places_alike(
    controls: Controls, kinds: Sequence[str | None], *, purpose: str, at: Micros, known_at: Micros
) -> dict[str, str]:
    """For each known code one that stands for all on which the controls bear in the same way."""
    named = frozenset((ANYWHERE, *_named(controls)))
    by_holders: dict[frozenset[str], str] = {}
    by_bearing: dict[Hashable, str] = {}
    alike = {}
    for code in sorted(controls.jurisdictions.codes):
        holders = controls.jurisdictions.holders(code, at=at) & named
        first = by_holders.get(holders)
        if first is None:
            bearing = tuple(_bearing(controls, code, kind, purpose, at, known_at) for kind in kinds)
            first = by_holders[holders] = by_bearing.setdefault(bearing, code)
        alike[code] = first
    return alike


def _named(controls: Controls) -> Iterable[str]:
    """Every entry that stands in the scope of a pause or of terms."""
    for control in controls.log:
        if isinstance(control, PauseImposed):
            yield from control.scope.jurisdictions
    for policy in controls.policies:
        for terms in policy.terms:
            yield from terms.jurisdictions


def _bearing(
    controls: Controls, code: str, kind: str | None, purpose: str, at: Micros, known_at: Micros
) -> tuple[Hashable, ...]:
    """What `decider` is told by the controls of a place, but for the names that no answer depends
    on.
    """
    found = controls.bearing(code, purpose, kind, at=at, known_at=known_at)
    terms = found.terms and replace(found.terms, jurisdictions=())
    lift = found.voiding_lift and found.voiding_lift.recorded_at
    return found.pause is not None, found.policy is not None, terms, lift
