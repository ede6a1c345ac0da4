"""The agent's feed of events for training jobs: a bounded list that each reader goes through.

No reader waits for another one.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from typing import Any, Final, NamedTuple

from consentry.domain.controls import Control, PauseImposed, PauseLifted
from consentry.domain.orders import PurgeOrder
from consentry.domain.wording import iso_text
from consentry.trainer.hooks import Exclusion, ExclusionCause

EVENTS_MAX: Final = 10_000
BYTES_MAX: Final = 16 * 1024 * 1024
MEMBERS_MAX: Final = 1_000
"""Members in one event: a line of some 70 kB at most."""
HEARTBEAT_SECONDS: Final = 10.0

Json = dict[str, Any]


class Event(NamedTuple):
    """One event of the agent's feed as it is sent.

    `purpose` is empty for an event of every purpose.
    """

    number: int
    kind: str
    purpose: str
    text: str


class Feed:
    """The agent's feed: the last events, numbered, for every reader of its event stream.

    Anything may add to it from any thread; readers are on one event loop.
    """

    def __init__(self, *, events_max: int = EVENTS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.life: Final = secrets.token_hex(4)
        """Names this list: numbers of an earlier one mean nothing here."""
        self._events: deque[Event] = deque()
        self._bytes = 0
        self._last = 0
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._adding = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self.is_closed = False

    def attach(self) -> None:
        """Wake the feed's readers on the event loop that runs now."""
        self._loop = asyncio.get_running_loop()

    def add(self, kind: str, data: Json, *, purpose: str = "") -> None:
        """Add an event to the feed; the oldest make room for it."""
        text = json.dumps(data, separators=(",", ":"))
        with self._adding:
            self._last += 1
            self._events.append(Event(self._last, kind, purpose, text))
            self._bytes += len(text)
            while len(self._events) > self._events_max or (
                self._bytes > self._bytes_max and len(self._events) > 1
            ):
                self._bytes -= len(self._events.popleft().text)
        self._wake()

    def close(self) -> None:
        """End the stream of every reader."""
        self.is_closed = True
        self._wake()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake_readers)

    def _wake_readers(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    @property
    def last(self) -> int:
        """The number of the newest event of the feed."""
        return self._last

    def identity(self, number: int) -> str:
        """Return the identity by which a reader goes on after an event."""
        return f"{self.life}-{number}"

    def number_of(self, identity: str) -> int | None:
        """Return the number in an identity; None if of another list, or too old."""
        life, _, number = identity.partition("-")
        if life != self.life or not number.isascii() or not number.isdigit() or len(number) > 18:
            return None
        is_known = self._oldest() <= int(number) + 1 <= self._last + 1
        return int(number) if is_known else None

    def _oldest(self) -> int:
        events = self._events
        return events[0].number if events else self._last + 1

    def _after(self, number: int) -> list[Event] | None:
        """Return the events after this number; None where some of them are gone."""
        with self._adding:
            if number + 1 < self._oldest():
                return None
            if number >= self._last:
                return []
            return [event for event in self._events if event.number > number]

    async def read(
        self,
        last_id: str | None,
        *,
        purposes: Collection[str],
        greeting: Callable[[], Json],
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> AsyncIterator[bytes]:
        """Yield server-sent events of these purposes, after this identity or from now on.

        One `lost` stands in for all events that are gone. Source: HTML, "Server-sent events".
        """
        known = self.last if last_id is None else self.number_of(last_id)
        number = self.last if known is None else known
        yield _lines("status", self.identity(number), json.dumps(greeting()))
        if known is None:
            yield self._lost(number)
        while not self.is_closed:
            changed = self._changed
            events = self._after(number)
            if events is None:
                number = self.last
                yield self._lost(number)
                continue
            for event in events:
                number = event.number
                if not event.purpose or event.purpose in purposes:
                    yield _lines(event.kind, self.identity(number), event.text)
            if not events:
                try:
                    await asyncio.wait_for(changed.wait(), heartbeat_seconds)
                except TimeoutError:
                    yield b": heartbeat\n\n"

    def _lost(self, number: int) -> bytes:
        text = json.dumps(
            {"detail": "events are gone: ask again about every member that you keep an answer of"}
        )
        return _lines("lost", self.identity(number), text)

    # ---- called by the hooks

    def add_exclusion(self, exclusion: Exclusion) -> None:
        """Add an event of members who became excluded.

        Exclusions by controls are left out: `add_control` reports those once for all purposes.
        """
        if exclusion.cause is ExclusionCause.CONTROL:
            return
        kind = "lost" if exclusion.cause is ExclusionCause.MANY else "exclusion"
        reason = None if exclusion.reason is None else exclusion.reason.value
        for members in _chunks(exclusion.members):
            data = {
                "purpose": exclusion.purpose,
                "cause": exclusion.cause.value,
                "reason": reason,
                "at": iso_text(exclusion.at),
                "members": members,
                "partitions": list(exclusion.partitions),
            }
            self.add(kind, data, purpose=exclusion.purpose)

    def add_control(self, control: Control) -> None:
        """Add an event of a pause, a lift or a policy."""
        data: Json = {
            "effective_at": iso_text(control.effective_at),
            "recorded_at": iso_text(control.recorded_at),
            "version": control.version,
        }
        if isinstance(control, PauseImposed):
            scope = control.scope
            data |= {
                "pause": control.pause,
                "jurisdictions": list(scope.jurisdictions),
                "purposes": _list(scope.purposes),
                "categories": _list(scope.categories),
                "reach": control.reach.value,
            }
            self.add("pause", data)
        elif isinstance(control, PauseLifted):
            self.add("lift", data | {"pause": control.pause, "opt_ins": control.opt_ins.value})
        else:
            self.add("policy", data)

    def add_order(self, order: PurgeOrder) -> None:
        """Add an event of a purge order that is open."""
        scope = order.scope
        data = {
            "order_id": order.order_id,
            "because": order.because.value,
            "recorded_at": iso_text(order.recorded_at),
            "due_at": iso_text(order.due_at),
            "member": order.member,
            "pause": order.pause,
            "jurisdictions": None if scope is None else list(scope.jurisdictions),
            "purposes": None if scope is None else _list(scope.purposes),
            "categories": None if scope is None else _list(scope.categories),
        }
        self.add("purge_order", data)


def _chunks(members: tuple[str, ...]) -> Iterator[list[str]]:
    for start in range(0, max(len(members), 1), MEMBERS_MAX):
        yield list(members[start : start + MEMBERS_MAX])


def _lines(kind: str, identity: str, text: str) -> bytes:
    return f"id: {identity}\nevent: {kind}\ndata: {text}\n\n".encode()


def _list(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)
