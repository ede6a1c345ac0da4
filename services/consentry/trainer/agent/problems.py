"""Every answer of the agent that is none, as problem+json with a stable code and the fix. Source: RFC 9457."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from consentry.domain.errors import ConsentryError, InvalidInput, Refused, Unavailable

MEDIA_TYPE: Final = "application/problem+json"


class Problem(ConsentryError):
    """An answer with a status of its own; `more` are further members of the JSON object, `headers` go with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        fix: str = "",
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message, code=code, fix=fix)
        self.status = status
        self.headers = dict(headers or {})
        self.more = more


def respond_to(error: ConsentryError) -> Response:
    """The answer to an error of ours."""
    headers: dict[str, str] = {}
    more: dict[str, Any] = {}
    if isinstance(error, Problem):
        status, headers, more = error.status, error.headers, error.more
    elif isinstance(error, InvalidInput):
        status = 422
    elif isinstance(error, Refused):
        status = 409
    elif isinstance(error, Unavailable):
        status, headers = 503, {"Retry-After": "1"}
    else:
        status = 500
    body = {
        "type": f"urn:consentry:problem:{error.code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "code": error.code,
        "fix": error.fix,
        **more,
    }
    return Response(json.dumps(body), status, headers, MEDIA_TYPE)


def fault() -> Response:
    """The answer to a fault of ours: it says nothing of what went wrong inside."""
    return respond_to(
        Problem(
            500,
            "The agent failed; nothing is allowed by this.",
            code="agent.internal",
            fix="ask again; the agent's log has the cause",
        )
    )


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ConsentryError)
    return respond_to(error)


async def _on_http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return respond_to(
        Problem(
            error.status_code,
            f"{HTTPStatus(error.status_code).phrase}.",
            code=f"http.{error.status_code}",
            fix="see /openapi.json for the paths and their methods",
            headers=error.headers,
        )
    )


async def _on_parameter(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place, *path = first["loc"]
    name = ".".join(map(str, path))[:80]
    return respond_to(
        Problem(
            422,
            f"The {place} parameter {name!r} does not fit: {first['msg']}.",
            code="input.parameter",
            fix="see /openapi.json for what it may hold",
            field=name,
        )
    )


async def _on_fault(_request: Request, _error: Exception) -> Response:
    return fault()


def add_problem_handlers(app: FastAPI) -> None:
    """Have every error of this app answered as a problem."""
    app.add_exception_handler(ConsentryError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_parameter)
    # Answered by the application's own outermost layer, which then raises it again.
    app.add_exception_handler(Exception, _on_fault)
