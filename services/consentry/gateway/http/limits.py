"""Limits on how much one caller of the gateway, and all of them together, may ask."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

from consentry.ops.http.problems import Problem

CALLERS_MAX: Final = 10_000
WAITING_MAX: Final = 128
WAITING_OF_ONE_MAX: Final = 16
"""Questions that may wait for freshness, of all callers and of one."""


class RateLimit:
    """The limit on events a second from each caller of the gateway: a bucket that refills.

    `per_second` events fill it, and it holds `burst`.

    It is of this process; each replica has its own.
    """

    def __init__(
        self, *, per_second: float, burst: float, clock: Callable[[], float] = monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, cost: float = 1.0) -> None:
        """Take `cost` events from the caller's bucket.

        Raises Problem 429 with Retry-After where the bucket does not hold them.
        """
        now = self._clock()
        level, at = self._buckets.get(caller, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._per_second)
        if level < min(cost, self._burst):
            wait = (min(cost, self._burst) - level) / self._per_second
            raise Problem(
                429,
                f"This credential sent more than {self._per_second:g} events a second.",
                code="limit.rate",
                fix="wait as Retry-After says, send fewer at a time, or ask the operators for a "
                "higher limit",
                headers={"Retry-After": str(max(1, round(wait + 0.5)))},
            )
        self._buckets[caller] = (level - cost, now)
        self._buckets.move_to_end(caller)
        if len(self._buckets) > CALLERS_MAX:
            self._buckets.popitem(last=False)


class WaitingLimit:
    """The limit on questions that wait in the gateway at a time, in all and of one caller.

    At most `most` wait in this process, and `most_of_one` of one caller.
    """

    def __init__(self, *, most: int = WAITING_MAX, most_of_one: int = WAITING_OF_ONE_MAX) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def slot(self, caller: str) -> Iterator[None]:
        """Count a waiting question of the caller until the context ends.

        Raises Problem: 429 where the caller has as many as one may have, 503 where all have.
        """
        if self._waiting[caller] >= self._most_of_one:
            raise _no_slot(429, f"{self._most_of_one} questions of this credential are waiting")
        if self._waiting.total() >= self._most:
            raise _no_slot(503, f"{self._most} questions are waiting")
        self._waiting[caller] += 1
        try:
            yield
        finally:
            self._waiting[caller] -= 1
            if not self._waiting[caller]:
                del self._waiting[caller]


def _no_slot(status: int, detail: str) -> Problem:
    return Problem(
        status,
        f"The answer is not fresh yet, and {detail} for one that is.",
        code="limit.waiting",
        fix="send it again in a moment, or with wait=0",
        headers={"Retry-After": "1"},
    )
