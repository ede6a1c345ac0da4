"""Every answer that is not a success, as problem+json with a stable code and the fix. Source: RFC 9457."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from consentry.domain.errors import ConsentryError, InvalidInput, Refused, Unavailable
from consentry.gateway.access import CHALLENGE, Forbidden, Unauthenticated
from consentry.wire.sending import QueueFull
from consentry.wire.yaml_text import InvalidForm

MEDIA_TYPE: Final = "application/problem+json"
RETRY_SECONDS: Final = "1"
_LOG = structlog.get_logger(__name__)


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


def problem_response(
    status: int, message: str, *, code: str, fix: str = "", headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """The problem as an HTTP answer."""
    body = {
        "type": f"urn:consentry:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": message,
        "code": code,
        "fix": fix,
        **more,
    }
    return Response(json.dumps(body), status, dict(headers or {}), MEDIA_TYPE)


def respond_to(error: ConsentryError) -> Response:
    """The answer to an error of ours."""
    headers: dict[str, str] = {}
    more: dict[str, Any] = {}
    if isinstance(error, Problem):
        status, headers, more = error.status, error.headers, error.more
    elif isinstance(error, Unauthenticated):
        status, headers = 401, {"WWW-Authenticate": CHALLENGE}
    elif isinstance(error, Forbidden):
        status = 403
    elif isinstance(error, InvalidInput):
        status = 422
        if isinstance(error, InvalidForm):
            more = {"field": error.field}
    elif isinstance(error, Refused):
        status = 409
    elif isinstance(error, Unavailable):
        status, headers = 503, {"Retry-After": RETRY_SECONDS}
    else:
        status = 500
    if isinstance(error, QueueFull):
        headers["Retry-After"] = RETRY_SECONDS
    return problem_response(status, error.message, code=error.code, fix=error.fix, headers=headers, **more)


def unhandled() -> Response:
    """The answer to a fault of ours: it says nothing of what went wrong inside."""
    return problem_response(
        500,
        "The gateway failed; whether the request took effect is not known.",
        code="gateway.internal",
        fix="repeat it with the same Idempotency-Key; the gateway's log has the cause",
    )


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ConsentryError)
    return respond_to(error)


async def _on_http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    return problem_response(
        error.status_code,
        f"{phrase}.",
        code=f"http.{error.status_code}",
        fix="see /openapi.json for the paths and their methods",
        headers=error.headers,
    )


async def _on_invalid_parameter(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place, *path = first["loc"]
    name = ".".join(map(str, path))
    return problem_response(
        422,
        f"The {place} parameter {name[:80]!r} does not fit: {first['msg']}.",
        code="input.parameter",
        fix="see /openapi.json for what it may hold",
        field=name[:80],
    )


async def _on_fault(_request: Request, _error: Exception) -> Response:
    return unhandled()


def add_problem_handlers(app: FastAPI) -> None:
    """Have every error of this app answered as a problem."""
    app.add_exception_handler(ConsentryError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    # Answered by the application's own outermost layer, which then raises it again.
    app.add_exception_handler(Exception, _on_fault)
