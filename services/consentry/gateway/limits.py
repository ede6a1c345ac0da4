"""How much one caller, and all of them together, may ask at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from consentry.gateway.problems import Problem, problem_response

CALLERS_MAX: Final = 10_000


class RateLimit:
    """A bucket for each caller: `per_second` fill it, it holds `burst`. In this process; each replica has its own."""

    def __init__(self, *, per_second: float, burst: float, clock: Callable[[], float] = monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, cost: float = 1.0) -> None:
        """Take so much from the caller's bucket. Raises Problem 429 with Retry-After where it does not hold it."""
        now = self._clock()
        level, at = self._buckets.get(caller, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._per_second)
        if level < min(cost, self._burst):
            wait = (min(cost, self._burst) - level) / self._per_second
            raise Problem(
                429,
                f"This credential sent more than {self._per_second:g} events a second.",
                code="limit.rate",
                fix="wait as Retry-After says, send fewer at a time, or ask the operators for a higher limit",
                headers={"Retry-After": str(max(1, round(wait + 0.5)))},
            )
        self._buckets[caller] = (level - cost, now)
        self._buckets.move_to_end(caller)
        if len(self._buckets) > CALLERS_MAX:
            self._buckets.popitem(last=False)


class ConcurrencyLimit:
    """ASGI: at most `most` requests are answered at a time; more are told to come again."""

    def __init__(self, app: ASGIApp, *, most: int) -> None:
        self._app = app
        self._most = most
        self._now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._now >= self._most:
            answer = problem_response(
                503,
                f"More than {self._most} requests are being answered.",
                code="limit.concurrency",
                fix="send it again in a moment",
                headers={"Retry-After": "1"},
            )
            await answer(scope, receive, send)
            return
        self._now += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._now -= 1
