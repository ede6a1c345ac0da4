"""A person's key goes to the gateway that the settings name, and to nobody else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from consentry.cli.gateway_client import GatewayClient
from consentry.domain.errors import InvalidInput, Refused, Unavailable

KEY = "ck_abcdefghij_SECRET"


@contextmanager
def serving(status: int, body: object, **headers: str) -> Iterator[tuple[str, list[str | None]]]:
    """A server that answers everything alike; its address, and the credentials that it was
    shown.
    """
    shown: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("Authorization"))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", shown
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status: int) -> None:
    """Whoever can make the gateway's name answer once would have the keys of everybody who
    decides.
    """
    with (
        serving(200, {"ok": True}) as (elsewhere, stolen),
        serving(status, {}, Location=elsewhere) as (url, _),
    ):
        client = GatewayClient(url, KEY)
        with pytest.raises((Refused, Unavailable)):
            client.get("/v1/approvals")
        with pytest.raises((Refused, Unavailable)):
            client.post("/v1/approvals/x/approve")
        assert stolen == []


def test_no_proxy_of_the_environment_sees_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that somebody set for a package manager is no decision about credentials."""
    with (
        serving(200, {"from": "proxy"}) as (proxy, stolen),
        serving(200, {"from": "gateway"}) as (url, shown),
    ):
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        assert GatewayClient(url, KEY).get("/v1/status") == {"from": "gateway"}
        assert (stolen, shown) == ([], [f"Bearer {KEY}"])


@pytest.mark.parametrize("key", ["", "two words", f"{KEY}\nX-Other: 1", "\x1b[31m"])
def test_a_key_file_that_holds_something_else_is_told_as_such(key: str) -> None:
    """An error that names the network would have people look at the network."""
    with pytest.raises(InvalidInput, match="one line") as refused:
        GatewayClient("https://gateway.example.org", key)
    assert not key or key not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["http://gateway.example.org", "ftp://127.0.0.1", "https://me:pw@example.org", "127.0.0.1"],
)
def test_a_key_is_not_sent_in_the_open(url: str) -> None:
    """Everybody on the way could approve in that person's name."""
    with pytest.raises(InvalidInput, match="https"):
        GatewayClient(url, KEY)


def test_problems_become_errors_with_their_code_and_fix() -> None:
    """A person at the desk reads what the gateway would have told a program."""
    problem = {"detail": "No.", "code": "approval.own", "fix": "ask another"}
    with serving(403, problem) as (url, _), pytest.raises(Refused) as refused:
        GatewayClient(url, KEY).post("/v1/approvals/x/approve")
    assert (refused.value.code, refused.value.fix) == ("approval.own", "ask another")
    with serving(503, b"<html>") as (url, _), pytest.raises(Unavailable) as unavailable:
        GatewayClient(url, KEY).get("/v1/approvals")
    assert KEY not in str(unavailable.value)
