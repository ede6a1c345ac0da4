"""The metrics and health probes of any service over HTTP: /metrics, /healthz and /readyz.

They have threads of their own, so that nothing waits for a scrape.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from consentry.domain.errors import Refused
from consentry.ops.metrics import Metrics

Check = Callable[[], dict[str, Any]]
"""Returns a JSON object; its `ok` is true if the check holds."""


class HealthServer:
    """An HTTP server for the metrics and health probes of a service, until `stop`.

    `port` 0 takes a free one from the operating system. Raises Refused where the address cannot be
    opened.
    """

    def __init__(
        self, metrics: Metrics, *, alive: Check, ready: Check, host: str, port: int
    ) -> None:
        self.pages: dict[str, Check] = {"/healthz": alive, "/readyz": ready}
        """Paths that answer with a check; more may be added before the start."""
        checks = self.pages

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                path = self.path.split("?", 1)[0]
                if path == "/metrics":
                    self._answer(200, "text/plain; version=0.0.4; charset=utf-8", metrics.text())
                elif path in checks:
                    report = checks[path]()
                    status = 200 if report.get("ok") else 503
                    self._answer(status, "application/json", json.dumps(report).encode())
                else:
                    paths = b"/metrics, /healthz and /readyz are here\n"
                    self._answer(404, "text/plain; charset=utf-8", paths)

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing: a line for each scrape is of no use."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise Refused(
                f"The metrics address {host}:{port} cannot be opened: {error.strerror}.",
                code="metrics.address",
                fix="set CONSENTRY_METRICS_PORT to a free port, or to 0 for one from the "
                "operating system",
            ) from error
        self._server.daemon_threads = True
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="health", daemon=True
        )

    def start(self) -> None:
        """Start to answer requests for a service's metrics and health probes."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering requests for metrics and health probes, and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
