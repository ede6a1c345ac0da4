"""HTTP as nobody should speak it: bounded, answered, never a fault of ours, and never an event or
an *allowed*.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator

import pytest
from tests.gateway import AUDITOR, PRODUCER, Gateway
from tests.stack import PURPOSE, SHARED, World

from consentry.local.stack import LocalStack
from consentry.ops.http.head_limits import HEAD_BYTES_MAX, HEAD_SECONDS

pytestmark = pytest.mark.stack

BODY = json.dumps({"member_id": "bad:1", "purpose": PURPOSE, "choice": "OPT_OUT"}).encode()
WHO = f"Authorization: Bearer {PRODUCER}\r\n".encode()
KIND = b"Content-Type: application/json\r\n"
POST = b"POST /v1/consent-changes HTTP/1.1\r\nHost: a\r\n" + WHO + KIND
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
STATUS = b"GET /v1/status HTTP/1.1\r\nHost: a\r\n" + WHO


@pytest.fixture(scope="module")
def gateway(shared: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose table nobody keeps fresh; at the end it must be as well as before, and
    nothing sent.
    """
    SHARED.mend()
    world = World(shared, tmp_path_factory.mktemp("hostile"))
    try:
        gateway = Gateway(world)
        yield gateway
        assert gateway.call("GET", "/healthz").status == 200
        assert not [one for one in world.log() if one.key == b"bad:1"]
        assert gateway.running.metric("consentry_gateway_requests_total", status="500") == 0
        assert "Traceback" not in gateway.running.text()
        assert "bad:1" not in gateway.running.text()
    finally:
        world.close()


def statuses(answer: bytes) -> list[int]:
    """The status of each answer in what came back."""
    return [int(one) for one in re.findall(rb"HTTP/1\.1 (\d{3})", answer)]


CLOSE = b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "allowed"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50, {400}),
        (b"GET\r\n\r\n", {400}),
        (b"GET / HTTP/9.9\r\n\r\n", {400}),
        (b"NONSENSE /v1/status HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
        (b"GET /v1/st\xc3\xa9tus HTTP/1.1\r\nHost: a\r\n" + CLOSE, {400, 404}),
        (
            b"GET /v1/members/..%2f..%2fetc/decision?purpose=p HTTP/1.1\r\nHost: a\r\n"
            + WHO
            + CLOSE,
            {404, 422},
        ),
        (b"GET /v1/members/%00/decision?purpose=p HTTP/1.1\r\nHost: a\r\n" + WHO + CLOSE, {422}),
        (b"GET /v1/members/%ff%fe/decision?purpose=p HTTP/1.1\r\nHost: a\r\n" + WHO + CLOSE, {422}),
        (
            b"GET /v1/members/a/decision?purpose=%0d%0aX:y HTTP/1.1\r\nHost: a\r\n" + WHO + CLOSE,
            {422},
        ),
        (
            b"GET /v1/members/a/decision?purpose=p&purpose=q&wait=0 HTTP/1.1\r\nHost: a\r\n"
            + WHO
            + CLOSE,
            {200, 422},
        ),
        (b"GET http://evil/v1/status HTTP/1.1\r\nHost: a\r\n" + WHO + CLOSE, {200, 400, 404}),
        (b"GET //v1/status HTTP/1.1\r\nHost: a\r\n" + WHO + CLOSE, {404}),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n" + CLOSE, {400, 404, 405}),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n" + CLOSE, {400, 404, 405}),
        (b"TRACE /v1/status HTTP/1.1\r\nHost: a\r\n" + WHO + CLOSE, {405}),
        (b"HEAD /v1/status HTTP/1.1\r\nHost: a\r\n" + WHO + CLOSE, {405}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
        (
            STATUS + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
            {200, 400, 403, 404},
        ),
        (STATUS + b"Authorization: Bearer dev:x:auditor\r\n" + CLOSE, {401}),
        (STATUS + b"X: a\r\n b\r\n" + CLOSE, {200, 400}),
        (STATUS + b"Bad Name: x\r\n" + CLOSE, {400}),
        (STATUS + b"X: a\0b\r\n" + CLOSE, {400}),
        (STATUS + b"Expect: 100-continue\r\n" + CLOSE, {200}),
        (STATUS + b"X: " + b"y" * 400_000 + b"\r\n" + CLOSE, {400, 431}),
        (STATUS + b"".join(b"X%d: y\r\n" % n for n in range(60_000)) + CLOSE, {400, 431}),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n" + CLOSE, {400, 404, 414, 431}),
        (POST + LENGTH + b"Content-Length: 5\r\n" + CLOSE + BODY, {400}),
        (POST + LENGTH + b"Transfer-Encoding: chunked\r\n" + CLOSE + BODY, {400}),
        (POST + b"Content-Length: -1\r\n" + CLOSE, {400}),
        (POST + b"Content-Length: 99999999999999999999999\r\n" + CLOSE, {400, 413}),
        (POST + b"Content-Length: " + b"0" * 5000 + b"2\r\n" + CLOSE + b"{}", {400, 422}),
        (POST + b"Content-Length: 104857600\r\n" + CLOSE, {413}),
        (POST + b"Transfer-Encoding: chunked\r\n" + CLOSE + b"zz\r\n{}\r\n", {400}),
        (POST + b"Transfer-Encoding: chunked\r\n" + CLOSE + b"ffffffffffffffffff\r\n", {400}),
        (POST + b"Transfer-Encoding: chunked, gzip\r\n" + CLOSE + b"0\r\n\r\n", {400, 501}),
        (
            POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n" + CLOSE + b"\x1f\x8b",
            {400, 415},
        ),
        (POST + b"Content-Length: 0\r\n" + CLOSE, {400}),
        (POST + b"Idempotency-Key: a\tb\r\nContent-Length: 2\r\n" + CLOSE + b"{}", {400, 422}),
    ],
    ids=lambda one: ascii(one[:40]) if isinstance(one, bytes) else "",
)
def test_what_is_no_proper_request_is_refused(
    gateway: Gateway, sent: bytes, allowed: set[int]
) -> None:
    """What two servers read in two ways lets somebody speak past the one that checks."""
    answer = gateway.raw(sent, seconds=8)

    found = statuses(answer.replace(b"HTTP/1.1 100", b""))
    assert len(found) == 1, answer[:500]
    assert found[0] in allowed, answer[:500]
    assert b'"allowed": true' not in answer


def test_a_header_that_is_sent_in_is_not_sent_out(gateway: Gateway) -> None:
    """A line break that came back in a header would let a caller write the answer of another."""
    for name in (b"traceparent", b"Idempotency-Key", b"If-Match", b"X-Forwarded-For", b"Host"):
        answer = gateway.raw(
            POST + name + b": a%0d%0aSet-Cookie: b\r\nContent-Length: 2\r\n" + CLOSE + b"{}"
        )
        assert b"set-cookie" not in answer.lower()
        assert b"%0d" not in answer.lower().partition(b"\r\n\r\n")[0]


def test_pipelined_requests_are_answered_in_their_order(gateway: Gateway) -> None:
    """Swapped, one caller's answer would be read as another's."""
    one = STATUS + b"\r\n"
    other = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"

    answer = gateway.raw(
        one + other + b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" + b"GET / HTTP/1.1\r\n" + CLOSE
    )

    assert statuses(answer) == [200, 200, 404, 404]
    assert answer.index(b"messages_waiting") < answer.index(b'{"ok": true}\n')


def test_ten_megabytes_are_refused_before_they_are_read(gateway: Gateway) -> None:
    """Read whole, a few of them at a time would end the gateway for everybody."""
    body = b'{"member_id":"' + b"x" * 10_000_000

    announced = gateway.raw(POST + b"Content-Length: %d\r\n\r\n" % len(body), body)
    chunked = gateway.raw(
        POST + b"Transfer-Encoding: chunked\r\n\r\n",
        *(b"%x\r\n" % 65_536 + b"x" * 65_536 + b"\r\n" for _ in range(160)),
    )

    for answer in (announced, chunked):
        # The connection is reset while they still come; who listens first hears why.
        assert statuses(answer) in ([413], [])
    assert statuses(gateway.raw(POST + b"Content-Length: 10000000\r\n\r\n")) == [413]


def test_a_head_that_drips_is_cut_off(gateway: Gateway) -> None:
    """A thousand such connections from one laptop would hold all the files that the gateway may
    open.
    """
    began = time.monotonic()
    with (
        socket.create_connection(gateway.address, timeout=30) as silent,
        socket.create_connection(gateway.address, timeout=30) as dripping,
        socket.create_connection(gateway.address, timeout=30) as blank,
        socket.create_connection(gateway.address, timeout=30) as second,
    ):
        second.sendall(STATUS + b"\r\n")
        assert statuses(second.recv(65_536)) == [200]
        second.sendall(b"GET /v1/st")
        dripping.sendall(STATUS)
        while time.monotonic() - began < HEAD_SECONDS - 2:
            dripping.sendall(b"X: y\r\n")
            blank.sendall(b"\r\n")
            time.sleep(0.5)
        assert statuses(dripping.recv(65_536)) == [408]
        assert statuses(second.recv(65_536)) == [408]
        assert silent.recv(10) == b""
        assert blank.recv(10) == b""
        assert second.recv(10) == dripping.recv(10) == b""
    assert time.monotonic() - began < HEAD_SECONDS + 10


def test_a_head_without_an_end_is_cut_off(gateway: Gateway) -> None:
    """Each such connection could fill the memory by itself."""
    with socket.create_connection(gateway.address, timeout=10) as endless:
        endless.sendall(STATUS + b"X: ")
        sent = 0
        try:
            while sent < 4_000_000:
                endless.sendall(b"y" * 16_384)
                sent += 16_384
                time.sleep(0.001)
            answer = endless.recv(65_536)
        except ConnectionError:
            answer = b""
    assert sent < 4_000_000 or statuses(answer) == [431]
    assert HEAD_BYTES_MAX < 100_000


def test_a_body_that_drips_is_cut_off_and_sends_nothing(gateway: Gateway) -> None:
    """Half an event must not be taken for one."""
    with socket.create_connection(gateway.address, timeout=30) as dripping:
        dripping.sendall(POST + LENGTH + b"\r\n" + BODY[:10])
        answer = dripping.recv(65_536)
    assert statuses(answer) == [408]


def test_who_hangs_up_in_between_leaves_nothing_behind(gateway: Gateway) -> None:
    """Counted as faults of ours, phones that lose the network would page somebody every night."""
    for _ in range(20):
        with socket.create_connection(gateway.address, timeout=5) as gone:
            gone.sendall(POST + LENGTH + b"\r\n" + BODY[:10])
    asked = f"/v1/members/bad:2/decision?purpose={PURPOSE}&wait=1"
    for _ in range(5):
        with socket.create_connection(gateway.address, timeout=5) as gone:
            gone.sendall(
                f"GET {asked} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {AUDITOR}\r\n\r\n".encode()
            )
    time.sleep(1.5)

    assert gateway.call("GET", "/v1/status", who=AUDITOR).status == 200
