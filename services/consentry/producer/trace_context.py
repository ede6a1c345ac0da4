"""The trace that a producer's event carries, in W3C form."""

from __future__ import annotations

import sys


def traceparent_of(traceparent: str | None) -> str | None:
    """Return the `traceparent` that a producer's event carries; by default OpenTelemetry's.

    If it is None, that of the current span.

    None where the program does not use OpenTelemetry, or is in no span.
    """
    if traceparent is not None:
        return traceparent
    # Nothing is imported: a program that has a span has loaded this itself.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
