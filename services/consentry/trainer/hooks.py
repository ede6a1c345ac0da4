"""Calls back when members become excluded, when a control narrows use, and for each purge order.

No call runs on the thread that follows: each hook has a thread and a bounded backlog of its own, so
that one that sleeps or raises delays no answer and no other hook. What waits for a slow hook is
merged, never dropped unsaid.
"""

from __future__ import annotations

import enum
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from time import monotonic
from typing import Final

import structlog

from consentry.domain.controls import Control, PauseLifted, PolicyPublished
from consentry.domain.decisions import MemberState, Row, decide_state, member_state
from consentry.domain.errors import Refused
from consentry.domain.events import FactKind
from consentry.domain.orders import PurgeOrder
from consentry.domain.records import Record
from consentry.domain.values import AgeBand, MemberId, Micros, Reason, parse_name
from consentry.ops.clock import Clock
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.freshness import FOREVER
from consentry.wire.records import DamagedRecord, read_record

WAITING_MAX: Final = 100_000
"""Changed members that wait for one hook; beyond it they are no longer told by name."""
MEMBERS_MAX: Final = 10_000
"""Members in one call."""
RETRY_SECONDS: Final = 30.0
"""A purge order whose hook raised is told again after so long: it is a duty, not news."""
_HOOKS_MAX: Final = 32
_STATES_MAX: Final = 8
"""States of one member that wait to be compared with the newest one; beyond it the member is no
longer named.
"""
_PROBES_MAX: Final = 256
_LOG = structlog.get_logger(__name__)


class Cause(enum.StrEnum):
    """What made members excluded who were not."""

    RECORD = "RECORD"
    """Something was recorded of the members themselves; they are named."""
    CONTROL = "CONTROL"
    """A pause, a policy, or a lift that voids opt-ins: its scope stands for the members, none is
    named.
    """
    PARTITION = "PARTITION"
    """An event of these partitions could not be read, not even whose it was: all their members are
    quarantined.
    """
    MANY = "MANY"
    """More happened than waits for this hook: ask again about everybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """Use for `purpose` became narrower. `at`, in microseconds, is from when; it may lie ahead.

    Whether one row may be used is still to be asked: it also depends on where and when the row
    comes from.
    """

    purpose: str
    cause: Cause
    at: Micros
    reason: Reason | None = None
    members: tuple[MemberId, ...] = ()
    control: Control | None = None
    partitions: tuple[int, ...] = ()


ExclusionCall = Callable[[Exclusion], object]
OrderCall = Callable[[PurgeOrder], object]
ControlCall = Callable[[Control], object]
State = tuple[bytes | None, bool]
"""What is held of a member: the record, and whether something about them could not be read."""
Earlier = Mapping[bytes, Sequence[State]]
"""Per member the states that were there before the newest one, each of which somebody may have
seen.
"""


class Hooks:
    """The hooks of one client.

    `ready` begins; whatever was so before is not news, only open orders are told then.

    The methods from `ready` on are for the thread that follows: they note, and return at once.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        open_orders: Callable[[], Sequence[PurgeOrder]],
        *,
        clock: Clock,
        waiting_max: int = WAITING_MAX,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._snapshot = snapshot
        self._open_orders = open_orders
        self._clock = clock
        self._waiting_max = waiting_max
        self._retry_seconds = retry_seconds
        self._exclusions: tuple[_ExclusionListener, ...] = ()
        self._others: tuple[_ControlListener | _OrderListener, ...] = ()
        self._tainted: frozenset[int] = frozenset()
        self._is_ready = False
        self._adding = threading.Lock()

    def on_exclusion(self, *, purpose: str) -> Callable[[ExclusionCall], ExclusionCall]:
        """Decorator: have the function called with each Exclusion for `purpose`.

        Raises InvalidInput and Refused.
        """
        parse_name(purpose, what="purpose")

        def register(call: ExclusionCall) -> ExclusionCall:
            with self._adding:
                self._check_room()
                listener = _ExclusionListener(
                    call, purpose, self._snapshot, self._clock, self._waiting_max
                )
                if self._is_ready:
                    listener.begin()
                self._exclusions = (*self._exclusions, listener)
            return call

        return register

    def on_control(self, call: ControlCall) -> ControlCall:
        """Decorator: have the function called with each pause, lift and policy that comes.

        Raises Refused.
        """
        self._add(lambda: _ControlListener(call, self._snapshot))
        return call

    def on_purge_order(self, call: OrderCall) -> OrderCall:
        """Decorator: have the function called with each open order once; again after it raised, and
        after a restart.
        """
        self._add(lambda: _OrderListener(call, self._open_orders, self._retry_seconds))
        return call

    def _add(self, make: Callable[[], _ControlListener | _OrderListener]) -> None:
        with self._adding:
            self._check_room()
            listener = make()
            self._others = (*self._others, listener)
            if self._is_ready:
                listener.begin()

    def _check_room(self) -> None:
        if len(self._exclusions) + len(self._others) >= _HOOKS_MAX:
            raise Refused(
                f"There are {_HOOKS_MAX} hooks already, each with a thread of its own.",
                code="hooks.many",
                fix="let one function tell the others",
            )

    def ready(self) -> None:
        """Everything that was there at the start has been read: from here on changes are news."""
        self._tainted = frozenset(self._snapshot.freshness.tainted)
        with self._adding:
            self._is_ready = True
            for listener in (*self._exclusions, *self._others):
                listener.begin()

    def before(self, keys: Sequence[bytes]) -> Earlier | None:
        """What is held of these members, to be handed to `after` once their records are applied;

        None: nobody asks.
        """
        if not self._exclusions or not self._is_ready:
            return None
        snapshot = self._snapshot
        return {key: [(snapshot.records.get(key), snapshot.is_quarantined(key))] for key in keys}

    def after(
        self, earlier: Earlier | None, keys: Sequence[bytes], values: Sequence[bytes]
    ) -> None:
        """The records of these members have been applied, in this order."""
        if earlier is None:
            return
        if len(earlier) < len(keys):
            earlier = _with_repeated(earlier, keys, values)
        for listener in self._exclusions:
            listener.note_members(earlier)

    def changed(self) -> None:
        """Controls were applied, or purge orders were opened or settled."""
        if self._is_ready:
            for listener in (*self._exclusions, *self._others):
                listener.wake()

    def look(self) -> None:
        """Frontiers were applied: is a partition tainted that was not?"""
        tainted = self._snapshot.freshness.tainted
        if self._is_ready and tainted != self._tainted:
            found = frozenset(tainted)
            new, self._tainted = found - self._tainted, found
            for listener in self._exclusions if new else ():
                listener.note_partitions(new)

    def stop(self) -> None:
        """Call nobody any more; a call that runs is not waited for."""
        self._is_ready = False
        for listener in (*self._exclusions, *self._others):
            listener.stop()


def _with_repeated(earlier: Earlier, keys: Sequence[bytes], values: Sequence[bytes]) -> Earlier:
    """Also the states in between, of members whose record came more than once."""
    found = {key: list(states) for key, states in earlier.items()}
    last: dict[bytes, bytes] = {}
    for key, value in zip(keys, values, strict=True):
        if key in last:
            found[key].append((last[key], found[key][0][1]))
        last[key] = value
    return found


class _Thread(ABC):
    """A thread that works off what waits whenever it is woken."""

    def __init__(self, name: str) -> None:
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        self._woken.set()

    def begin(self) -> None:
        """What comes from here on is news."""
        self.wake()

    def stop(self) -> None:
        """Do nothing more."""
        self._stopping = True
        self._woken.set()

    @abstractmethod
    def work(self) -> float | None:
        """Work off what waits; seconds after which to come again, None: when woken."""

    def _run(self) -> None:
        wait: float | None = None
        while not self._stopping:
            self._woken.wait(wait)
            self._woken.clear()
            if not self._stopping:
                wait = self.work()


class _ExclusionListener(_Thread):
    """One function that is told of exclusions for one purpose."""

    def __init__(
        self, call: ExclusionCall, purpose: str, snapshot: Snapshot, clock: Clock, waiting_max: int
    ) -> None:
        self._call = call
        self._purpose = purpose
        self._snapshot = snapshot
        self._clock = clock
        self._waiting_max = waiting_max
        self._lock = threading.Lock()
        self._members: dict[bytes, Sequence[State]] = {}
        self._controls = _NewControls(snapshot)
        self._partitions: frozenset[int] = frozenset()
        self._too_many = False
        super().__init__(f"hook-{purpose}")

    def note_members(self, earlier: Earlier) -> None:
        with self._lock:
            waiting = self._members
            for key, states in earlier.items():
                known = waiting.get(key)
                waiting[key] = states if known is None else [*known, *states]
                if len(waiting[key]) > _STATES_MAX:
                    del waiting[key]
                    self._too_many = True
            if len(waiting) > self._waiting_max:
                self._members, self._too_many = {}, True
        self.wake()

    def note_partitions(self, partitions: frozenset[int]) -> None:
        with self._lock:
            self._partitions |= partitions
        self.wake()

    def begin(self) -> None:
        self._controls.begin()

    def work(self) -> float | None:
        with self._lock:
            members, self._members = self._members, {}
            partitions, self._partitions = self._partitions, frozenset()
            too_many, self._too_many = self._too_many, False
        for found in self._found(members, self._controls.take(), partitions, too_many):
            if self._stopping:
                break
            try:
                self._call(found)
            except Exception as error:  # noqa: BLE001 - somebody else's code: told, and the next event is still given
                _LOG.error(
                    "hook_failed",
                    hook="exclusion",
                    purpose=self._purpose,
                    error=type(error).__name__,
                )
        return None

    def _found(
        self,
        members: Earlier,
        controls: Sequence[Control],
        partitions: frozenset[int],
        too_many: bool,
    ) -> Iterator[Exclusion]:
        now = self._clock()
        if too_many:
            yield Exclusion(purpose=self._purpose, cause=Cause.MANY, at=now)
        if partitions:
            yield Exclusion(
                purpose=self._purpose,
                cause=Cause.PARTITION,
                at=now,
                reason=Reason.QUARANTINED,
                partitions=tuple(sorted(partitions)),
            )
        for control in controls:
            if narrows(control, self._purpose):
                at = Micros(max(now, control.effective_at))
                yield Exclusion(purpose=self._purpose, cause=Cause.CONTROL, at=at, control=control)
        if members:
            yield from self._of_members(members, now)

    def _of_members(self, members: Earlier, now: Micros) -> Iterator[Exclusion]:
        differences = Differences(self._snapshot, self._purpose)
        found: defaultdict[tuple[Reason, Micros], list[MemberId]] = defaultdict(list)
        for key, states in members.items():
            told = differences.found(key, states, now)
            if told is not None:
                found[told].append(MemberId(key.decode(errors="replace")))
        for (reason, at), names in found.items():
            rest = iter(names)
            while part := tuple(islice(rest, MEMBERS_MAX)):
                yield Exclusion(
                    purpose=self._purpose, cause=Cause.RECORD, at=at, reason=reason, members=part
                )


class _NewControls:
    """Controls that were not given yet.

    They stay in the view, so that a place in its log is all there is to keep.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._place = len(snapshot.controls.log)

    def begin(self) -> None:
        """Those that are there are not new."""
        self._place = len(self._snapshot.controls.log)

    def take(self) -> Sequence[Control]:
        """Those that came since."""
        found = self._snapshot.controls.log[self._place :]
        self._place += len(found)
        return found


class _ControlListener(_Thread):
    """One function that is told of controls."""

    def __init__(self, call: ControlCall, snapshot: Snapshot) -> None:
        self._call = call
        self._controls = _NewControls(snapshot)
        super().__init__("hook-controls")

    def begin(self) -> None:
        self._controls.begin()

    def work(self) -> float | None:
        for control in self._controls.take():
            if self._stopping:
                break
            try:
                self._call(control)
            except Exception as error:  # noqa: BLE001 - somebody else's code: told, and the next control is still given
                _LOG.error("hook_failed", hook="control", error=type(error).__name__)
        return None


class _OrderListener(_Thread):
    """One function that is told of purge orders: which are open is asked each time, so that none
    can be missed.
    """

    def __init__(
        self, call: OrderCall, open_orders: Callable[[], Sequence[PurgeOrder]], retry_seconds: float
    ) -> None:
        self._call = call
        self._open_orders = open_orders
        self._retry_seconds = retry_seconds
        self._told: set[str] = set()
        self._again_at: dict[str, float] = {}
        super().__init__("hook-purge-orders")

    def work(self) -> float | None:
        orders = self._open_orders()
        open_ids = {order.order_id for order in orders}
        self._told &= open_ids
        self._again_at = {
            order_id: at for order_id, at in self._again_at.items() if order_id in open_ids
        }
        for order in orders:
            if self._stopping:
                return None
            if (
                order.order_id not in self._told
                and self._again_at.get(order.order_id, 0.0) <= monotonic()
            ):
                self._tell(order)
        return max(0.0, min(self._again_at.values()) - monotonic()) if self._again_at else None

    def _tell(self, order: PurgeOrder) -> None:
        try:
            self._call(order)
        except Exception as error:  # noqa: BLE001 - somebody else's code: told, and the order is given again
            self._again_at[order.order_id] = monotonic() + self._retry_seconds
            _LOG.error(
                "hook_failed",
                hook="purge_order",
                because=order.because.value,
                error=type(error).__name__,
            )
        else:
            self._told.add(order.order_id)
            self._again_at.pop(order.order_id, None)


def narrows(control: Control, purpose: str) -> bool:
    """Whether a control may exclude somebody from `purpose` who was not: a policy and a voiding
    lift may too.
    """
    if isinstance(control, PolicyPublished):
        return True  # the terms it has for this purpose, or no longer has, may be stricter
    if isinstance(control, PauseLifted):
        return control.voids_opt_ins
    return control.scope.purposes is None or purpose in control.scope.purposes


class Differences:
    """Whether what is held of a member now allows less than what was held before, for any row that
    could be asked.

    Asked are rows of every category and time of collection that the controls tell apart. For rows
    that name another jurisdiction than the member's the choice and the age band are compared as
    such, the stricter one counting.
    """

    def __init__(self, snapshot: Snapshot, purpose: str) -> None:
        self._snapshot = snapshot
        self._purpose = purpose
        self._controls = snapshot.controls
        boundaries = snapshot.boundaries
        categories = (
            None,
            *sorted(boundaries.categories),
            max(boundaries.categories, default="") + "*",
        )
        rows = product(categories, (None, *boundaries.cut_offs))
        self._probes = [
            Row(category=category, collected=collected) for category, collected in rows
        ][:_PROBES_MAX]

    def found(
        self, key: bytes, earlier: Sequence[State], now: Micros
    ) -> tuple[Reason, Micros] | None:
        """Why the member is excluded, and from when, in microseconds;

        None if not more than in any earlier state.
        """
        raws = [raw for raw, was_held in earlier if not was_held]
        if not raws:
            return None
        if self._snapshot.is_quarantined(key):
            return Reason.QUARANTINED, now
        try:
            after = _record(self._snapshot.records.get(key), key)
            states = [_record(raw, key) for raw in raws]
        except DamagedRecord:
            return Reason.QUARANTINED, now
        # An opt-out announced for later changes nothing now; it is told at once, with its time.
        ahead = (
            {fact.effective_at for fact in after.facts if fact.effective_at > now}
            if after
            else set()
        )
        for at in sorted({now, *ahead}):
            for before in states:
                reason = self._narrower(before, after, Micros(at))
                if reason is not None:
                    return reason, Micros(at)
        return None

    def _narrower(self, before: Record | None, after: Record | None, at: Micros) -> Reason | None:
        was = member_state(before, purpose=self._purpose, at=at, known_at=FOREVER)
        now = member_state(after, purpose=self._purpose, at=at, known_at=FOREVER)
        if was == now or was.is_excluded_by_own_facts:
            return None
        refusal = self._refusal(now, Row(), at)
        if now.bar is not None or _choice(now) < _choice(was):
            return refusal or Reason.OPT_IN_REQUIRED
        if _AGES.index(now.age_band) < _AGES.index(was.age_band):
            return refusal or Reason.OUTSIDE_TERMS
        if now.jurisdiction == was.jurisdiction and now.age_band is was.age_band:
            return None
        for row in self._probes:
            # Where nothing was known of a home, rows that named one could be allowed.
            reason = self._refusal(now, row, at)
            if reason is not None and (
                was.jurisdiction is None or self._refusal(was, row, at) is None
            ):
                return reason
        return None

    def _refusal(self, own: MemberState, row: Row, at: Micros) -> Reason | None:
        found = decide_state(
            own, row, self._controls, purpose=self._purpose, at=at, known_at=FOREVER
        )
        return None if found.allowed else found.reason


def _record(raw: bytes | None, key: bytes) -> Record | None:
    return None if raw is None else read_record(raw, key)


def _choice(own: MemberState) -> tuple[int, int]:
    """How much the member's choice allows: nothing, what the terms do by themselves, or more; a
    lift voids old ones.
    """
    if own.choice is None:
        return 1, 0
    return (2, own.choice.recorded_at) if own.choice.kind is FactKind.OPTED_IN else _OPTED_OUT


_OPTED_OUT: Final = (0, 0)
_AGES: Final = (AgeBand.MINOR, AgeBand.UNKNOWN, AgeBand.ADULT)
"""The earlier one is refused wherever the later one is."""
