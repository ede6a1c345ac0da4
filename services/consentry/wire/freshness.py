"""The proof of how fresh a reader's records are: frontier messages it has read and reached."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Final

from consentry.domain.values import Micros
from consentry.wire.frontiers import Frontier
from consentry.wire.schemas import CONTROLS, RECORDS
from consentry.wire.tokens import Token

_WAITING_MAX: Final = 64
FOREVER: Final = Micros(1 << 62)
"""A time later than any other: a question about what is known now counts everything."""
CLOCKS_SECONDS_MAX: Final = 1.0
"""The clocks of a reader and of the processor may differ by this much. A reader whose clock is
further behind cannot prove anything fresh: to it, old frontiers look new.
"""
BUNDLE_CLOCKS_SECONDS_MAX: Final = 300.0
"""A bundle may seem to be younger than now by this much. It is allowed to be hours old, so that
clocks need not agree as closely as with a follower.
"""

Positions = Mapping[tuple[str, int], int]
"""Next offset per (short topic name, partition)."""


def stale_age(
    subject: str,
    age_seconds: float,
    bound_seconds: float,
    *,
    clocks_seconds: float = CLOCKS_SECONDS_MAX,
) -> str:
    """Return why a frontier's age proves no record fresh, as a clause; empty if it does.

    The clause names `subject`.

    An age below `-clocks_seconds` is refused as well: a clock that went back makes no old record
    fresh. An age that is not a number is never fresh.
    """
    if age_seconds < -clocks_seconds:
        return f"this machine's clock is {-age_seconds:.1f} s behind the processor's"
    if not age_seconds <= bound_seconds:
        return f"{subject} is {age_seconds:.1f} s old, the bound is {bound_seconds:g} s"
    return ""


class Freshness:
    """Frontiers decoded from messages: those that wait for their positions, those that count.

    They are of all partitions.

    A frontier says: all events recorded up to its time are in records below its offset. It counts
    once the follower's positions have reached that offset. `partitions` is the partition count of
    records.
    """

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.tainted: set[int] = set()
        """Partitions with an event of which not even the key could be read."""
        self._fresh_at: dict[int, Micros] = {}
        self._covered: dict[int, Frontier] = {}
        """Per partition the frontier that counts: its log, and the next event offset it covers."""
        self._waiting: dict[int, deque[Frontier]] = {}

    def apply(self, frontier: Frontier, appended_at: Micros = FOREVER) -> None:
        """Take a frontier message in; it counts once the log positions it names are reached.

        Its time is a worker's clock: it is never believed beyond `appended_at`, the broker's.
        """
        if not 0 <= frontier.partition < self.partitions:
            return
        frontier = frontier._replace(frontier_at=min(frontier.frontier_at, appended_at))
        waiting = self._waiting.get(frontier.partition)
        newest = self._fresh_at.get(frontier.partition, Micros(0))
        if waiting:
            newest = waiting[-1].frontier_at
        if frontier.frontier_at < newest:
            # It is of a worker that was replaced while it was frozen: it must not undo a taint.
            return
        # Several wait: under a steady lag an older one is reached while the newest never is.
        self._waiting.setdefault(frontier.partition, deque(maxlen=_WAITING_MAX)).append(frontier)
        if frontier.tainted:
            self.tainted.add(frontier.partition)
        else:
            self.tainted.discard(frontier.partition)

    def settle(self, positions: Positions) -> None:
        """Let the frontier messages count whose log positions have been reached by now."""
        controls_position = positions.get((CONTROLS, 0), 0)
        for partition, waiting in self._waiting.items():
            position = positions.get((RECORDS, partition), 0)
            while (
                waiting
                and position >= waiting[0].records_offset
                and controls_position >= waiting[0].controls_offset
            ):
                frontier = waiting.popleft()
                self._fresh_at[partition] = max(
                    frontier.frontier_at, self._fresh_at.get(partition, Micros(0))
                )
                known = self._covered.get(partition)
                if known is not None and known.log == frontier.log:
                    frontier = frontier._replace(
                        next_offset=max(frontier.next_offset, known.next_offset)
                    )
                self._covered[partition] = frontier

    def missing(self, token: Token, positions: Positions) -> str:
        """Return what a consistency token demands and is not read yet; empty if all is."""
        log = token.log.hex()
        if all(known.log != log for known in self._covered.values()):
            return "the token is of a log that is not followed here"
        for partition, offset in token.offsets.items():
            known = self._covered.get(partition)
            covered = 0 if known is None else known.next_offset
            if offset > 0 and (known is None or known.log != log or covered < offset):
                return (
                    f"partition {partition} is followed up to event {covered}, the token asks "
                    f"for {offset}"
                )
        position = positions.get((CONTROLS, 0), 0)
        if position < token.controls:
            return (
                f"the controls are followed up to {position}, the token asks for {token.controls}"
            )
        return ""

    def staleness_seconds(self, now: Micros) -> float:
        """Return the age of the least fresh partition; infinite while one never was fresh."""
        if len(self._fresh_at) < self.partitions:
            return math.inf
        return (now - min(self._fresh_at.values())) / 1e6

    @property
    def newest(self) -> Micros:
        """The latest time that any partition's frontier has proven it fresh for."""
        return max(self._fresh_at.values(), default=Micros(0))

    def counted(self) -> dict[int, Frontier]:
        """Return per partition the frontier message that counts.

        Its time is the latest for which the partition is fresh.
        """
        frontiers: dict[int, Frontier] = {}
        for partition, frontier in sorted(self._covered.items()):
            frontiers[partition] = frontier._replace(
                frontier_at=self._fresh_at[partition], tainted=partition in self.tainted
            )
        return frontiers

    def token(self, positions: Positions, issued_at: Micros) -> Token | None:
        """Return the consistency token of all that frontiers prove here; None while nothing.

        A reader as fresh as this token knows as much. Without one log that all frontiers agree on
        there is no token; a partition whose frontier names no log demands nothing.
        """
        logs = {frontier.log for frontier in self._covered.values() if frontier.log}
        if len(logs) != 1:
            return None
        log = logs.pop()
        offsets = {
            partition: frontier.next_offset
            for partition, frontier in self._covered.items()
            if frontier.log == log
        }
        seconds = issued_at // 1_000_000 * 1_000_000
        return Token(bytes.fromhex(log), offsets, positions.get((CONTROLS, 0), 0), Micros(seconds))
