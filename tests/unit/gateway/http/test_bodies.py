"""Bodies as callers should not send them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.unit.gateway.in_memory import DESK, InMemoryGateway

from consentry.gateway.http import bodies
from consentry.gateway.http.bodies import BODY_BYTES_MAX, BULK_BYTES_MAX, CONTROL_BYTES_MAX

PATHS = ["/v1/consent-changes", "/v1/relocations", "/v1/erasures", "/v1/pauses", "/v1/policies"]
ANYBODY = "dev:x:producer+desk"
DEEP = 60_000


@pytest.fixture(scope="module")
def gateway() -> Iterator[InMemoryGateway]:
    gateway = InMemoryGateway()
    yield gateway
    assert gateway.log.messages == [], "something of it was sent"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"member_id":"a"}{}', 400),
        (b"\xff\xfe{\x00}\x00", 400),
        (b"\xef\xbb\xbf{}", 400),
        (b'{"member_id":"\xff"}', 400),
        (b'{"member_id":"\xed\xa0\x80"}', 400),
        (b'{"member_id":"a","member_id":"b"}', 400),
        (b'{"member_id":"a","member_\\u0069d":"b"}', 400),
        (b'{"member_id":"a", "member_id" :"b"}', 400),
        (b'{"x":{"y":1,"y":2}}', 400),
        (b'{"observed_version":NaN}', 400),
        (b'{"version":-Infinity}', 400),
        (b'{"version":1e999}', 422),
        (b"9" * 5000, 400),
        (b"[" * DEEP, 400),
        (b'{"a":' * (DEEP // 5), 400),
        (b'{"terms":' + b"[" * 500 + b"]" * 500 + b"}", 422),
        (b"[]", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b"{}", 422),
        (
            b'{"member_id":"\\ud800","pause":"\\udfff","version":"\\ud800","jurisdictions":["\\ud800"]}',
            422,
        ),
        (b'{"\\ud800":1}', 422),
        (b'{"member_id":"a\\nb","purpose":"p","choice":"OPT_OUT","jurisdiction":"HK"}', 422),
        (b'{"member_id":"\\u0000","pause":"\\u0000"}', 422),
        (b'{"__proto__":{},"constructor":1}', 422),
    ],
)
def test_a_body_that_is_not_what_it_should_be_is_refused(
    gateway: InMemoryGateway, path: str, body: bytes, status: int
) -> None:
    """What is read two ways by two programs lets one of them believe that nobody opted out."""
    for _ in range(2):
        reply = gateway.call("POST", path, body, ANYBODY)
        assert reply.status == status, reply


@pytest.mark.parametrize(
    "more",
    [
        {"evidence": "\ud800"},
        {"evidence": "a\u202eb"},
        {"notice_version": "\x1b[31m"},
        {"notice_version": "x" * 513},
        {"notice_version": "é" * 257},
        {"observed_version": True},
        {"observed_version": 1.0},
        {"observed_version": -1},
        {"observed_version": 1 << 63},
        {"observed_version": "1"},
        {"choice": "opt_out"},
        {"choice": "OPT_OUT\n"},
        {"purpose": "p\n"},
        {"purpose": '{__name__="x"}'},
        {"purpose": "é"},
        {"member_id": "m 1"},
        {"member_id": "m:1\n"},
        {"member_id": "x" * 65},
        {"member_id": 1},
        {"member_id": "\uff4d:1"},
        {"effective_at": 1_700_000_000},
        {"effective_at": "1700000000"},
        {"effective_at": "2024-01-01"},
        {"effective_at": "2024-01-01T00:00:00"},
        {"effective_at": "9999-12-31T23:59:59Z"},
        {"effective_at": "0001-01-01T00:00:00+23:59"},
        {"event_id": "x"},
        {"recorded_at": "2024-01-01T00:00:00Z"},
        {"source": "somebody else"},
    ],
)
def test_a_field_that_does_not_fit_is_named_and_its_value_is_not(
    gateway: InMemoryGateway, more: dict[str, Any]
) -> None:
    """What comes into the log stays there for ever, and goes to every trainer; what is refused
    stays out of logs.
    """
    body = {"member_id": "m:1", "purpose": "p", "choice": "OPT_OUT"} | more

    reply = gateway.call("POST", "/v1/consent-changes", body)

    assert reply.status == 422, reply
    [(name, value)] = more.items()
    if isinstance(value, str) and name != "evidence" and len(value) > 6:
        assert value not in reply.json["detail"]


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/json5", "é"]
)
@pytest.mark.parametrize("path", PATHS)
def test_a_body_of_another_kind_is_415(gateway: InMemoryGateway, path: str, kind: str) -> None:
    """A page elsewhere on the web can have a browser send forms and plain text, without asking
    anybody.
    """
    assert gateway.call("POST", path, b"{}", ANYBODY, content_type=kind).status == 415


def test_json_with_a_charset_is_json(gateway: InMemoryGateway) -> None:
    """Most clients say so."""
    assert (
        gateway.call("POST", PATHS[0], b"{}", content_type="Application/JSON; charset=utf-8").status
        == 422
    )


@pytest.mark.parametrize(
    ("path", "most", "kind"),
    [
        ("/v1/consent-changes", BODY_BYTES_MAX, "application/json"),
        ("/v1/pauses/hk/lift", BODY_BYTES_MAX, "application/json"),
        ("/v1/policies", CONTROL_BYTES_MAX, "application/json"),
        ("/v1/bulk", BULK_BYTES_MAX, "application/x-ndjson"),
    ],
)
def test_a_body_that_is_too_large_is_413_announced_or_not(
    gateway: InMemoryGateway, path: str, most: int, kind: str
) -> None:
    """Ten callers with a gigabyte each would end the gateway for everybody."""
    announced = gateway.call(
        "POST", path, b"", ANYBODY, content_type=kind, content_length=str(most + 1)
    )
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 60_000
            yield b" " * 60_000

    headers = {"content-type": kind, "authorization": f"Bearer {ANYBODY}"}
    streamed = asyncio.run(gateway.ask("POST", path, endless(), headers))

    for reply in (announced, streamed):
        assert (reply.status, reply.code) == (413, "input.too_large")
        assert reply.headers["connection"] == "close"
    assert read <= most + 2 * 60_000


@pytest.mark.parametrize("announced", ["\u00b2", "-1", "1e9", "0" * 5000 + "2"])
def test_a_length_that_is_none_is_no_fault_of_ours(
    gateway: InMemoryGateway, announced: str
) -> None:
    """int() fails on digits that are not decimal, and on thousands of them."""
    assert (
        gateway.call("POST", "/v1/consent-changes", b"{}", content_length=announced).status == 422
    )


def test_a_body_that_does_not_come_is_408(
    gateway: InMemoryGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few hundred callers who never finish would take all the places there are."""
    monkeypatch.setattr(bodies, "_BODY_SECONDS", 0.05)

    async def stalling() -> AsyncIterator[bytes]:
        yield b'{"member_id":'
        await asyncio.sleep(60)

    headers = {"content-type": "application/json", "authorization": f"Bearer {ANYBODY}"}
    reply = asyncio.run(gateway.ask("POST", "/v1/consent-changes", stalling(), headers))

    assert (reply.status, reply.code, reply.headers["connection"]) == (408, "input.slow", "close")


def test_a_body_is_not_read_for_somebody_who_may_not_send_it(gateway: InMemoryGateway) -> None:
    """Whoever has no credential could fill the memory all the same."""

    async def untouched() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    headers = {"content-type": "application/json", "authorization": "Bearer dev:x:auditor"}
    for named, status in ((headers, 403), ({"content-type": "application/json"}, 401)):
        assert (
            asyncio.run(gateway.ask("POST", "/v1/consent-changes", untouched(), named)).status
            == status
        )


def test_a_lift_names_its_pause_in_the_path_alone(gateway: InMemoryGateway) -> None:
    """A body that names another pause would be approved as that one."""
    reply = gateway.call("POST", "/v1/pauses/hk/lift", {"pause": "us"}, DESK)

    assert (reply.status, reply.code) == (422, "input.form")
