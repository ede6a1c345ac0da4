"""The list of every service's Prometheus metrics: name, kind, labels and meaning, in base units.

No member id ever becomes a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Kind = Literal["counter", "gauge", "histogram"]


class Definition(NamedTuple):
    """The declaration of one Prometheus metric of our services.

    `meaning` is its help text, `buckets` are a histogram's.
    """

    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


_MILLISECONDS: Final = (1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750)
SECONDS: Final = (
    *(milliseconds / 1000 for milliseconds in _MILLISECONDS),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
COUNTS: Final = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)


def _counter(meaning: str, *labels: str) -> Definition:
    return Definition("counter", labels, meaning)


def _gauge(meaning: str, *labels: str) -> Definition:
    return Definition("gauge", labels, meaning)


def _seconds(meaning: str, *labels: str) -> Definition:
    """Return the definition of a histogram of seconds."""
    return Definition("histogram", labels, meaning, SECONDS)


DEFINITIONS: Final[Mapping[str, Definition]] = {
    "consentry_build_info": _gauge("always 1; the label is the version that runs", "version"),
    # The processor
    "consentry_event_to_table_seconds": _seconds(
        "time from the broker's append of an event until it is stored in the table"
    ),
    "consentry_events_total": _counter(
        "member events by outcome: applied, repeated, replayed, quarantined, clamped", "outcome"
    ),
    "consentry_quarantined_total": _counter("messages that could not be read", "error_class"),
    "consentry_frontier_age_seconds": _gauge(
        "time since the partition's frontier: all events appended before it are published",
        "partition",
    ),
    "consentry_table_refusals_total": _counter(
        "batches that the table refused, by reason: epoch, offset", "reason"
    ),
    "consentry_table_generation_changes_total": _counter(
        "partitions of the table that were rebuilt, because it was wiped or damaged"
    ),
    "consentry_batch_events": Definition(
        "histogram", (), "events that went through the hot path together", COUNTS
    ),
    "consentry_batch_seconds": _seconds(
        "duration of each step for a group of batches: decode, load, fold, store, settle", "step"
    ),
    "consentry_partitions_tainted": _gauge(
        "tainted partitions: a message's key was unreadable, so no member of theirs is allowed"
    ),
    "consentry_controls_not_understood": _gauge(
        "controls that were not understood, by kind (unreadable, scope); each pauses everything "
        "until it is lifted",
        "kind",
    ),
    # The ledger
    "consentry_purge_orders_open": _gauge(
        "purge orders for which the subscriber still owes a receipt", "subscriber"
    ),
    "consentry_purge_orders_overdue": _gauge(
        "open purge orders that are past their deadline", "subscriber"
    ),
    "consentry_receipts_total": _counter("receipts that the ledger read", "subscriber", "result"),
    # Trainers
    "consentry_event_to_trainer_seconds": _seconds(
        "time from the broker's append of an event until its record is in this trainer's memory, "
        "for records published live",
        "subscriber",
    ),
    "consentry_pause_to_trainer_seconds": _seconds(
        "time from the broker's append of a control until it is in this trainer's memory, for "
        "controls read live",
        "subscriber",
    ),
    "consentry_staleness_seconds": _gauge(
        "age of the least fresh partition that the trainer follows", "subscriber"
    ),
    "consentry_decisions_total": _counter(
        "decisions by outcome (allowed or excluded), reason, and whether they were fresh",
        "outcome",
        "reason",
        "fresh",
    ),
    "consentry_members": _gauge("members with a record in this trainer's memory", "subscriber"),
    "consentry_follower_regressions_total": _counter(
        "older versions of a record that came after newer ones, and were ignored", "subscriber"
    ),
    # The bundler
    "consentry_bundle_age_seconds": _gauge(
        "time since the moment up to which the newest bundle is proven; infinite without a bundle"
    ),
    "consentry_bundles_total": _counter(
        "bundles that were due, by outcome: snapshot, delta, stale, standby, conflict, failed",
        "outcome",
    ),
    "consentry_bundler_regressions_total": _counter(
        "older versions of a record that the bundler read after newer ones"
    ),
    "consentry_bundler_heals_total": _counter(
        "records to be published again, by outcome: appended, overtaken, failed", "outcome"
    ),
    "consentry_bundler_unhealed_seconds": _gauge(
        "time for which the oldest record has stood behind an older version of itself; 0 without "
        "such a record"
    ),
    "consentry_members_quarantined": _gauge(
        "members who are quarantined in the bundles, because something about them was unreadable"
    ),
    "consentry_bundler_divergences_total": _counter(
        "regressions between records that share no history; their members are quarantined"
    ),
    # The gateway
    "consentry_gateway_requests_total": _counter(
        "requests that the gateway answered, by declared route and HTTP status", "route", "status"
    ),
    "consentry_gateway_request_seconds": _seconds(
        "time from the head of a request until its whole answer is sent", "route"
    ),
    "consentry_gateway_messages_waiting": _gauge(
        "messages that wait for the broker's acknowledgement"
    ),
    "consentry_gateway_bulk_lines_total": _counter(
        "lines of bulk requests by outcome: accepted, invalid, refused, unknown", "outcome"
    ),
    "consentry_gateway_controls_age_seconds": _gauge(
        "time since the moment up to which the gateway knows all controls; if it is too long ago, "
        "every decision is STALE"
    ),
}

METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    name: definition.labels for name, definition in DEFINITIONS.items()
}
"""The labels of every metric by its name; rules and dashboards are checked against them."""


class Metrics:
    """The Prometheus metrics of one running service.

    They have a registry of their own, so that two services can live in one process.
    """

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self._metrics: dict[str, Counter | Gauge | Histogram] = {}
        self.gauge("consentry_build_info", version).set(1)

    def counter(self, name: str, *labels: str) -> Counter:
        """Return a service's counter with these label values; on a hot path call this once."""
        metric = self._metric(name)
        assert isinstance(metric, Counter)
        return metric.labels(*labels) if labels else metric

    def gauge(self, name: str, *labels: str) -> Gauge:
        """Return a service's gauge with these label values."""
        metric = self._metric(name)
        assert isinstance(metric, Gauge)
        return metric.labels(*labels) if labels else metric

    def histogram(self, name: str, *labels: str) -> Histogram:
        """Return a service's histogram with these label values."""
        metric = self._metric(name)
        assert isinstance(metric, Histogram)
        return metric.labels(*labels) if labels else metric

    def forget(self, name: str, *labels: str) -> None:
        """Drop one series of a metric, whose stale number would mislead.

        For example when a partition moves to another worker.
        """
        metric = self._metric(name)
        if labels in metric._metrics:
            metric.remove(*labels)

    def text(self) -> bytes:
        """Return all metrics of a service in Prometheus' text format."""
        return generate_latest(self.registry)

    def _metric(self, name: str) -> Counter | Gauge | Histogram:
        if name not in self._metrics:
            self._metrics[name] = self._new_metric(name, DEFINITIONS[name])
        return self._metrics[name]

    def _new_metric(self, name: str, definition: Definition) -> Counter | Gauge | Histogram:
        meaning, labels = definition.meaning, definition.labels
        if definition.kind == "counter":
            return Counter(name, meaning, labels, registry=self.registry)
        if definition.kind == "gauge":
            return Gauge(name, meaning, labels, registry=self.registry)
        return Histogram(name, meaning, labels, buckets=definition.buckets, registry=self.registry)
