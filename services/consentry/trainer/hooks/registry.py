"""The hooks of one client: registered by a program, fed by the thread that follows the log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from consentry.domain.errors import Refused
from consentry.domain.orders import PurgeOrder
from consentry.domain.values import parse_name
from consentry.ops.clock import Clock
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.hooks.changes import EarlierStates, StoredState
from consentry.trainer.hooks.listeners import (
    RETRY_SECONDS,
    WAITING_MAX,
    ControlCall,
    ControlListener,
    ExclusionCall,
    ExclusionListener,
    OrderCall,
    OrderListener,
)

_HOOKS_MAX: Final = 32


class Hooks:
    """The hooks of one client: functions that are called for exclusions, controls and orders.

    Hooks hear of changes after `begin`. What was there before is not news, but for open purge
    orders, which are given then.

    The methods from `begin` on are for the thread that follows the log: they return at once.
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
        self._exclusions: tuple[ExclusionListener, ...] = ()
        self._others: tuple[ControlListener | OrderListener, ...] = ()
        self._tainted: frozenset[int] = frozenset()
        self._has_begun = False
        self._adding = threading.Lock()

    # ---- for the program

    def on_exclusion(self, *, purpose: str) -> Callable[[ExclusionCall], ExclusionCall]:
        """Decorator of a hook: have it called with each Exclusion for `purpose`.

        Raises InvalidInput and Refused.
        """
        parse_name(purpose, what="purpose")

        def register(call: ExclusionCall) -> ExclusionCall:
            with self._adding:
                self._check_room()
                listener = ExclusionListener(
                    call, purpose, self._snapshot, self._clock, self._waiting_max
                )
                if self._has_begun:
                    listener.begin()
                self._exclusions = (*self._exclusions, listener)
            return call

        return register

    def on_control(self, call: ControlCall) -> ControlCall:
        """Decorator of a hook: have it called with each pause, lift and policy that comes.

        Raises Refused.
        """
        self._add(lambda: ControlListener(call, self._snapshot))
        return call

    def on_purge_order(self, call: OrderCall) -> OrderCall:
        """Decorator of a hook: have it called with each open purge order once.

        It is called again with an order after it raised, and after a restart. Raises Refused.
        """
        self._add(lambda: OrderListener(call, self._open_orders, self._retry_seconds))
        return call

    def _add(self, make: Callable[[], ControlListener | OrderListener]) -> None:
        with self._adding:
            self._check_room()
            listener = make()
            self._others = (*self._others, listener)
            if self._has_begun:
                listener.begin()

    def _check_room(self) -> None:
        if len(self._exclusions) + len(self._others) >= _HOOKS_MAX:
            raise Refused(
                f"There are {_HOOKS_MAX} hooks already, each with a thread of its own.",
                code="hooks.many",
                fix="let one function call the others",
            )

    # ---- for the thread that follows the log

    def begin(self) -> None:
        """Have the hooks regard all changes from here on as news: what came before was read."""
        self._tainted = frozenset(self._snapshot.freshness.tainted)
        with self._adding:
            self._has_begun = True
            for listener in (*self._exclusions, *self._others):
                listener.begin()

    def states_before(self, keys: Sequence[bytes]) -> EarlierStates | None:
        """Return the states of these members, for the hooks to compare with later ones.

        They are for `note_records` once their records are applied. None where no hook asks for
        exclusions.
        """
        if not self._exclusions or not self._has_begun:
            return None
        snapshot = self._snapshot
        return {key: [(snapshot.records.get(key), snapshot.is_quarantined(key))] for key in keys}

    def note_records(
        self, earlier: EarlierStates | None, keys: Sequence[bytes], values: Sequence[bytes]
    ) -> None:
        """Tell the hooks that the records of these members were applied, in this order.

        `earlier` is what `states_before` returned.
        """
        if earlier is None:
            return
        if len(earlier) < len(keys):
            earlier = _with_states_between(earlier, keys, values)
        for listener in self._exclusions:
            listener.note_members(earlier)

    def note_controls(self) -> None:
        """Tell the hooks that controls were applied, or purge orders opened or settled."""
        if self._has_begun:
            for listener in (*self._exclusions, *self._others):
                listener.wake()

    def note_frontiers(self) -> None:
        """Tell the hooks that frontiers were applied: a partition may be newly tainted."""
        tainted = self._snapshot.freshness.tainted
        if not self._has_begun or tainted == self._tainted:
            return
        added = frozenset(tainted) - self._tainted
        self._tainted = frozenset(tainted)
        if added:
            for listener in self._exclusions:
                listener.note_partitions(added)

    def stop(self) -> None:
        """Call no hook any more, without a wait for a call that is under way."""
        self._has_begun = False
        for listener in (*self._exclusions, *self._others):
            listener.stop()


def _with_states_between(
    earlier: EarlierStates, keys: Sequence[bytes], values: Sequence[bytes]
) -> EarlierStates:
    """Add the states in between of members whose record came more than once."""
    states_by_key: dict[bytes, list[StoredState]] = {}
    for key, states in earlier.items():
        states_by_key[key] = list(states)
    last_values: dict[bytes, bytes] = {}
    for key, value in zip(keys, values, strict=True):
        if key in last_values:
            states = states_by_key[key]
            _, was_quarantined = states[0]
            states.append((last_values[key], was_quarantined))
        last_values[key] = value
    return states_by_key
