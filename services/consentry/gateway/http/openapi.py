"""The OpenAPI description of the gateway's HTTP routes.

It adds what FastAPI cannot see: the bodies, which are read strictly, and the problems.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from consentry.forms.yaml import document_text
from consentry.ops.http.problems import ProblemOut, described_problems

ACCEPTS_REPETITION: Final = ("idempotency-key", "traceparent")
_REFERENCE: Final = "#/components/schemas/{model}"
_ALWAYS: Final = (400, 401, 403, 408, 429, 431, 500, 503)
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "idempotency-key": {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": "One for each request, the same one again for its repetition: the event "
        "then counts once.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]{1,255}$"},
    },
    "traceparent": {
        "name": "traceparent",
        "in": "header",
        "required": False,
        "description": "W3C trace context; travels with the event. One that is malformed is left "
        "out.",
        "schema": {"type": "string"},
    },
    "if-match": {
        "name": "If-Match",
        "in": "header",
        "required": False,
        "description": "ETag of the decision that the person saw; for OPT_IN in place of "
        "observed_version.",
        "schema": {"type": "string", "pattern": '^"?[0-9]{1,18}"?$'},
    },
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of a gateway route: these problems, and every route's."""
    return described_problems((*_ALWAYS, *statuses))


def body_of(model: type[BaseModel], *headers: str) -> dict[str, Any]:
    """Return the OpenAPI description of a JSON body of the gateway, and of its headers."""
    schema = _reference(model)
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "parameters": [_HEADERS[name] for name in headers],
    }


def one_of_lines(*models: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI schema of one line of JSON in the gateway's bulk bodies."""
    return {"anyOf": [_reference(model) for model in models]}


def _reference(model: type[BaseModel]) -> dict[str, Any]:
    """Return the reference to a model that FastAPI does not see."""
    _MODELS[model.__name__] = model
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def ndjson_body(*headers: str) -> dict[str, Any]:
    """Return the OpenAPI description of a bulk body of the gateway: lines of JSON."""
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/x-ndjson": {"schema": {"type": "string", "maxLength": 8_388_608}}
            },
        },
        "parameters": [_HEADERS[name] for name in headers],
    }


_MODELS: Final[dict[str, type[BaseModel]]] = {}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description of the gateway."""
    if app.openapi_schema is None:
        description = get_openapi(
            title="Consentry gateway",
            version="1",
            summary="Consent changes, pauses and policies in; decisions and their reasons out.",
            description="Every success means that Kafka acknowledged it. Problems carry a stable "
            "`code` and the `fix`.",
            routes=app.routes,
        )
        schemas = description.setdefault("components", {}).setdefault("schemas", {})
        models: list[type[BaseModel]] = [ProblemOut, *_MODELS.values()]
        for model in models:
            schema = model.model_json_schema(ref_template=_REFERENCE)
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        description["components"]["securitySchemes"] = {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "An API key, or a token of the OIDC issuer.",
            }
        }
        description["security"] = [{"bearer": []}]
        app.openapi_schema = description
    return app.openapi_schema


def openapi_text(app: FastAPI) -> str:
    """Return the OpenAPI description of the gateway as YAML, the same for the same code."""
    made_by = "Made by `consentry schemas openapi` from services/consentry/gateway; do not edit."
    return document_text(describe(app), made_by)
