"""HTTP problems of the gateway's own errors, beside those that all of our services share."""

from __future__ import annotations

from fastapi import FastAPI, Response

from consentry.domain.errors import ConsentryError
from consentry.forms.document import InvalidDocument
from consentry.gateway.access import CHALLENGE, Forbidden, Unauthenticated
from consentry.kafka.sender import QueueFull
from consentry.ops.http import problems
from consentry.ops.http.problems import RETRY_SECONDS, problem_response


def respond_to(error: ConsentryError) -> Response:
    """Return the gateway's HTTP response to one of our own errors."""
    if isinstance(error, Unauthenticated):
        return _problem(401, error, headers={"WWW-Authenticate": CHALLENGE})
    if isinstance(error, Forbidden):
        return _problem(403, error)
    if isinstance(error, InvalidDocument):
        return _problem(422, error, field=error.field)
    response = problems.respond_to(error)
    if isinstance(error, QueueFull):
        response.headers["Retry-After"] = RETRY_SECONDS
    return response


def _problem(
    status: int, error: ConsentryError, *, headers: dict[str, str] | None = None, **more: str
) -> Response:
    return problem_response(
        status, error.message, code=error.code, fix=error.fix, headers=headers, **more
    )


def unhandled() -> Response:
    """Return the gateway's HTTP response to a fault of ours; it tells nothing of the inside."""
    return problem_response(
        500,
        "The gateway failed; whether the request took effect is not known.",
        code="gateway.internal",
        fix="repeat it with the same Idempotency-Key; the gateway's log has the cause",
    )


def add_problem_handlers(app: FastAPI) -> None:
    """Make the gateway's application answer every error with an HTTP problem."""
    problems.add_problem_handlers(app, fault=unhandled, respond_to=respond_to)
