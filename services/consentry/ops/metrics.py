"""Every metric in one place: name, kind, labels, meaning.

Base units; no member id ever becomes a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Kind = Literal["counter", "gauge", "histogram"]


class Definition(NamedTuple):
    """What a metric is: how it behaves, its labels, and what it tells."""

    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


SECONDS: Final = (
    *(
        0.001,
        0.002,
        0.003,
        0.005,
        0.0075,
        0.01,
        0.015,
        0.02,
        0.03,
        0.05,
        0.075,
        0.1,
        0.15,
        0.2,
        0.3,
        0.5,
        0.75,
    ),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
COUNTS: Final = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)

DEFINITIONS: Final[Mapping[str, Definition]] = {
    "consentry_build_info": Definition("gauge", ("version",), "1, with the version that runs"),
    "consentry_event_to_table_seconds": Definition(
        "histogram", (), "append by the broker → stored in the table", SECONDS
    ),
    "consentry_events_total": Definition(
        "counter",
        ("outcome",),
        "member events by outcome: applied, repeated, replayed, quarantined, clamped",
    ),
    "consentry_quarantined_total": Definition(
        "counter", ("error_class",), "messages that could not be read"
    ),
    "consentry_frontier_age_seconds": Definition(
        "gauge", ("partition",), "now − the partition's frontier"
    ),
    "consentry_table_refusals_total": Definition(
        "counter", ("reason",), "batches the table refused: epoch, offset"
    ),
    "consentry_table_generation_changes_total": Definition(
        "counter", (), "lives of the table begun: wipe, rebuild"
    ),
    "consentry_batch_events": Definition(
        "histogram", (), "events that went through the hot path together", COUNTS
    ),
    "consentry_batch_seconds": Definition(
        "histogram",
        ("step",),
        "time a round takes by step: decode, load, fold, store, settle",
        SECONDS,
    ),
    "consentry_partitions_tainted": Definition(
        "gauge", (), "partitions that give no allowed answer"
    ),
    "consentry_controls_not_understood": Definition(
        "gauge",
        ("kind",),
        "pauses of everything in place of what was not understood, not lifted: unreadable, scope",
    ),
    "consentry_purge_orders_open": Definition(
        "gauge", ("subscriber",), "purge orders that still owe a receipt"
    ),
    "consentry_purge_orders_overdue": Definition(
        "gauge", ("subscriber",), "of these, past their deadline"
    ),
    "consentry_receipts_total": Definition(
        "counter", ("subscriber", "result"), "receipts read by the ledger"
    ),
    "consentry_event_to_trainer_seconds": Definition(
        "histogram",
        ("subscriber",),
        "append by the broker → in this trainer's memory, for records published live",
        SECONDS,
    ),
    "consentry_pause_to_trainer_seconds": Definition(
        "histogram",
        ("subscriber",),
        "append of a control by the broker → in this trainer's memory, live",
        SECONDS,
    ),
    "consentry_staleness_seconds": Definition(
        "gauge", ("subscriber",), "age of the least fresh partition it follows"
    ),
    "consentry_decisions_total": Definition(
        "counter",
        ("outcome", "reason", "fresh"),
        "answers given: allowed or excluded, why, and whether fresh",
    ),
    "consentry_members": Definition(
        "gauge", ("subscriber",), "members with a record in this trainer's memory"
    ),
    "consentry_follower_regressions_total": Definition(
        "counter", ("subscriber",), "older versions of a record seen after newer ones, and ignored"
    ),
    "consentry_bundle_age_seconds": Definition(
        "gauge",
        (),
        "now − the time up to which the newest bundle is proven; infinite while there is none",
    ),
    "consentry_bundles_total": Definition(
        "counter",
        ("outcome",),
        "bundles due, by outcome: snapshot, delta, stale, unhealed, standby, failed",
    ),
    "consentry_bundler_regressions_total": Definition(
        "counter", (), "older versions of a record read behind newer ones"
    ),
    "consentry_bundler_heals_total": Definition(
        "counter",
        ("outcome",),
        "records to be published again, by outcome: appended, overtaken, failed",
    ),
    "consentry_bundler_unhealed_seconds": Definition(
        "gauge",
        (),
        "for how long the oldest record has stood behind an older version of itself; 0 where none "
        "does",
    ),
    "consentry_members_held": Definition(
        "gauge", (), "members whom the bundles hold: something about them was unreadable"
    ),
    "consentry_bundler_divergences_total": Definition(
        "counter",
        (),
        "of the regressions, those of records that share no history: their members are quarantined",
    ),
    "consentry_gateway_requests_total": Definition(
        "counter",
        ("route", "status"),
        "requests answered by the gateway, by declared route and HTTP status",
    ),
    "consentry_gateway_request_seconds": Definition(
        "histogram", ("route",), "from the head of a request to its whole answer", SECONDS
    ),
    "consentry_gateway_messages_waiting": Definition(
        "gauge", (), "messages that wait for the broker's acknowledgement"
    ),
    "consentry_gateway_bulk_lines_total": Definition(
        "counter",
        ("outcome",),
        "lines of bulk requests by outcome: accepted, invalid, refused, unknown",
    ),
    "consentry_gateway_controls_age_seconds": Definition(
        "gauge",
        (),
        "now − the time up to which all controls are known here; old ones make every decision "
        "STALE",
    ),
}

METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    name: definition.labels for name, definition in DEFINITIONS.items()
}
"""Name → labels of every metric, for rules and dashboards to be checked against."""


class Metrics:
    """The metrics of one service, on a registry of their own so that two can live in one
    process.
    """

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self.gauge("consentry_build_info", version).set(1)

    def counter(self, name: str, *labels: str) -> Counter:
        """The counter `name` with these label values; keep it rather than asking again on a hot
        path.
        """
        made = self._make(name)
        assert isinstance(made, Counter)
        return made.labels(*labels) if labels else made

    def gauge(self, name: str, *labels: str) -> Gauge:
        """The gauge `name` with these label values."""
        made = self._make(name)
        assert isinstance(made, Gauge)
        return made.labels(*labels) if labels else made

    def histogram(self, name: str, *labels: str) -> Histogram:
        """The histogram `name` with these label values."""
        made = self._make(name)
        assert isinstance(made, Histogram)
        return made.labels(*labels) if labels else made

    def forget(self, name: str, *labels: str) -> None:
        """Drop one series, as when a partition moves to another worker: a stale number would
        mislead.
        """
        made = self._make(name)
        if labels in made._metrics:
            made.remove(*labels)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def _make(self, name: str) -> Counter | Gauge | Histogram:
        if name not in self._made:
            definition = DEFINITIONS[name]
            if definition.kind == "histogram":
                self._made[name] = Histogram(
                    name,
                    definition.meaning,
                    definition.labels,
                    buckets=definition.buckets,
                    registry=self.registry,
                )
            else:
                kind = Counter if definition.kind == "counter" else Gauge
                self._made[name] = kind(
                    name, definition.meaning, definition.labels, registry=self.registry
                )
        return self._made[name]
