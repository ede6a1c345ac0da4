"""The threads that call hooks: one listener for each function, with the changes that wait."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic
from typing import Final

import structlog

from consentry.domain.controls import Control
from consentry.domain.orders import PurgeOrder
from consentry.domain.values import MemberId, Micros, Reason
from consentry.ops.clock import Clock
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.hooks.changes import (
    EarlierStates,
    NarrowingDetector,
    StoredState,
    narrows,
)
from consentry.trainer.hooks.exclusion import Exclusion, ExclusionCause

WAITING_MAX: Final = 100_000
"""Changed members that wait for one hook; beyond it they are no longer named."""
MEMBERS_MAX: Final = 10_000
"""Members in one call."""
RETRY_SECONDS: Final = 30.0
"""The wait before a purge order is given again to a hook that raised: it is a duty, not news."""
_STATES_MAX: Final = 8
"""States of one member that wait to be compared with the newest one; beyond it the member is no
longer named.
"""
_LOG = structlog.get_logger(__name__)

ExclusionCall = Callable[[Exclusion], object]
OrderCall = Callable[[PurgeOrder], object]
ControlCall = Callable[[Control], object]


class HookThread(ABC):
    """A thread that calls one hook with everything that waits for it, whenever it is woken."""

    def __init__(self, name: str) -> None:
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have the hook's thread look for work."""
        self._woken.set()

    def begin(self) -> None:
        """Have the hook regard everything that comes from here on as news."""
        self.wake()

    def stop(self) -> None:
        """Call this thread's hook no more."""
        self._stopping = True
        self._woken.set()

    @abstractmethod
    def work(self) -> float | None:
        """Call the hook with all that waits; return the seconds until the next time.

        None is to wait for a wake.
        """

    def _run(self) -> None:
        wait: float | None = None
        while not self._stopping:
            self._woken.wait(wait)
            self._woken.clear()
            if not self._stopping:
                wait = self.work()


@dataclass(slots=True)
class _Waiting:
    """The changes that wait for one hook."""

    members: dict[bytes, Sequence[StoredState]] = field(default_factory=dict)
    partitions: frozenset[int] = frozenset()
    too_many: bool = False


class ExclusionListener(HookThread):
    """Calls one hook for exclusions from one purpose."""

    def __init__(
        self, call: ExclusionCall, purpose: str, snapshot: Snapshot, clock: Clock, waiting_max: int
    ) -> None:
        self._call = call
        self._purpose = purpose
        self._snapshot = snapshot
        self._clock = clock
        self._waiting_max = waiting_max
        self._lock = threading.Lock()
        self._waiting = _Waiting()
        self._controls = _ControlCursor(snapshot)
        super().__init__(f"hook-{purpose}")

    def note_members(self, earlier: EarlierStates) -> None:
        """Have these members' newest states compared with earlier ones, for the hook."""
        with self._lock:
            members = self._waiting.members
            for key, states in earlier.items():
                known = members.get(key)
                members[key] = states if known is None else [*known, *states]
                if len(members[key]) > _STATES_MAX:
                    del members[key]
                    self._waiting.too_many = True
            if len(members) > self._waiting_max:
                self._waiting.members = {}
                self._waiting.too_many = True
        self.wake()

    def note_partitions(self, partitions: frozenset[int]) -> None:
        """Tell the hook that all members of these partitions are quarantined."""
        with self._lock:
            self._waiting.partitions |= partitions
        self.wake()

    def begin(self) -> None:
        self._controls.skip_all()

    def work(self) -> float | None:
        with self._lock:
            waiting, self._waiting = self._waiting, _Waiting()
        for exclusion in self._exclusions(waiting, self._controls.take_new()):
            if self._stopping:
                break
            try:
                self._call(exclusion)
            except Exception as error:  # noqa: BLE001 - the hook is another's code: logged, and the next event is given all the same
                _LOG.error(
                    "hook_failed",
                    hook="exclusion",
                    purpose=self._purpose,
                    error=type(error).__name__,
                )
        return None

    def _exclusions(self, waiting: _Waiting, controls: Sequence[Control]) -> Iterator[Exclusion]:
        now = self._clock()
        if waiting.too_many:
            yield Exclusion(purpose=self._purpose, cause=ExclusionCause.MANY, at=now)
        if waiting.partitions:
            yield Exclusion(
                purpose=self._purpose,
                cause=ExclusionCause.PARTITION,
                at=now,
                reason=Reason.QUARANTINED,
                partitions=tuple(sorted(waiting.partitions)),
            )
        for control in controls:
            if narrows(control, self._purpose):
                yield Exclusion(
                    purpose=self._purpose,
                    cause=ExclusionCause.CONTROL,
                    at=Micros(max(now, control.effective_at)),
                    control=control,
                )
        if waiting.members:
            yield from self._exclusions_of_members(waiting.members, now)

    def _exclusions_of_members(self, members: EarlierStates, now: Micros) -> Iterator[Exclusion]:
        """Give the exclusions that name members, each with those of one reason and time."""
        detector = NarrowingDetector(self._snapshot, self._purpose)
        excluded: defaultdict[tuple[Reason, Micros], list[MemberId]] = defaultdict(list)
        for key, states in members.items():
            narrowing = detector.narrowing(key, states, now)
            if narrowing is not None:
                excluded[narrowing].append(MemberId(key.decode(errors="replace")))
        for (reason, at), names in excluded.items():
            remaining = iter(names)
            while part := tuple(islice(remaining, MEMBERS_MAX)):
                yield Exclusion(
                    purpose=self._purpose,
                    cause=ExclusionCause.RECORD,
                    at=at,
                    reason=reason,
                    members=part,
                )


class _ControlCursor:
    """A position in the snapshot's log of controls, behind those that were already given."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._position = len(snapshot.controls.log)

    def skip_all(self) -> None:
        """Move behind all controls that are there."""
        self._position = len(self._snapshot.controls.log)

    def take_new(self) -> Sequence[Control]:
        """Return the controls that came since, and move behind them."""
        controls = self._snapshot.controls.log[self._position :]
        self._position += len(controls)
        return controls


class ControlListener(HookThread):
    """Calls one hook for each control."""

    def __init__(self, call: ControlCall, snapshot: Snapshot) -> None:
        self._call = call
        self._controls = _ControlCursor(snapshot)
        super().__init__("hook-controls")

    def begin(self) -> None:
        self._controls.skip_all()

    def work(self) -> float | None:
        for control in self._controls.take_new():
            if self._stopping:
                break
            try:
                self._call(control)
            except Exception as error:  # noqa: BLE001 - the hook is another's code: logged, and the next control is given all the same
                _LOG.error("hook_failed", hook="control", error=type(error).__name__)
        return None


class OrderListener(HookThread):
    """Calls one hook for each open purge order.

    It asks each time which orders are open, so that none can be missed.
    """

    def __init__(
        self, call: OrderCall, open_orders: Callable[[], Sequence[PurgeOrder]], retry_seconds: float
    ) -> None:
        self._call = call
        self._open_orders = open_orders
        self._retry_seconds = retry_seconds
        self._given: set[str] = set()
        """The ids of the open orders that the hook took without an error."""
        self._retry_at: dict[str, float] = {}
        """By order id the time of the next call, on the monotonic clock."""
        super().__init__("hook-purge-orders")

    def work(self) -> float | None:
        orders = self._open_orders()
        self._forget_settled({order.order_id for order in orders})
        for order in orders:
            if self._stopping:
                return None
            is_due = self._retry_at.get(order.order_id, 0.0) <= monotonic()
            if order.order_id not in self._given and is_due:
                self._give(order)
        if not self._retry_at:
            return None
        return max(0.0, min(self._retry_at.values()) - monotonic())

    def _forget_settled(self, open_ids: set[str]) -> None:
        self._given &= open_ids
        for order_id in self._retry_at.keys() - open_ids:
            del self._retry_at[order_id]

    def _give(self, order: PurgeOrder) -> None:
        try:
            self._call(order)
        except Exception as error:  # noqa: BLE001 - the hook is another's code: logged, and the order is given again
            self._retry_at[order.order_id] = monotonic() + self._retry_seconds
            _LOG.error(
                "hook_failed",
                hook="purge_order",
                because=order.because.value,
                error=type(error).__name__,
            )
        else:
            self._given.add(order.order_id)
            self._retry_at.pop(order.order_id, None)
