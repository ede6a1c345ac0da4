"""The trainer's decision as small tables to join with, for engines that call no Python.

Three left joins decide a row: its member gives a *state*, its jurisdiction a *place*, its
category a *kind*. With the number of cut-offs that its time of collection has reached they make one
code, and `answers` has the reason for each. Every answer is that of the one rule function,
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

_CHUNK_MEMBERS: Final = 1 << 20
"""Members looked up at once: bounds the memory used beside the table that is made."""
_NO_CODE: Final = "?"
"""The jurisdiction that stands for every text that is not a known code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinTables:
    """The tables that a trainer's rows are joined with to decide them.

    Their keys are distinct, so no join adds rows.

    - `members` (member_id string, state int32): every member of whom something is recorded. Any
      other member has the state `nobody`; or `quarantined` where the id is null or malformed, or
      its partition is among `tainted`.
    - `places` (jurisdiction string, place int32): every known code. Null is the place `no_place`,
      any other text `unknown_place`.
    - `kinds` (category string, kind int32): the categories that controls name. Null is `no_kind`,
      any other text `other_kind`.
    - `cut_offs`: in microseconds, ascending. A row's number is that of the cut-offs its time of
      collection has reached, 0 where that time is not known.
    - `answers` (code int64, reason int8): an index in decide_table.REASONS for each code. A code is
      made of state, place, kind and number of cut-offs, in the bases `sizes` of the last three.
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
    partitions: int
    tainted: frozenset[int]


def decision_tables(
    snapshot: Snapshot, *, purpose: str, at: Micros, known_at: Micros
) -> JoinTables:
    """Return the tables to join a trainer's rows with, which decide as `snapshot` does.

    They decide for `purpose`. Times in microseconds since 1970-01-01 UTC. Nothing recorded later
    is in the tables. Rows without a jurisdiction, category or time of collection have its null.
    The tables hold member ids: whoever stores them keeps them as such.
    """
    # Asked first: a record that arrives while the tables are made may be in them, and not in the
    # id; the other way round, the id would promise what the tables do not have.
    snapshot_id = snapshot.snapshot_id
    boundaries = snapshot.boundaries
    controls = boundaries.controls
    categories = sorted(boundaries.categories)
    other = max(categories, default="") + "*"
    kinds: list[str | None] = [None, other, *categories]
    representatives = _representatives(controls, kinds, purpose=purpose, at=at, known_at=known_at)
    places: list[str | None] = [None, _NO_CODE, *sorted(set(representatives.values()))]
    collected: list[Micros | None] = [None, *boundaries.cut_offs]

    states = _MemberStates(representatives, boundaries.opt_ins_voided_at)
    members = _members(snapshot, states, boundaries, purpose=purpose, at=at, known_at=known_at)
    rows = [
        Row(jurisdiction=place, category=kind, collected=time)
        for place, kind, time in product(places, kinds, collected)
    ]
    reasons = []
    for own in states.distinct:
        for row in rows:
            decision = decide_state(own, row, controls, purpose=purpose, at=at, known_at=known_at)
            reasons.append(REASONS.index(decision.reason))
    codes = np.arange(len(reasons), dtype=np.int64)
    reason_numbers = np.array(reasons, dtype=np.int8)
    answers = pa.table({"code": pa.array(codes), "reason": pa.array(reason_numbers)})
    place_numbers = {place: number for number, place in enumerate(places)}
    numbers_of_codes = [place_numbers[code] for code in representatives.values()]
    return JoinTables(
        snapshot_id=snapshot_id,
        members=members,
        places=_table("jurisdiction", representatives, "place", numbers_of_codes),
        kinds=_table("category", categories, "kind", range(2, len(kinds))),
        cut_offs=boundaries.cut_offs,
        answers=answers,
        nobody=states.number(NOBODY),
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
    key_column = pa.array(list(keys), pa.string())
    value_column = pa.array(list(values), pa.int32())
    return pa.table({key: key_column, value: value_column})


class _MemberStates:
    """The states that answers are computed for: members whom no row can tell apart share one.

    `representatives` is that of `_representatives`.
    """

    QUARANTINED: Final = 0

    def __init__(
        self, representatives: Mapping[str, str], opt_ins_voided_at: Sequence[Micros]
    ) -> None:
        self._representatives = representatives
        self._opt_ins_voided_at = opt_ins_voided_at
        self.distinct: Final = [UNREADABLE]
        self._numbers = {UNREADABLE.equivalence_key(opt_ins_voided_at): self.QUARANTINED}

    def number(self, own: MemberState) -> int:
        """Return the index of a state in `distinct`, where it is added if it is new."""
        if own.relocation is not None:
            code = self._representatives.get(own.relocation.name, _NO_CODE)
            own = own._replace(relocation=own.relocation._replace(name=code))
        key = own.equivalence_key(self._opt_ins_voided_at)
        number = self._numbers.setdefault(key, len(self.distinct))
        if number == len(self.distinct):
            self.distinct.append(own)
        return number


def _members(
    snapshot: Snapshot,
    states: _MemberStates,
    boundaries: ControlBoundaries,
    *,
    purpose: str,
    at: Micros,
    known_at: Micros,
) -> pa.Table:
    """Return every member who has a record or is quarantined, with the number of their state."""
    member_classes = snapshot.member_classes(purpose, boundaries.opt_ins_voided_at)
    # The follower may take records in meanwhile: one list of members, and on both sides of it those
    # who are quarantined, so that nobody recorded or quarantined now falls between the two.
    quarantined_before = snapshot.quarantined
    keys = list(snapshot.records)
    only_quarantined = set(quarantined_before | snapshot.quarantined)
    only_quarantined.difference_update(keys)
    classes = [np.zeros(0, dtype=np.int32)]
    for start in range(0, len(keys), _CHUNK_MEMBERS):
        chunk = keys[start : start + _CHUNK_MEMBERS]
        classes.append(snapshot.classes(chunk, member_classes, at=at, known_at=known_at))
    # Read only now: a class is an index in `states`, which grows while classes are looked up.
    number_of_class = np.array(
        [states.number(own) for own in member_classes.states], dtype=np.int32
    )
    assert number_of_class[QUARANTINED_CLASS] == _MemberStates.QUARANTINED
    recorded: npt.NDArray[np.int32] = number_of_class[np.concatenate(classes)]
    # Of some who are quarantined nothing else is recorded.
    quarantined = np.full(len(only_quarantined), _MemberStates.QUARANTINED, dtype=np.int32)
    ids = pa.array([*keys, *sorted(only_quarantined)], pa.binary()).cast(pa.string())
    return pa.table({"member_id": ids, "state": pa.array(np.concatenate([recorded, quarantined]))})


def _representatives(
    controls: Controls, kinds: Sequence[str | None], *, purpose: str, at: Micros, known_at: Micros
) -> dict[str, str]:
    """Return for each known code one that stands for all codes with the same applicable controls.

    `kinds` are the categories that a row may have. Times in microseconds.
    """
    named = frozenset((ANYWHERE, *_named(controls)))
    by_holders: dict[frozenset[str], str] = {}
    by_applicable: dict[Hashable, str] = {}
    representatives = {}
    for code in sorted(controls.jurisdictions.codes):
        # Codes inside the same scope entries need no second look.
        holders = controls.jurisdictions.holders(code, at=at) & named
        representative = by_holders.get(holders)
        if representative is None:
            applicable = tuple(
                _applicable(controls, code, kind, purpose, at, known_at) for kind in kinds
            )
            representative = by_applicable.setdefault(applicable, code)
            by_holders[holders] = representative
        representatives[code] = representative
    return representatives


def _named(controls: Controls) -> Iterable[str]:
    """Yield every entry that stands in the scope of a pause or of terms."""
    for control in controls.log:
        if isinstance(control, PauseImposed):
            yield from control.scope.jurisdictions
    for policy in controls.policies:
        for terms in policy.terms:
            yield from terms.jurisdictions


def _applicable(
    controls: Controls, code: str, kind: str | None, purpose: str, at: Micros, known_at: Micros
) -> tuple[Hashable, ...]:
    """Return everything in the applicable controls that an answer, not its grounds, depends on."""
    applicable = controls.applicable(code, purpose, kind, at=at, known_at=known_at)
    terms = applicable.terms
    if terms is not None:
        terms = replace(terms, jurisdictions=())
    lift_recorded_at = None
    if applicable.voiding_lift is not None:
        lift_recorded_at = applicable.voiding_lift.recorded_at
    is_paused = applicable.pause is not None
    has_policy = applicable.policy is not None
    return is_paused, has_policy, terms, lift_recorded_at
