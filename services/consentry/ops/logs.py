"""Structured logs on standard error: one line an event, JSON in production.

Never a member id, never a secret.
"""

from __future__ import annotations

import logging
import sys

import structlog

NOISY = frozenset({"aiokafka", "faust", "librdkafka", "mode"})


class Repetitions(logging.Filter):
    """Lets a client library speak a few times in ten seconds: a broker that is away must not drown
    our own lines.
    """

    def __init__(self, *, lines_max: int = 5, seconds: float = 10.0) -> None:
        super().__init__()
        self._lines_max = lines_max
        self._seconds = seconds
        self._seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is to be written; ours always are."""
        source = record.name.split(".")[0]
        if source not in NOISY:
            return True
        since, count = self._seen.get(source, (record.created, 0))
        if record.created - since > self._seconds:
            since, count = record.created, 0
        self._seen[source] = (since, count + 1)
        return count < self._lines_max


def set_up_logs(*, style: str, level: str) -> None:
    """Send structlog and the standard library's logging to standard error, as `text` or `json`."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Repetitions())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    logging.getLogger("librdkafka").setLevel(logging.WARNING)
    # Faust, mode and aiokafka say much at start that is no news to an operator.
    for noisy in NOISY - {"librdkafka"}:
        logging.getLogger(noisy).setLevel(max(threshold, logging.WARNING))
