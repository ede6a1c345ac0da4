"""The processor's metrics and log lines about the batches of member events that it takes in."""

from __future__ import annotations

from typing import Final

import structlog

from consentry.ops.clock import Clock
from consentry.ops.metrics import Metrics
from consentry.processor.batches import BatchGroup, BatchResult

_SAMPLES: Final = 32
_LOG = structlog.get_logger(__name__)


class BatchMetrics:
    """The metrics of the processor's batches: events counted, delays observed.

    `clock` is in microseconds.
    """

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock

    def note_stored(self, group: BatchGroup) -> None:
        """Observe how many events the processor stored, and their delay from event to table.

        The time is that of up to 32 events, spread over each batch.
        """
        stored_at_seconds = self._clock() / 1e6
        events = sum(len(batch.events.offsets) for batch in group.batches)
        self._metrics.histogram("consentry_batch_events").observe(events)
        table_seconds = self._metrics.histogram("consentry_event_to_table_seconds")
        for batch in group.batches:
            if batch.is_refused:
                continue
            appended_ms = batch.events.appended_ms
            step = max(1, len(appended_ms) // _SAMPLES)
            for sample_ms in appended_ms[::step]:
                table_seconds.observe(max(0.0, stored_at_seconds - sample_ms / 1e3))

    def note_settled(self, group: BatchGroup) -> None:
        """Observe how long each of the processor's steps took for a group of batches."""
        for step, seconds in group.seconds.items():
            self._metrics.histogram("consentry_batch_seconds", step).observe(seconds)

    def count(self, result: BatchResult) -> None:
        """Count the events of a processor's batch by outcome; log each quarantined message."""
        counter = self._metrics.counter
        counter("consentry_events_total", "applied").inc(result.applied)
        counter("consentry_events_total", "repeated").inc(result.repeated)
        counter("consentry_events_total", "replayed").inc(result.replayed)
        counter("consentry_events_total", "clamped").inc(result.clamped)
        for refusal in result.refusals:
            counter("consentry_events_total", "quarantined").inc()
            counter("consentry_quarantined_total", refusal.error_class).inc()
            _LOG.warning(
                "quarantined",
                partition=refusal.partition,
                offset=refusal.offset,
                error_class=refusal.error_class,
            )
