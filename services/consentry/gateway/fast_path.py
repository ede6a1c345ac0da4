"""A fast path for the few gateway routes with nearly all requests: around FastAPI's layers.

Those layers would cost more than the routes. The routes are declared to FastAPI as well, for the
description and for other methods on their paths.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fastapi import FastAPI, Request, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from consentry.domain.errors import ConsentryError
from consentry.gateway.http.problems import respond_to
from consentry.gateway.routes.events import (
    post_bulk,
    post_consent_change,
    post_erasure,
    post_relocation,
)

Endpoint = Callable[[Request], Awaitable[Response]]
ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    "/v1/consent-changes": post_consent_change,
    "/v1/relocations": post_relocation,
    "/v1/erasures": post_erasure,
    "/v1/bulk": post_bulk,
}
_ROUTES: Final = {path: Route(path, endpoint) for path, endpoint in ENDPOINTS.items()}


class FastPath:
    """ASGI: takes POSTs to the gateway's busiest paths past FastAPI, to their endpoints."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; see ASGI."""
        endpoint = None
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = ENDPOINTS.get(scope["path"])
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["app"], scope["route"] = self._app, _ROUTES[scope["path"]]
        try:
            response = await endpoint(Request(scope, receive))
        except ConsentryError as error:
            response = respond_to(error)
        await response(scope, receive, send)
