"""Metrics: each can be used as it is defined, none names a member, and what moved away is
forgotten.
"""

from __future__ import annotations

import pytest

from consentry.ops.metrics import DEFINITIONS, METRICS, Metrics


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_metric_can_be_used_as_it_is_defined(name: str) -> None:
    """A metric that fails at its first use fails in the incident that it is for."""
    metrics, definition = Metrics("1.0"), DEFINITIONS[name]
    labels = ["x"] * len(definition.labels)

    if definition.kind == "counter":
        metrics.counter(name, *labels).inc()
    elif definition.kind == "gauge":
        metrics.gauge(name, *labels).set(2)
    else:
        metrics.histogram(name, *labels).observe(0.5)

    assert f"# HELP {name} ".encode() in metrics.text()
    assert METRICS[name] == definition.labels


@pytest.mark.parametrize("name", DEFINITIONS)
def test_names_say_the_kind_and_the_unit_and_no_label_is_a_member(name: str) -> None:
    """Rules and dashboards are written by the name alone; a member id in a label is a leak, and a
    million series.
    """
    definition = DEFINITIONS[name]

    assert name.startswith("consentry_")
    assert (definition.kind == "counter") == name.endswith("_total")
    assert (definition.kind == "histogram") == bool(definition.buckets)
    assert not set(definition.labels) & {"member", "member_id", "key", "jurisdiction"}
    assert definition.meaning


def test_a_series_that_moved_to_another_worker_is_forgotten() -> None:
    """A number that stands still looks like a partition that does."""
    metrics = Metrics("1.0")
    metrics.gauge("consentry_frontier_age_seconds", "3").set(1)

    metrics.forget("consentry_frontier_age_seconds", "3")
    metrics.forget("consentry_frontier_age_seconds", "4")

    assert b'partition="3"' not in metrics.text()


def test_two_services_in_one_process_share_nothing() -> None:
    """Tests and the demo run several."""
    first, second = Metrics("1.0"), Metrics("2.0")

    first.counter("consentry_events_total", "applied").inc()

    assert b'version="1.0"' in first.text()
    assert b"applied" not in second.text()
