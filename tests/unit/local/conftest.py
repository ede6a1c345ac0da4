"""A Maven repository on loopback whose files a test chooses, so that downloads are real and need no
network.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from consentry.local.artifacts import Artifact


@dataclass
class MavenRepository:
    """Serves `files` by path; the first answers of `truncations` paths break off half-way."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    truncations: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)

    def publish(self, name: str, content: bytes, *, served: bytes | None = None) -> Artifact:
        """Put an artifact up; `served` is what clients get where it is not the pinned content."""
        artifact = Artifact(
            group="org.example",
            artifact=name,
            version="1.0",
            classifier="",
            packaging="jar",
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
        )
        self.files[self.path(artifact)] = content if served is None else served
        return artifact

    @staticmethod
    def path(artifact: Artifact) -> str:
        """Return the path under which clients ask for it."""
        group = artifact.group.replace(".", "/")
        return f"/{group}/{artifact.artifact}/{artifact.version}/{artifact.file_name}"


@pytest.fixture
def maven() -> Iterator[MavenRepository]:
    """A repository that is up for the test."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            repository.requests[self.path] += 1
            content = repository.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if repository.truncations[self.path] > 0:
                repository.truncations[self.path] -= 1
                content = content[: len(content) // 2]
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    repository = MavenRepository(address=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield repository
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
