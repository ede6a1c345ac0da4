"""The response to a fault of the trainer's agent."""

from __future__ import annotations

from fastapi import Response

from consentry.ops.http.problems import problem_response


def fault() -> Response:
    """Return the agent's response to a fault of ours; it does not say what went wrong inside."""
    return problem_response(
        500,
        "The agent failed; nothing is allowed by this.",
        code="agent.internal",
        fix="ask again; the agent's log has the cause",
    )
