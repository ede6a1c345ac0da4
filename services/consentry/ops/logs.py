"""The logs of every service, on standard error: one line for each event, JSON in production.

No line may contain a member id or a secret.
"""

from __future__ import annotations

import logging
import sys

import structlog

NOISY = frozenset({"aiokafka", "faust", "librdkafka", "mode"})


class NoisyLogFilter(logging.Filter):
    """A log filter that lets a noisy client library write only a few lines in ten seconds.

    Otherwise a broker that is away would drown our own lines.
    """

    def __init__(self, *, lines_max: int = 5, seconds: float = 10.0) -> None:
        super().__init__()
        self._lines_max = lines_max
        self._seconds = seconds
        self._seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the log line is to be written; our own lines always are."""
        source = record.name.split(".")[0]
        if source not in NOISY:
            return True
        since, count = self._seen.get(source, (record.created, 0))
        if record.created - since > self._seconds:
            since = record.created
            count = 0
        self._seen[source] = (since, count + 1)
        return count < self._lines_max


def set_up_logs(*, style: str, level: str) -> None:
    """Set up a service's logs: all lines go to standard error, as `text` or `json`."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.typing.Processor
    if style == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
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
    handler.addFilter(NoisyLogFilter())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    logging.getLogger("librdkafka").setLevel(logging.WARNING)
    # Faust, mode and aiokafka log much at start that an operator does not need.
    for library in NOISY - {"librdkafka"}:
        logging.getLogger(library).setLevel(max(threshold, logging.WARNING))
