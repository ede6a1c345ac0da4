"""Finds out for hooks if a change narrows use: if it may exclude somebody who was not before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Final

from consentry.domain.controls import Control, PauseLifted, PolicyPublished
from consentry.domain.decisions import MemberState, Row, decide_state, member_state
from consentry.domain.records import Record
from consentry.domain.values import AgeBand, Micros, Reason
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.freshness import FOREVER
from consentry.wire.records import DamagedRecord, read_record

_PROBES_MAX: Final = 256
_AGES: Final = (AgeBand.MINOR, AgeBand.UNKNOWN, AgeBand.ADULT)
"""An earlier age band is refused wherever a later one is."""

StoredState = tuple[bytes | None, bool]
"""The snapshot's state of one member: the record's bytes, and whether the member is quarantined."""
EarlierStates = Mapping[bytes, Sequence[StoredState]]
"""By member the states before the newest one, each of which a program may have acted on."""


def narrows(control: Control, purpose: str) -> bool:
    """Return True if a control may newly exclude somebody from `purpose`; hooks hear of it."""
    if isinstance(control, PolicyPublished):
        return True  # its terms for this purpose, or the lack of terms, may be stricter
    if isinstance(control, PauseLifted):
        return control.voids_opt_ins
    return control.scope.purposes is None or purpose in control.scope.purposes


class NarrowingDetector:
    """Finds out for hooks if a member's newest state allows less than the ones before.

    It does so for any row there could be. It asks about rows of every category and time of
    collection that the controls treat differently. For rows that name another jurisdiction than
    the member's, it compares the choice and the age band as such, as the stricter of both
    jurisdictions counts.
    """

    def __init__(self, snapshot: Snapshot, purpose: str) -> None:
        self._snapshot = snapshot
        self._purpose = purpose
        self._controls = snapshot.controls
        self._probes = _probe_rows(snapshot)

    def narrowing(
        self, key: bytes, earlier: Sequence[StoredState], now: Micros
    ) -> tuple[Reason, Micros] | None:
        """Return the hook's reason why a member is excluded, and from when.

        The time is in microseconds. None if the newest state excludes no more than any earlier
        one.
        """
        raws = [raw for raw, was_quarantined in earlier if not was_quarantined]
        if not raws:
            return None
        if self._snapshot.is_quarantined(key):
            return Reason.QUARANTINED, now
        try:
            newest = _read(self._snapshot.records.get(key), key)
            records = [_read(raw, key) for raw in raws]
        except DamagedRecord:
            return Reason.QUARANTINED, now
        for at in _times_to_compare(newest, now):
            for record in records:
                reason = self._stricter(record, newest, at)
                if reason is not None:
                    return reason, at
        return None

    def _stricter(self, before: Record | None, after: Record | None, at: Micros) -> Reason | None:
        """Return the reason why `after` allows less than `before` at that time, or None."""
        was = member_state(before, purpose=self._purpose, at=at, known_at=FOREVER)
        now = member_state(after, purpose=self._purpose, at=at, known_at=FOREVER)
        if was == now or was.is_excluded_by_own_facts:
            return None
        refusal = self._refusal(now, Row(), at)
        if now.bar is not None or _choice_rank(now) < _choice_rank(was):
            return refusal or Reason.OPT_IN_REQUIRED
        if _AGES.index(now.age_band) < _AGES.index(was.age_band):
            return refusal or Reason.OUTSIDE_TERMS
        if now.jurisdiction == was.jurisdiction and now.age_band is was.age_band:
            return None
        return self._refused_probe(was, now, at)

    def _refused_probe(self, was: MemberState, now: MemberState, at: Micros) -> Reason | None:
        """Return the reason of the first row that is refused now and may have been allowed."""
        for row in self._probes:
            reason = self._refusal(now, row, at)
            if reason is None:
                continue
            # Without a known jurisdiction of the member, rows that named one could be allowed.
            if was.jurisdiction is None or self._refusal(was, row, at) is None:
                return reason
        return None

    def _refusal(self, state: MemberState, row: Row, at: Micros) -> Reason | None:
        decision = decide_state(
            state, row, self._controls, purpose=self._purpose, at=at, known_at=FOREVER
        )
        return None if decision.allowed else decision.reason


def _probe_rows(snapshot: Snapshot) -> list[Row]:
    """Return a row for each category and time of collection that the controls treat differently.

    With one category that no control names.
    """
    boundaries = snapshot.boundaries
    unnamed = max(boundaries.categories, default="") + "*"
    categories = (None, *sorted(boundaries.categories), unnamed)
    cut_offs = (None, *boundaries.cut_offs)
    rows = [
        Row(category=category, collected=collected)
        for category, collected in product(categories, cut_offs)
    ]
    return rows[:_PROBES_MAX]


def _times_to_compare(record: Record | None, now: Micros) -> list[Micros]:
    """Return now and the later times at which a fact of the record takes effect, ascending.

    An opt-out dated ahead changes nothing now. It is still reported at once, with its time.
    """
    times = {now}
    if record is not None:
        times.update(fact.effective_at for fact in record.facts if fact.effective_at > now)
    return sorted(times)


def _read(raw: bytes | None, key: bytes) -> Record | None:
    return None if raw is None else read_record(raw, key)


def _choice_rank(state: MemberState) -> tuple[int, int]:
    """Return how much the member's choice allows, to be compared.

    Least is an opt-out, then no choice, where the terms decide, then an opt-in; of two opt-ins the
    later one, as a lift voids old ones.
    """
    if state.choice is None:
        return 1, 0
    if state.has_opted_out:
        return 0, 0
    return 2, state.choice.recorded_at
