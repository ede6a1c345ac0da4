"""The gateway as an ASGI application: its routes, limits, metrics, and what every request and answer have in common."""

from __future__ import annotations

from time import perf_counter
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consentry.gateway import answers, approvals, desk, events, quarantine_routes
from consentry.gateway.limits import ConcurrencyLimit
from consentry.gateway.openapi import describe
from consentry.gateway.parts import Parts
from consentry.gateway.problems import add_problem_handlers, unhandled
from consentry.ops.metrics import Metrics

CONCURRENCY: Final = 512
_LOG = structlog.get_logger(__name__)


class Observed:
    """ASGI: counts and times every answer, turns a fault of ours into a problem, and adds what each answer carries."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception as error:
            _LOG.error("request_failed", method=scope["method"], route=_route(scope), exc_info=error)
            if status:
                raise
            await unhandled()(scope, receive, note)
        finally:
            route = _route(scope)
            self._metrics.counter("consentry_gateway_requests_total", route, str(status)).inc()
            self._metrics.histogram("consentry_gateway_request_seconds", route).observe(perf_counter() - started)


def _route(scope: Scope) -> str:
    """The path as it is declared: a real one names members."""
    route = scope.get("route")
    return str(route.path) if route is not None else "none"


def build_app(parts: Parts | None, *, concurrency: int = CONCURRENCY) -> FastAPI:
    """The application over these parts; without any it can only be described."""
    app = FastAPI(title="Consentry gateway", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.parts = parts
    add_problem_handlers(app)
    for router in (events.router, answers.router, desk.router, approvals.router, quarantine_routes.router):
        app.include_router(router)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    app.add_api_route("/openapi.json", _describe, include_in_schema=False)
    app.add_api_route("/healthz", _alive, include_in_schema=False)
    if parts is not None:
        app.add_middleware(ConcurrencyLimit, most=concurrency)
        app.add_middleware(Observed, metrics=parts.metrics)
    return app


async def _describe(request: Request) -> dict[str, Any]:
    return describe(request.app)


async def _alive() -> Response:
    return Response('{"ok": true}\n', media_type="application/json")
