"""Every answer that is no success: its status, its code, what goes with it, and what it never
says.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.unit.gateway.in_memory import AUDITOR, PRODUCER, InMemoryGateway, Reply

from consentry.domain.errors import (
    ConsentryError,
    Fenced,
    InvalidInput,
    Refused,
    TableWentBack,
    Unavailable,
    UndecodableEvent,
    UnsafeSetting,
)
from consentry.forms.document import InvalidDocument
from consentry.gateway.access import Forbidden, Unauthenticated
from consentry.gateway.http.problems import respond_to
from consentry.gateway.table_reader import TableReader
from consentry.gateway.tokens import token_of
from consentry.kafka.sender import QueueFull
from consentry.ops.http.problems import MEDIA_TYPE, Problem

HIDDEN = "in-the-address-of-redis"


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (Unauthenticated(), 401, {"www-authenticate": 'Bearer realm="consentry"'}),
        (Forbidden("no", fix="ask"), 403, {}),
        (InvalidInput("no", code="input.x"), 422, {}),
        (InvalidDocument("terms[0].regime", "is none", "write OPT_IN"), 422, {}),
        (Refused("no", code="x"), 409, {}),
        (UnsafeSetting("no", code="x"), 409, {}),
        (Unavailable("no", code="x"), 503, {"retry-after": "1"}),
        (QueueFull(), 503, {"retry-after": "1"}),
        (Fenced("no", code="x"), 500, {}),
        (TableWentBack("no", code="x"), 500, {}),
        (UndecodableEvent("text", "no"), 500, {}),
        (Problem(428, "no", code="x", headers={"A": "b"}, field="f"), 428, {"a": "b"}),
    ],
)
def test_every_error_has_its_status(
    error: ConsentryError, status: int, headers: dict[str, str]
) -> None:
    """A client decides by the status whether to repeat: told 422 for an outage it would drop an
    opt-out.
    """
    response = respond_to(error)
    body = json.loads(bytes(response.body))

    assert response.status_code == body["status"] == status
    assert headers.items() <= dict(response.headers).items()
    assert response.headers["content-type"] == MEDIA_TYPE
    assert (body["code"], body["detail"], body["fix"]) == (error.code, error.message, error.fix)
    assert body["type"] == f"urn:consentry:problem:{error.code}"
    assert body["title"]


def test_the_field_of_a_form_is_told() -> None:
    """A policy has hundreds of fields."""
    body = json.loads(
        bytes(respond_to(InvalidDocument("terms[0].regime", "is none", "write OPT_IN")).body)
    )

    assert body["field"] == "terms[0].regime"


@pytest.mark.parametrize(
    ("method", "path", "who"),
    [
        ("GET", "/v1/members/m:1/decision?purpose=p", AUDITOR),
        ("POST", "/v1/consent-changes", PRODUCER),
    ],
)
def test_a_fault_of_ours_is_a_problem_that_says_nothing(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str, who: str
) -> None:
    """An exception's text may hold a password, an address or a member; a bare page would break the
    client's parser.
    """

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"redis://:{HIDDEN}@10.0.0.1 member m:1")

    monkeypatch.setattr(TableReader, "answer", fails)
    gateway = InMemoryGateway()
    monkeypatch.setattr(gateway.log, "send", fails)
    body = {"member_id": "m:1", "purpose": "p", "choice": "OPT_OUT"}

    with capture_logs() as logged:
        reply = gateway.call(method, path, body if method == "POST" else None, who)

    assert (reply.status, reply.code) == (500, "gateway.internal")
    assert reply.headers["content-type"] == MEDIA_TYPE
    assert HIDDEN not in str(reply)
    assert "m:1" not in str(reply)
    [line] = [line for line in logged if line["event"] == "request_failed"]
    assert line["route"] == path.partition("?")[0].replace("m:1", "{member_id}")
    labels = {"route": line["route"], "status": "500"}
    assert (
        gateway.metrics.registry.get_sample_value("consentry_gateway_requests_total", labels) == 1
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/consent-changes", 405),
        ("DELETE", "/v1/policies", 405),
        ("HEAD", "/v1/status", 405),
        ("OPTIONS", "/v1/bulk", 405),
        ("TRACE", "/v1/bulk", 405),
        ("POST", "/v1/consent-changes/", 404),
        ("GET", "/v1/members/../status", 404),
        ("GET", "/v1/members/a/b/decision", 404),
        ("GET", "/docs", 404),
    ],
)
def test_what_is_not_there_is_a_problem_too(method: str, path: str, status: int) -> None:
    """Whoever mistypes a path gets the same kind of answer, and never a redirect that drops the
    body.
    """
    reply = InMemoryGateway().call(method, path)

    assert (reply.status, reply.code) == (status, f"http.{status}")
    assert reply.headers["content-type"] == MEDIA_TYPE
    assert ("allow" in reply.headers) is (status == 405)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/members/a%20b/decision?purpose=p", "member_id"),
        ("/v1/members/a/decision", "purpose"),
        ("/v1/members/a/decision?purpose=A", "purpose"),
        ("/v1/members/a/decision?purpose=p&wait=11", "wait"),
        ("/v1/members/a/decision?purpose=p&wait=nan", "wait"),
        ("/v1/members/a/decision?purpose=p&at=yesterday", "at"),
        ("/v1/members/a/decision?purpose=p&at=1700000000", "at"),
        ("/v1/members/a/decision?purpose=p&at=2024-01-01T00:00:00", "at"),
        ("/v1/members/a/decision?purpose=p&at=1900-01-01T00:00:00Z", "at"),
        ("/v1/members/a/decision?purpose=p&known_at=2999-01-01T00:00:00Z", "known_at"),
        ("/v1/members/a/decision?purpose=p&jurisdiction=HONGKONG", "jurisdiction"),
        ("/v1/members/a/decision?purpose=p&category=%0a", "category"),
        ("/v1/quarantine?limit=0", "limit"),
        ("/v1/quarantine/x", "entry"),
        ("/v1/approvals/x", "approval_id"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named_and_not_repeated(path: str, field: str) -> None:
    """The value may be somebody's mail address, and the answer is logged by every proxy."""
    reply = InMemoryGateway().call("GET", path, who=AUDITOR)

    assert (reply.status, reply.json["field"]) == (422, field)
    assert "yesterday" not in reply.body.decode()
    assert "HONGKONG" not in reply.body.decode()


@pytest.mark.parametrize("code", ["XX", "hk", "*", "EEA", "", "U\u00e9"])
def test_a_row_from_nowhere_is_never_allowed(code: str) -> None:
    """A place that nobody knows may be one where it is forbidden."""
    from urllib.parse import quote

    gateway = InMemoryGateway()
    gateway.publish()
    gateway.settle()

    found = gateway.decision(jurisdiction=quote(code))

    assert found.get("allowed", False) is False, found


def test_tokens_that_are_none_are_refused_and_those_of_another_log_are_stale() -> None:
    """A job set up with a broken token must hear of it, and never be told that it may go on."""
    from consentry.domain.values import Micros
    from consentry.wire.tokens import Token, TokenKeys, write_token

    gateway = InMemoryGateway()
    gateway.publish()
    gateway.settle()
    good = gateway.call("POST", "/v1/relocations", {"member_id": "m:2", "jurisdiction": "DE"}).json[
        "token"
    ]
    theirs = write_token(Token(b"otherlog", {}, 0, Micros(0)), TokenKeys({1: b"k" * 32}))
    forged = write_token(Token(b"thislog.", {0: 9}, 0, Micros(0)), TokenKeys({1: b"x" * 32}))
    unsigned = write_token(Token(b"thislog.", {}, 0, Micros(0)), TokenKeys())

    assert gateway.decision(at_least=good)["allowed"] is True
    for bad in (good[:-1], good[1:], forged, unsigned, "AAAA", "%00", "x" * 16_385):
        reply = gateway.call(
            "GET", f"/v1/members/m:1/decision?purpose=genai_training&at_least={bad}"
        )
        assert (reply.status, reply.code.split(".")[0]) in ((422, "token"), (422, "input")), bad
    assert gateway.decision(at_least=theirs)["reason"] == "STALE"


def test_what_is_behind_or_old_is_stale() -> None:
    """The worst failure: training on somebody whose opt-out is known to the producer and not yet to
    the table.
    """
    gateway = InMemoryGateway()
    gateway.publish()
    gateway.settle()
    ahead = token_of(gateway.context, {partition: 99 for partition in range(4)})
    controls_ahead = token_of(gateway.context, {}, controls=99)

    assert gateway.decision(at_least=ahead)["reason"] == "STALE"
    assert gateway.decision(at_least=controls_ahead)["reason"] == "STALE"
    assert gateway.decision()["allowed"] is True
    gateway.now += 6_000_000
    gateway.is_fresh = False
    reply = gateway.call("GET", "/v1/members/m:1/decision?purpose=genai_training&wait=0")
    assert (reply.status, reply.json["reason"], reply.json["allowed"]) == (200, "STALE", False)
    assert "etag" not in reply.headers


def reply_to(gateway: InMemoryGateway, who: str | None, **headers: str) -> Reply:
    return gateway.call("GET", "/v1/status", who=who, **headers)


def test_two_credentials_are_none() -> None:
    """A proxy may look at one of them and we at the other."""
    reply = reply_to(InMemoryGateway(), None, authorization="Basic YTpi")

    assert reply.status == 401
    assert reply.headers["www-authenticate"] == 'Bearer realm="consentry"'


def test_a_trainer_sees_its_own_purposes_and_its_own_subscriber() -> None:
    """Trainer A must not learn what trainer B may use, nor how far B is behind."""
    gateway = InMemoryGateway()
    trainer = "dev:ranker:trainer:ads+genai_training"

    assert (
        gateway.call("GET", "/v1/members/m:1/decision?purpose=genai_training", who=trainer).status
        == 200
    )
    assert gateway.call("GET", "/v1/members/m:1/decision?purpose=search", who=trainer).status == 403
    found = gateway.call("GET", "/v1/status", who=trainer).json["subscribers"]
    assert found == [{"subscriber": "ranker", "datasets": ["posts", "profiles"]}]
    assert len(gateway.call("GET", "/v1/status", who=AUDITOR).json["subscribers"]) == 2
