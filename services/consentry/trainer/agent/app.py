"""The trainer's agent as an ASGI application."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

from consentry.ops.http.problems import add_problem_handlers
from consentry.ops.metrics import Metrics
from consentry.trainer.agent.bodies import ARROW, JSON, PARQUET
from consentry.trainer.agent.models import (
    CheckIn,
    CheckOut,
    DecideIn,
    MaskIn,
    MaskOut,
    SnapshotDecisionOut,
)
from consentry.trainer.agent.openapi import body_of, describe, problems
from consentry.trainer.agent.problems import fault
from consentry.trainer.agent.routes import Routes
from consentry.trainer.agent.service import Agent

_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {}}}
}


def build_app(agent: Agent, metrics: Metrics) -> FastAPI:
    """Return the FastAPI application of a trainer's agent."""
    app = FastAPI(
        title="Consentry agent",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    add_problem_handlers(app, fault=fault)
    routes = Routes(agent)
    _add_questions(app, routes)
    app.add_api_route(
        "/v1/events",
        routes.get_events,
        methods=["GET"],
        response_class=StreamingResponse,
        responses={**_STREAM, **problems(422)},
    )
    app.add_api_route("/v1/status", routes.get_status, methods=["GET"], responses=problems())

    async def get_metrics() -> Response:
        text = await asyncio.to_thread(metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def get_description() -> dict[str, Any]:
        return describe(app)

    for path, endpoint in (
        ("/healthz", routes.get_health),
        ("/readyz", routes.get_readiness),
        ("/metrics", get_metrics),
        ("/openapi.json", get_description),
    ):
        app.add_api_route(path, endpoint, methods=["GET"], include_in_schema=False)
    return app


def _add_questions(app: FastAPI, routes: Routes) -> None:
    app.add_api_route(
        "/v1/decide",
        routes.get_decision,
        methods=["GET"],
        response_model=SnapshotDecisionOut,
        responses=problems(422),
    )
    app.add_api_route(
        "/v1/decide",
        routes.post_decision,
        methods=["POST"],
        response_model=SnapshotDecisionOut,
        responses=problems(413, 415, 422),
        openapi_extra=body_of({JSON: DecideIn}),
    )
    app.add_api_route(
        "/v1/mask",
        routes.post_mask,
        methods=["POST"],
        response_model=MaskOut,
        responses=problems(413, 415, 422),
        openapi_extra=body_of({JSON: MaskIn, ARROW: None}),
    )
    app.add_api_route(
        "/v1/check",
        routes.post_check,
        methods=["POST"],
        response_model=CheckOut,
        responses=problems(409, 413, 415, 422),
        openapi_extra=body_of({JSON: CheckIn, ARROW: None, PARQUET: None}),
    )
