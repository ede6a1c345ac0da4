"""Errors of our HTTP services as problem+json: each has a stable code and says what mends it.

Source: RFC 9457.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from consentry.domain.errors import ConsentryError, InvalidInput, Refused, Unavailable

MEDIA_TYPE: Final = "application/problem+json"
RETRY_SECONDS: Final = "1"


class Problem(ConsentryError):
    """An error that an HTTP service answers with a status of its own.

    `more` are further members of the JSON object; `headers` are sent with the response.
    """

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


class ProblemOut(BaseModel):
    """The reason why a request was not answered as asked. Source: RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable; what programs look at.")
    fix: str
    model_config = ConfigDict(extra="allow")


def described_problems(statuses: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of an HTTP service's error responses, by status."""
    schema = {"$ref": f"#/components/schemas/{ProblemOut.__name__}"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in sorted(set(statuses))
    }


def problem_response(
    status: int,
    message: str,
    *,
    code: str,
    fix: str = "",
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Response:
    """Return an error of an HTTP service as its response in problem+json."""
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
    """Return the HTTP response, as problem+json, to an error of ours, by its kind."""
    headers: dict[str, str] = {}
    more: dict[str, Any] = {}
    if isinstance(error, Problem):
        status, headers, more = error.status, error.headers, error.more
    elif isinstance(error, InvalidInput):
        status = 422
    elif isinstance(error, Refused):
        status = 409
    elif isinstance(error, Unavailable):
        status, headers = 503, {"Retry-After": RETRY_SECONDS}
    else:
        status = 500
    return problem_response(
        status, error.message, code=error.code, fix=error.fix, headers=headers, **more
    )


def add_problem_handlers(
    app: FastAPI,
    *,
    fault: Callable[[], Response],
    respond_to: Callable[[ConsentryError], Response] = respond_to,
) -> None:
    """Make an HTTP service answer every error as problem+json.

    `fault` makes the response to an exception that is not a ConsentryError; it reveals nothing.
    """

    async def on_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ConsentryError)
        return respond_to(error)

    async def on_fault(_request: Request, _error: Exception) -> Response:
        return fault()

    app.add_exception_handler(ConsentryError, on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_parameter)
    # Answered by the application's own outermost layer, which then raises it again.
    app.add_exception_handler(Exception, on_fault)


async def _on_http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem_response(
        error.status_code,
        f"{HTTPStatus(error.status_code).phrase}.",
        code=f"http.{error.status_code}",
        fix="see /openapi.json for the paths and their methods",
        headers=error.headers,
    )


async def _on_parameter(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    location, *path = first["loc"]
    name = ".".join(map(str, path))[:80]
    return problem_response(
        422,
        f"The {location} parameter {name!r} does not fit: {first['msg']}.",
        code="input.parameter",
        fix="see /openapi.json for what it may hold",
        field=name,
    )
