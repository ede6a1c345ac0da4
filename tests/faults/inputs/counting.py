"""A registry's address that counts what it is asked: it stands between a processor and the real
one.
"""

from __future__ import annotations

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class CountingRegistry:
    """Passes every GET on;

    `asked` holds when each question for a schema id came, on the monotonic clock.
    """

    def __init__(self, target: str) -> None:
        asked: list[float] = []
        real = urlsplit(target)
        self.asked = asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/schemas/ids/"):
                    asked.append(time.monotonic())
                self._pass_on(None)

            def do_POST(self) -> None:
                self._pass_on(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

            def _pass_on(self, body: bytes | None) -> None:
                kind = {"Content-Type": self.headers.get("Content-Type", "application/json")}
                connection = http.client.HTTPConnection(real.netloc, timeout=10)
                try:
                    connection.request(
                        self.command, f"{real.path.rstrip('/')}{self.path}", body, kind
                    )
                    answer = connection.getresponse()
                    status, told = answer.status, answer.read()
                finally:
                    connection.close()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, *_arguments: object) -> None:
                """Nothing: a test that fails has better things to show."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="counting-registry", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
