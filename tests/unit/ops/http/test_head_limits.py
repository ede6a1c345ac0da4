"""The limits on a request's head, with a real uvicorn on a port from the OS."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from tests.sizes import PATIENCE

from consentry.ops.http.head_limits import HeadLimits

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class QuickLimits(HeadLimits):
    """The limits with a second for a head."""

    head_seconds = 1.0


async def app(_scope: Any, _receive: Any, send: Any) -> None:
    """Send the whole body, and say only later that this was all of it."""
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok", "more_body": True})
    await asyncio.sleep(0.3)
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    """A server whose keep-alive ends long before a head has to be there."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=QuickLimits, lifespan="off", log_config=None, timeout_keep_alive=0
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join(PATIENCE * 10)
    assert not thread.is_alive()


def test_a_head_that_begins_before_the_last_answer_ended_is_answered_when_it_is_slow(
    address: tuple[str, int],
) -> None:
    """A client that is cut off without an answer looks for the fault in the network."""
    with socket.create_connection(address, timeout=PATIENCE * 10) as connection:
        connection.sendall(REQUEST)
        answer = connection.recv(65_536)
        while not answer.endswith(b"ok"):
            answer += connection.recv(65_536)
        connection.sendall(b"GET /st")

        answer = connection.recv(65_536)

    assert answer.startswith(b"HTTP/1.1 408 ")
