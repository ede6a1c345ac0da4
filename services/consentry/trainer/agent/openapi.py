"""The OpenAPI description of the trainer's agent, with bodies, which FastAPI does not see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from consentry.ops.http.problems import ProblemOut, described_problems
from consentry.trainer.agent.models import CheckIn, DecideIn, MaskIn

_ALWAYS: Final = (400, 401, 403, 408, 431, 500, 503)
"""Statuses of problems that every route may answer with."""
_MODELS: Final[tuple[type[BaseModel], ...]] = (ProblemOut, DecideIn, MaskIn, CheckIn)
_REFERENCE: Final = "#/components/schemas/{model}"


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of an agent's route: these problems, and every route's."""
    return described_problems((*_ALWAYS, *statuses))


def body_of(kinds: Mapping[str, type[BaseModel] | None]) -> dict[str, Any]:
    """Return the OpenAPI description of an agent's body, by media types; None means bytes."""
    content = {}
    for kind, model in kinds.items():
        schema = {"type": "string", "format": "binary"}
        if model is not None:
            schema = {"$ref": _REFERENCE.format(model=model.__name__)}
        content[kind] = {"schema": schema}
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description of the trainer's agent."""
    if app.openapi_schema is None:
        description = get_openapi(
            title="Consentry agent",
            version="1",
            summary="Who may be used for training, answered on this machine.",
            description="Whatever is not known, not fresh or not understood is not allowed. "
            "Problems carry a stable `code` and the `fix`.",
            routes=app.routes,
        )
        schemas = description.setdefault("components", {}).setdefault("schemas", {})
        for model in _MODELS:
            schemas[model.__name__] = model.model_json_schema(ref_template=_REFERENCE)
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        description["components"]["securitySchemes"] = {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "Where the agent has a token file.",
            }
        }
        description["security"] = [{}, {"bearer": []}]
        app.openapi_schema = description
    return app.openapi_schema
