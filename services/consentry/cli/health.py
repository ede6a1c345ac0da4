"""The health server that each command of a service starts, at the address of the settings."""

from __future__ import annotations

from collections.abc import Mapping

from consentry.ops.health import Check, HealthServer
from consentry.ops.metrics import Metrics
from consentry.ops.settings import Settings


def start_health(
    settings: Settings,
    metrics: Metrics,
    *,
    alive: Check,
    ready: Check,
    pages: Mapping[str, Check] | None = None,
) -> HealthServer:
    """Serve a service command's metrics, probes and further `pages` until it is stopped.

    `pages` is path → check. Raises Refused where the address cannot be opened.
    """
    health = HealthServer(
        metrics, alive=alive, ready=ready, host=settings.metrics_host, port=settings.metrics_port
    )
    health.pages.update(pages or {})
    health.start()
    return health
