"""The trace that an event belongs to, in W3C form."""

from __future__ import annotations

import sys


def traceparent_of(given: str | None) -> str | None:
    """What was given; else that of OpenTelemetry's current span, where the program uses
    OpenTelemetry; else None.
    """
    if given is not None:
        return given
    # Nothing is imported: a program that has a span has loaded this itself.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
