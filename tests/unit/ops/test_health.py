"""The health server: probes and metrics over HTTP, refused where they cannot be served."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError

import pytest

from consentry.domain.errors import Refused
from consentry.ops.health import HealthServer
from consentry.ops.metrics import Metrics

STATE: dict[str, Any] = {}


@pytest.fixture
def server() -> Iterator[HealthServer]:
    """A server that is alive, and ready as STATE says."""
    STATE.clear()
    STATE.update(ok=True)
    server = HealthServer(
        Metrics("1.0"),
        alive=lambda: {"ok": True, "age": 1},
        ready=lambda: STATE,
        host="127.0.0.1",
        port=0,
    )
    server.start()
    yield server
    server.stop()


def asked(server: HealthServer, path: str) -> tuple[int, bytes]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://{server.address}{path}", timeout=5) as answer:
            return int(answer.status), answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def test_probes_answer_with_what_their_checks_say(server: HealthServer) -> None:
    """The orchestrator sends work to whoever says that it is ready."""
    assert asked(server, "/healthz") == (200, b'{"ok": true, "age": 1}')
    assert asked(server, "/readyz?verbose")[0] == 200

    STATE.update(ok=False, why="stale")

    status, body = asked(server, "/readyz")
    assert (status, json.loads(body)["why"]) == (503, "stale")


def test_metrics_are_served(server: HealthServer) -> None:
    """A scrape that fails is an alert that stays silent."""
    status, body = asked(server, "/metrics")

    assert status == 200
    assert b"consentry_build_info" in body


def test_an_unknown_path_says_which_there_are(server: HealthServer) -> None:
    """Whoever mistyped it finds the right one."""
    status, body = asked(server, "/health")

    assert status == 404
    assert b"/healthz" in body


def test_an_address_that_is_taken_is_refused_by_its_variable(server: HealthServer) -> None:
    """A worker without probes would be killed for it much later."""
    port = int(server.address.rpartition(":")[2])

    with pytest.raises(Refused, match="CONSENTRY_METRICS_PORT"):
        HealthServer(Metrics("1.0"), alive=dict, ready=dict, host="127.0.0.1", port=port)
