"""The gateway's own errors as problems, beside those that all of our services answer alike."""

from __future__ import annotations

from fastapi import FastAPI, Response

from consentry.domain.errors import ConsentryError
from consentry.forms.document import InvalidDocument
from consentry.gateway.access import CHALLENGE, Forbidden, Unauthenticated
from consentry.kafka.sender import QueueFull
from consentry.ops.http import problems
from consentry.ops.http.problems import RETRY_SECONDS, problem_response


def respond_to(error: ConsentryError) -> Response:
    """The answer to an error of ours."""
    if isinstance(error, Unauthenticated):
        return _answer(401, error, headers={"WWW-Authenticate": CHALLENGE})
    if isinstance(error, Forbidden):
        return _answer(403, error)
    if isinstance(error, InvalidDocument):
        return _answer(422, error, field=error.field)
    answer = problems.respond_to(error)
    if isinstance(error, QueueFull):
        answer.headers["Retry-After"] = RETRY_SECONDS
    return answer


def _answer(
    status: int, error: ConsentryError, *, headers: dict[str, str] | None = None, **more: str
) -> Response:
    return problem_response(
        status, error.message, code=error.code, fix=error.fix, headers=headers, **more
    )


def unhandled() -> Response:
    """The answer to a fault of ours: it says nothing of what went wrong inside."""
    return problem_response(
        500,
        "The gateway failed; whether the request took effect is not known.",
        code="gateway.internal",
        fix="repeat it with the same Idempotency-Key; the gateway's log has the cause",
    )


def add_problem_handlers(app: FastAPI) -> None:
    """Have every error of this app answered as a problem."""
    problems.add_problem_handlers(app, fault=unhandled, respond_to=respond_to)
