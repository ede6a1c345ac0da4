"""The gateway as an ASGI application: its routes, limits and metrics."""

from __future__ import annotations

from time import perf_counter
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request, Response
from prometheus_client import Counter, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consentry.gateway.context import GatewayContext
from consentry.gateway.fast_path import ENDPOINTS, FastPath
from consentry.gateway.http.concurrency import ConcurrencyLimit
from consentry.gateway.http.limits import WaitingLimit
from consentry.gateway.http.openapi import describe
from consentry.gateway.http.problems import add_problem_handlers, unhandled
from consentry.gateway.routes import approvals, bundles, controls, decisions, events, quarantine
from consentry.ops.metrics import Metrics

CONCURRENCY: Final = 512
_LOG = structlog.get_logger(__name__)


class ObservedApp:
    """ASGI: counts and times every response of the gateway; a fault of ours becomes a problem.

    Each response also says that browsers may not guess its type.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._known: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; see ASGI."""
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
        except ClientDisconnect:
            return  # nobody is there to get a response
        except Exception as error:
            _LOG.error(
                "request_failed", method=scope["method"], route=_route(scope), exc_info=error
            )
            if status not in (0, 500):
                raise  # half of a response is out: all that is left is to close the connection
            if status == 0:
                await unhandled()(scope, receive, note)
        finally:
            route = _route(scope)
            requests, seconds = self._series(route, status)
            requests.inc()
            seconds.observe(perf_counter() - started)

    def _series(self, route: str, status: int) -> tuple[Counter, Histogram]:
        """Return the series of a route and status.

        They are remembered: looking them up each time would cost more than counting.
        """
        series = self._known.get((route, status))
        if series is None:
            requests = self._metrics.counter("consentry_gateway_requests_total", route, str(status))
            seconds = self._metrics.histogram("consentry_gateway_request_seconds", route)
            series = self._known[route, status] = (requests, seconds)
        return series


def _route(scope: Scope) -> str:
    """Return the path as it is declared: a real one names members."""
    route = scope.get("route")
    return str(route.path) if route is not None else "none"


def build_app(context: GatewayContext | None) -> FastAPI:
    """Return the gateway's FastAPI application; without a context it can only be described."""
    app = FastAPI(
        title="Consentry gateway",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.context = context
    app.state.waiting = WaitingLimit()
    add_problem_handlers(app)
    for module in (events, decisions, controls, approvals, quarantine, bundles):
        app.include_router(module.router)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    app.add_api_route("/openapi.json", _describe, include_in_schema=False)
    app.add_api_route("/healthz", _alive, include_in_schema=False)
    return app


def build_gateway(context: GatewayContext, *, concurrency: int = CONCURRENCY) -> ASGIApp:
    """Return the whole gateway: its application behind fast path, limits and metrics."""
    fast_path = FastPath(build_app(context))
    limited = ConcurrencyLimit(fast_path, most=concurrency, apart=ENDPOINTS)
    return ObservedApp(limited, metrics=context.metrics)


async def _describe(request: Request) -> dict[str, Any]:
    return describe(request.app)


async def _alive() -> Response:
    return Response('{"ok": true}\n', media_type="application/json")
