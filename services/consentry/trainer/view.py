"""What a trainer holds in memory: the records, the controls, and how fresh both are."""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Hashable, Mapping, Sequence
from itertools import count, repeat
from typing import Any, Final, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from consentry.domain.controls import Control, Controls, PauseImposed, PauseLifted
from consentry.domain.decisions import NOBODY, Decision, Ground, Row, Standing, decide, stale, standing
from consentry.domain.events import CHOICE_FACTS, RELOCATION_FACTS, Fact, FactKind
from consentry.domain.jurisdictions import Jurisdictions
from consentry.domain.records import Record, next_choice
from consentry.domain.values import MemberId, Micros, Reason
from consentry.wire.controls import Frontier
from consentry.wire.frames import FRAME_LENGTH
from consentry.wire.partitions import partition_of, partitions_of
from consentry.wire.records import (
    DIGEST_BITS,
    DamagedRecord,
    came_from,
    check_sum,
    read_record,
    record_digest,
    version_of,
)

_WAITING_MAX: Final = 64
_PURPOSES_MAX: Final = 8
"""For so many purposes it is remembered which members stand alike."""
FOREVER: Final = Micros(1 << 62)
"""Later than anything: a question about what is known now counts everything that is held."""


class View:
    """Records and controls as of a position, and the proof of how fresh they are.

    One thread applies messages, others may ask meanwhile: each answer sees a record and the controls as they are at
    that moment. `partitions` is the partition count of records.
    """

    def __init__(self, partitions: int, jurisdictions: Jurisdictions) -> None:
        self.partitions = partitions
        self.controls = Controls(jurisdictions)
        self.records: dict[bytes, bytes] = {}
        """Changed by `apply_records` alone: whatever else changes a record has to `forget` its member."""
        self.regressions = 0
        self.positions: dict[tuple[str, int], int] = {}
        """Next offset per (short topic name, partition)."""
        self._held: set[bytes] = set()
        self._tainted: set[int] = set()
        self._fresh_at: dict[int, Micros] = {}
        self._waiting: dict[int, deque[Frontier]] = {}
        self._distinctions = Distinctions(self.controls)
        self._likenesses: dict[str, Likenesses] = {}

    def apply_records(self, partition: int, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Take record messages of one partition in; an older version than the one held is ignored and counted."""
        records, homes = self.records, partitions_of(keys, self.partitions).tolist()
        for key, value, home in zip(keys, values, homes, strict=True):
            if home != partition:
                # Some producer put the member on a foreign partition: its events have no order with the others.
                self._held.add(key)
                continue
            try:
                check_sum(value, key)
            except DamagedRecord:
                self._held.add(key)
                continue
            known = records.get(key)
            if known is None or version_of(known) <= version_of(value):
                records[key] = value
                for likenesses in self._likenesses.values():
                    likenesses.forget(key)
            else:
                self.regressions += 1
                if not came_from(known, value):
                    # Not an older state of what is held: two histories of one member exist, and one lost an event.
                    self._held.add(key)

    def apply_control(self, control: Control) -> None:
        """Take one control in."""
        self.controls = self.controls.after(control)

    def apply_frontier(self, frontier: Frontier, appended_at: Micros = FOREVER) -> None:
        """Take a frontier in; it counts once the positions it names are reached.

        Its time is a worker's clock: it is never believed beyond `appended_at`, the broker's.
        """
        if not 0 <= frontier.partition < self.partitions:
            return
        frontier = frontier._replace(frontier_at=min(frontier.frontier_at, appended_at))
        waiting = self._waiting.get(frontier.partition)
        newest = waiting[-1].frontier_at if waiting else self._fresh_at.get(frontier.partition, Micros(0))
        if frontier.frontier_at < newest:
            return  # of a worker that was replaced while it was frozen: it must not take a taint back
        # Several wait: under a steady lag an older one is reached while the newest never is.
        self._waiting.setdefault(frontier.partition, deque(maxlen=_WAITING_MAX)).append(frontier)
        if frontier.tainted:
            self._tainted.add(frontier.partition)
        else:
            self._tainted.discard(frontier.partition)

    def settle_frontiers(self) -> None:
        """Let the frontiers count whose positions have been reached by now."""
        controls_position = self.positions.get(("controls", 0), 0)
        for partition, waiting in self._waiting.items():
            position = self.positions.get(("records", partition), 0)
            while waiting and position >= waiting[0].records_offset and controls_position >= waiting[0].controls_offset:
                frontier_at = waiting.popleft().frontier_at
                self._fresh_at[partition] = max(frontier_at, self._fresh_at.get(partition, Micros(0)))

    def staleness_seconds(self, now: Micros) -> float:
        """Age of the least fresh partition, in seconds; infinite while any has never been proven fresh."""
        if len(self._fresh_at) < self.partitions:
            return math.inf
        return (now - min(self._fresh_at.values())) / 1e6

    @property
    def newest_frontier(self) -> Micros:
        """The latest time that any partition has been proven fresh for."""
        return max(self._fresh_at.values(), default=Micros(0))

    def record(self, member: MemberId) -> Record | None:
        """The member's record, or None. Raises DamagedRecord."""
        key = member.encode()
        raw = self.records.get(key)
        return None if raw is None else read_record(raw, key)

    def is_held(self, member: bytes) -> bool:
        """Whether the member is excluded because something about them could not be read."""
        return member in self._held or (bool(self._tainted) and partition_of(member, self.partitions) in self._tainted)

    @property
    def distinctions(self) -> Distinctions:
        """What the controls, as they are now, tell apart."""
        found = self._distinctions
        if found.controls is not self.controls:
            found = self._distinctions = Distinctions(self.controls)
        return found

    def likenesses(self, purpose: str, voiding: tuple[Micros, ...]) -> Likenesses:
        """Which members stand alike for this purpose; `voiding` is that of the distinctions asked under."""
        found = self._likenesses.get(purpose)
        if found is None or found.voiding != voiding:
            found = Likenesses(purpose, voiding)
            kept = [item for item in self._likenesses.items() if item[0] != purpose][1 - _PURPOSES_MAX :]
            # Another dict, as the thread that applies records may be going through this one.
            self._likenesses = {**dict(kept), purpose: found}
        return found

    def classes(
        self, members: Sequence[bytes], likenesses: Likenesses, *, at: Micros, known_at: Micros
    ) -> npt.NDArray[np.int32]:
        """The class of each member: a place in `likenesses.standings`. Times in microseconds."""
        found = likenesses.classes(members, self.records, at=at, known_at=known_at)
        found[self._held_among(members)] = HELD_CLASS
        return found

    def _held_among(self, members: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """As `is_held`, for each of them."""
        held, tainted = self._held, list(self._tainted)
        found = np.array([member in held for member in members] if held else np.zeros(len(members)), dtype=np.bool_)
        return found | np.isin(partitions_of(members, self.partitions), tainted) if tainted else found

    def decide(
        self, member: MemberId, row: Row | None, *, purpose: str, at: Micros, known_at: Micros, stale_detail: str
    ) -> Decision:
        """The answer for one member or row; `stale_detail` is not empty where freshness is not proven."""
        if stale_detail:
            return stale(stale_detail)
        if self.is_held(member.encode()):
            return HELD
        try:
            record = self.record(member)
        except DamagedRecord:
            return HELD
        return decide(record, row, self.controls, purpose=purpose, at=at, known_at=known_at)

    def digests(self) -> dict[int, str]:
        """Per partition, the sum of all records' digests: equal exactly where the same records are held."""
        sums = dict.fromkeys(range(self.partitions), 0)
        keys = list(self.records)
        for key, partition in zip(keys, partitions_of(keys, self.partitions).tolist(), strict=True):
            sums[partition] = (sums[partition] + record_digest(key, self.records[key])) % (1 << DIGEST_BITS)
        return {partition: f"{total:032x}" for partition, total in sums.items()}


HELD: Final = Decision(False, Reason.HELD, (Ground(Reason.HELD, "something about the member could not be read"),))


_ANSWERS_MAX: Final = 200_000
_CHANGED_MAX: Final = 100_000
_SIDE_BY_SIDE: Final = 16_384
"""Records read at once: enough for the arithmetic to count, few enough for a processor's cache."""
_LONG_AGO: Final = -(1 << 62)
_NEVER: Final = (1 << 63) - 1

HELD_CLASS: Final = 0
_NOBODY_CLASS: Final = 1
_UNREADABLE: Final = Standing(None, Fact(FactKind.HELD, Micros(0), Micros(0), bytes(8)), False, None, None)

_FACTS_AT: Final = FRAME_LENGTH + 8
_TAIL: Final = 7
"""Bytes behind the facts of a plain record: the end of the block, two horizons, the checksum."""
_LENGTH_MIN: Final = _FACTS_AT + _TAIL
_BEYOND: Final = 256
"""Bytes that may be looked at behind the last record before it is known that it ended."""
_NOT_SMALL: Final = 0x81
"""The bits that say that a number is negative or goes on in another byte."""
_HIGH_BITS: Final = np.uint64(0x8080808080808080)
_INSTANT: Final = np.uint64(0x0080808080808080)
_INSTANT_MASK: Final = _HIGH_BITS | np.uint64(1)
"""By these bits eight bytes are an instant of 1978 to 3111: seven that go on and one that ends, not negative."""
_LOW_BYTES: Final = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)
_RELOCATES: Final = np.isin(np.arange(256), list(RELOCATION_FACTS))
_NO_FACT: Final = np.uint8(255)
_CHOICES: Final = (FactKind.UNKNOWN, *sorted(CHOICE_FACTS))
"""What a choice's number stands for; 0 is none."""
_CHOICE_NUMBERS: Final = np.zeros(256, dtype=np.uint8)
_CHOICE_NUMBERS[list(_CHOICES[1:])] = np.arange(1, len(_CHOICES))
_OUTCOMES: Final = np.zeros((len(_CHOICES), 64, len(_CHOICES), 65, 64), dtype=np.int8)
"""What `next_choice` was found to say, by the choice that stood, its version, the new one, what it saw, its version."""
_STAYS, _TAKEN, _NOTHING = range(1, 4)

RowKind = tuple[str | None, str | None, Micros | None]
"""Jurisdiction, category and time of collection that stand for all rows that are judged alike."""
Signature = bytes
"""What the records of one class have in common."""
_SIGNATURE: Final = np.dtype(
    [("place", "<u8"), ("lifts", "<u4"), ("age", "u1"), ("choice", "u1"), ("is_erased", "?"), ("is_held", "?")]
)
_Column = npt.NDArray[Any]


class Distinctions:
    """What some controls tell apart: times between two neighbours are judged alike, and so are categories not named.

    `voiding` is when lifts that void opt-ins were recorded, `cut_offs` what terms say of collection; in microseconds,
    ascending.
    """

    def __init__(self, controls: Controls) -> None:
        self.controls: Final = controls
        self.cut_offs: Final = controls.collection_cut_offs
        pauses = [control for control in controls.log if isinstance(control, PauseImposed)]
        lifts = [control for control in controls.log if isinstance(control, PauseLifted)]
        terms = [entry for policy in controls.policies for entry in policy.terms]
        self.voiding: Final = tuple(sorted({lift.recorded_at for lift in lifts if lift.voids_opt_ins}))
        named = [*(pause.scope.categories for pause in pauses), *(entry.categories for entry in terms)]
        self.categories: Final = frozenset(category for some in named for category in some or ())
        effective = {control.effective_at for control in controls.log} | controls.jurisdictions.changes
        self._effective = sorted(effective | {one.notice_until for one in terms if one.notice_until is not None})
        self._recorded = sorted({control.recorded_at for control in controls.log})

    def moment(self, at: Micros, known_at: Micros) -> tuple[int, int]:
        """Questions of one moment have one answer, as far as the controls are concerned."""
        return bisect_right(self._effective, at), bisect_right(self._recorded, known_at)


class Answers:
    """Answers given so far: `given` has them by what `keys` makes of a kind of row and a class of members."""

    def __init__(self) -> None:
        # Each number is drawn once, so that two threads never give two kinds the same.
        self._numbers: defaultdict[RowKind, int] = defaultdict(count().__next__)
        self.given: dict[int, int] = {}

    def keys(self, rows: Sequence[RowKind], place: npt.NDArray[np.intp], classes: _Column) -> list[int]:
        """What `given` is asked by, for each class and the row at its place in `rows`."""
        numbers = np.array([self._numbers[row] for row in rows], dtype=np.int64)
        found: list[int] = ((numbers[place] << 32) | classes).tolist()
        return found


class Likenesses:
    """Which members stand alike for one purpose: a class of them gets one answer to the same row.

    A member's class is remembered until their record changes, and only once all facts of it count, for then it is the
    same at all later times. `voiding` is that of the distinctions asked under.
    """

    def __init__(self, purpose: str, voiding: tuple[Micros, ...]) -> None:
        self.voiding: Final = voiding
        self.standings: Final = [_UNREADABLE, NOBODY]
        """One of each class."""
        self._purpose = purpose
        self._numbers = {self._likeness(own): number for number, own in enumerate(self.standings)}
        self._signatures: dict[Signature | None, int] = {}
        self._settled: dict[bytes, int] = {}
        self._settled_at = self._settled_known_at = _LONG_AGO
        self._asked: tuple[Distinctions | None, tuple[int, int], Answers] = (None, (0, 0), Answers())
        self._changed: deque[bytes] = deque(maxlen=_CHANGED_MAX)
        self._asking = threading.Lock()

    def forget(self, member: bytes) -> None:
        """Have the member looked at anew: their record has changed. To be called after it has."""
        # In this order: whoever remembers the old record between the two finds the member among the changed.
        self._changed.append(member)
        self._settled.pop(member, None)

    def answers(self, distinctions: Distinctions, moment: tuple[int, int]) -> Answers:
        """The answers given so far under these controls at this moment; to be added to."""
        under, then, found = self._asked
        if under is not distinctions or then != moment or len(found.given) > _ANSWERS_MAX:
            found = Answers()
            self._asked = (distinctions, moment, found)
        return found

    def classes(
        self, members: Sequence[bytes], records: Mapping[bytes, bytes], *, at: Micros, known_at: Micros
    ) -> npt.NDArray[np.int32]:
        """The class of each member, a place in `standings`. Times in microseconds.

        Records may change meanwhile: an answer is then that of the old one or of the new one.
        """
        with self._asking:
            covers = at >= self._settled_at and known_at >= self._settled_known_at
            remembered = self._settled if covers else {}
            found = np.fromiter(map(remembered.get, members, repeat(-1)), dtype=np.int32, count=len(members))
            missing = np.flatnonzero(found < 0).tolist()
            if missing:
                self._changed.clear()
                found[missing] = self._look_up([members[place] for place in missing], records, at, known_at)
                self._forget_changed()
            return found

    def _look_up(
        self, members: Sequence[bytes], records: Mapping[bytes, bytes], at: Micros, known_at: Micros
    ) -> npt.NDArray[np.int32]:
        """The classes of members of whom none is remembered."""
        found = np.full(len(members), _NOBODY_CLASS, dtype=np.int32)
        raws = list(map(records.get, members))
        recorded = [place for place, raw in enumerate(raws) if raw is not None]
        for start in range(0, len(recorded), _SIDE_BY_SIDE):
            part = recorded[start : start + _SIDE_BY_SIDE]
            part_raws = [raw for place in part if (raw := raws[place]) is not None]
            found[part] = self._look([members[place] for place in part], part_raws, at, known_at)
        return found

    def _forget_changed(self) -> None:
        """Forget again who changed while their record was looked at: an old class may have been remembered since."""
        if len(self._changed) == _CHANGED_MAX:
            self._settled.clear()
        while self._changed:
            self._settled.pop(self._changed.popleft(), None)

    def _look(self, members: Sequence[bytes], raws: Sequence[bytes], at: Micros, known_at: Micros) -> list[int]:
        """The classes of some members with their records; those that are settled are remembered."""
        facts = FactColumns(members, raws, self._purpose)
        effective, recorded = facts.latest()
        found = []
        for place, signature in enumerate(facts.signatures(at, known_at, self.voiding)):
            number = self._signatures.get(signature)
            if number is None:
                closely = self._look_closely(members[place], raws[place], at, known_at)
                number, effective[place], recorded[place] = closely
                if signature is not None:
                    self._signatures[signature] = number
            found.append(number)
        settled = np.flatnonzero((effective <= at) & (recorded <= known_at))
        if len(settled):
            self._settled_at = max(self._settled_at, int(effective[settled].max()))
            self._settled_known_at = max(self._settled_known_at, int(recorded[settled].max()))
            places = settled.tolist()
            self._settled.update(
                zip([members[place] for place in places], [found[place] for place in places], strict=True)
            )
        return found

    def _look_closely(self, member: bytes, raw: bytes, at: Micros, known_at: Micros) -> tuple[int, int, int]:
        """The class of one member as the rules have it, and the two times from which on nothing in it changes."""
        try:
            record = read_record(raw, member)
        except DamagedRecord:
            return HELD_CLASS, _NEVER, _NEVER
        own = standing(record, purpose=self._purpose, at=at, known_at=known_at)
        number = self._numbers.setdefault(self._likeness(own), len(self.standings))
        if number == len(self.standings):
            self.standings.append(own)
        effective = max((record.folded_effective_at, *(fact.effective_at for fact in record.facts)))
        recorded = max((record.folded_recorded_at, *(fact.recorded_at for fact in record.facts)))
        return number, min(effective, _NEVER), min(recorded, _NEVER)

    def _likeness(self, own: Standing) -> Hashable:
        """What of a standing makes a difference to any answer of `judge`: an erasure or a hold decides alone."""
        for place, decides in enumerate((own.erasure, own.hold, own.is_folded)):
            if decides:
                return place
        choice = own.choice
        if choice is None or choice.kind is not FactKind.OPTED_IN:
            return own.jurisdiction, own.age_band, choice is not None
        return own.jurisdiction, own.age_band, bisect_left(self.voiding, choice.recorded_at), "opted in"


class FactColumns:
    """The facts of many records, read side by side: one fact of each of them at every step, the newest first.

    Reads what the writer makes of an ordinary record (layout: wire/records.py); `is_plain` says which rows those are.
    All others, the damaged among them, are left to `read_record`.
    """

    def __init__(self, members: Sequence[bytes], raws: Sequence[bytes], purpose: str) -> None:
        joined = b"".join((*raws, bytes(_BEYOND)))
        self._bytes = np.frombuffer(joined, dtype=np.uint8)
        self._words = np.ndarray((len(joined) - 7,), "<u8", joined, strides=(1,))
        self._purpose = purpose.encode()
        lengths = np.fromiter(map(len, raws), dtype=np.intp, count=len(raws))
        ends = np.cumsum(lengths)
        position = ends - lengths + _FACTS_AT
        counts = self._bytes[position]
        self.is_plain = (lengths >= _LENGTH_MIN) & (counts & _NOT_SMALL == 0) & self._sums_match(members, raws, ends)
        self._steps: list[_Step] = []
        position += 1
        for number in range(int(counts.max(initial=0, where=self.is_plain)) >> 1):
            rows = np.flatnonzero(self.is_plain & (counts >> 1 > number))
            step, position[rows], self.is_plain[rows] = self._read(rows, position[rows], ends[rows] - _TAIL)
            self._steps.append(step)
        # Behind the facts are the end of their block and two horizons, all of them 0 where nothing was folded.
        self.is_plain &= (position == ends - _TAIL) & (self._words[ends - _TAIL] & np.uint64(0xFFFFFF) == 0)

    def _sums_match(self, members: Sequence[bytes], raws: Sequence[bytes], ends: _Column) -> _Column:
        """As `check_sum`, per row."""
        sums = map(crc32, [raw[:-4] for raw in raws], map(crc32, members))
        stored: _Column = self._words[ends - 4].astype("<u4").byteswap()
        match: _Column = np.fromiter(sums, dtype=np.uint32, count=len(raws)) == stored
        return match

    def _read(self, rows: _Column, at: _Column, ends: _Column) -> tuple[_Step, _Column, _Column]:
        """The fact that starts `at`, where the next one does, and whether it was plain, for each of these rows."""
        version, kind, branch = self._bytes[at], self._bytes[at + 1], self._bytes[at + 26]
        effective, recorded = self._words[at + 2], self._words[at + 10]
        observes = branch == 2
        seen = np.where(observes, self._bytes[at + 27], np.uint8(0))
        size_at = at + 27 + observes
        size = self._bytes[size_at]
        is_plain = ((version | seen | size) & _NOT_SMALL == 0) & (branch & 0xFD == 0)
        is_plain &= (kind & 1 == 0) & (kind <= max(FactKind) << 1)
        is_plain &= (effective & _INSTANT_MASK == _INSTANT) & (recorded & _INSTANT_MASK == _INSTANT)
        kind, size = kind >> 1, (size >> 1).astype(np.intp)
        after = size_at + 1 + size
        name, is_of_purpose, is_ascii = self._names(size_at + 1, size)
        is_plain &= (after <= ends) & is_ascii & ~(_RELOCATES[kind] & (size > 7))
        name |= size.astype(np.uint64) << np.uint64(56)  # so that a name and one that begins with it differ
        observed = np.where(observes, seen.astype(np.int16) >> 1, np.int16(-1))
        return _Step(rows, kind, version >> 1, effective, recorded, observed, name, is_of_purpose), after, is_plain

    def _names(self, start: _Column, size: _Column) -> tuple[_Column, _Column, _Column]:
        """Of the name at `start`: its first eight bytes, whether it is the purpose, and whether it is ASCII."""
        first, is_of_purpose = np.zeros(len(start), dtype=np.uint64), size == len(self._purpose)
        is_ascii = np.ones(len(start), dtype=np.bool_)
        for offset in range(0, int(size.max(initial=0)), 8):
            letters = self._words[start + offset] & _LOW_BYTES[np.clip(size - offset, 0, 8)]
            wanted = int.from_bytes(self._purpose[offset : offset + 8], "little")
            is_of_purpose &= letters == np.uint64(wanted)
            is_ascii &= letters & _HIGH_BITS == 0
            if offset == 0:
                first = letters
        return first, is_of_purpose, is_ascii

    def latest(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Per row, the last time that a fact took effect and that one was recorded, in microseconds."""
        effective, recorded = np.zeros((2, len(self.is_plain)), dtype=np.uint64)
        for step in self._steps:
            effective[step.rows] = np.maximum(effective[step.rows], step.effective)
            recorded[step.rows] = np.maximum(recorded[step.rows], step.recorded)
        return _instants(effective), _instants(recorded)

    def signatures(self, at: Micros, known_at: Micros, voiding: Sequence[Micros]) -> list[Signature | None]:
        """What of each standing makes a difference to an answer; None where the row is not plain."""
        if min(at, known_at) < 0:
            return [None] * len(self.is_plain)  # before the horizons even of a record of which nothing was folded
        found = _StandingColumns(len(self.is_plain))
        last_effective, last_recorded = _word(at), _word(known_at)
        for step in reversed(self._steps):
            found.take_in(step, (step.effective <= last_effective) & (step.recorded <= last_recorded))
        signatures = np.zeros(len(self.is_plain), dtype=_SIGNATURE)
        signatures["is_erased"], signatures["is_held"] = found.is_erased, found.is_held & ~found.is_erased
        others = ~(found.is_erased | found.is_held)
        signatures["place"][others] = found.place[others]
        signatures["age"][others] = found.age[others]
        signatures["choice"][others] = found.choice[others]
        opted_in = others & (found.choice == _CHOICE_NUMBERS[FactKind.OPTED_IN])
        lifts = np.array([_word(lift) for lift in voiding], dtype=np.uint64)
        signatures["lifts"][opted_in] = np.searchsorted(lifts, found.opted_in_at[opted_in])
        as_bytes = signatures.view(f"V{_SIGNATURE.itemsize}").tolist()
        return [one if plain else None for one, plain in zip(as_bytes, self.is_plain.tolist(), strict=True)]


class _StandingColumns:
    """What `standing` says of each of many records, fact by fact in log order, for all at once."""

    def __init__(self, count: int) -> None:
        self.is_erased, self.is_held = np.zeros((2, count), dtype=np.bool_)
        self.place, self.opted_in_at = np.zeros((2, count), dtype=np.uint64)
        self.age, self.choice, self._chosen_by = np.zeros((3, count), dtype=np.uint8)

    def take_in(self, step: _Step, counts: _Column) -> None:
        """Take in one fact of each of some records where it counts. Source: rules 2, 3, 4 and 10."""
        kind = np.where(counts, step.kind, _NO_FACT)
        moves = _RELOCATES[kind]
        self.place[step.rows[moves]], self.age[step.rows[moves]] = step.name[moves], kind[moves]
        self.is_erased[step.rows[kind == FactKind.ERASED]] = True
        self.is_held[step.rows[(kind == FactKind.HELD) | (kind == FactKind.UNKNOWN)]] = True
        self.is_held[step.rows[kind == FactKind.RELEASED]] = False
        self._choose(step, np.where(step.is_of_purpose, kind, _NO_FACT))

    def _choose(self, step: _Step, kind: _Column) -> None:
        """Have `next_choice` say what stands after each of these facts that is a choice."""
        here = np.flatnonzero(_CHOICE_NUMBERS[kind])
        rows, chosen, version = step.rows[here], _CHOICE_NUMBERS[kind[here]], step.version[here]
        outcome = _outcomes(self.choice[rows], self._chosen_by[rows], chosen, step.observed[here], version)
        taken = outcome == _TAKEN
        self.choice[rows[outcome == _NOTHING]] = 0
        self.choice[rows[taken]], self._chosen_by[rows[taken]] = chosen[taken], version[taken]
        self.opted_in_at[rows[taken]] = step.recorded[here][taken]


def _outcomes(standing: _Column, by: _Column, chosen: _Column, observed: _Column, version: _Column) -> _Column:
    """What `next_choice` makes of each choice after the one that stands, each by its number and version."""
    codes = np.ravel_multi_index((standing, by, chosen, observed + 1, version), _OUTCOMES.shape)
    known = _OUTCOMES.reshape(-1)
    for code in np.unique(codes[known[codes] == 0]).tolist():
        known[code] = _outcome(*(int(part) for part in np.unravel_index(code, _OUTCOMES.shape)))
    return known[codes]


def _outcome(standing: int, by: int, chosen: int, seen: int, version: int) -> int:
    before = Fact(_CHOICES[standing], Micros(0), Micros(0), b"", version=by) if standing else None
    now = Fact(_CHOICES[chosen], Micros(0), Micros(0), b"", seen - 1 if seen else None, version=version)
    after = next_choice(before, now)
    if after is None:
        return _NOTHING
    return _TAKEN if after is now else _STAYS


class _Step(NamedTuple):
    """One fact of each of some records. An instant stands as its eight bytes: as numbers they compare as it does."""

    rows: _Column
    kind: _Column
    version: _Column
    effective: _Column
    recorded: _Column
    observed: _Column
    """-1 where the person is not said to have seen anything."""
    name: _Column
    is_of_purpose: _Column


def _word(instant: Micros) -> np.uint64:
    """An instant as its eight bytes; beyond what eight can say, a number that compares as it does."""
    if instant < 0:
        return np.uint64(0)
    if instant >= 1 << 55:
        return np.uint64((1 << 64) - 1)
    groups = ((instant << 1 >> 7 * place & 0x7F) << 8 * place for place in range(8))
    return np.uint64(sum(groups)) | _INSTANT


def _instants(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The instants that stand as these eight bytes, in microseconds."""
    found = np.zeros(len(words), dtype=np.uint64)
    for place in range(8):
        found |= (words >> np.uint64(8 * place) & np.uint64(0x7F)) << np.uint64(7 * place)
    return (found >> np.uint64(1)).astype(np.int64)
