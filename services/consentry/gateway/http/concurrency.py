"""The limit on how many HTTP requests the gateway answers at a time."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from consentry.ops.http.problems import problem_response


class ConcurrencyLimit:
    """ASGI: the gateway answers at most `most` requests at a time, and 503 to those beyond.

    POSTs to the paths of `apart` are counted apart, with as many places of their own: no other
    request keeps an opt-out waiting.
    """

    def __init__(self, app: ASGIApp, *, most: int, apart: Collection[str] = ()) -> None:
        self._app = app
        self._most = most
        self._apart = frozenset(apart)
        self._running = {True: 0, False: 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it with 503; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_apart = scope["path"] in self._apart and scope["method"] == "POST"
        if self._running[is_apart] >= self._most:
            response = problem_response(
                503,
                f"More than {self._most} requests are being answered.",
                code="limit.concurrency",
                fix="send it again in a moment",
                headers={"Retry-After": "1"},
            )
            await response(scope, receive, send)
            return
        self._running[is_apart] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running[is_apart] -= 1
