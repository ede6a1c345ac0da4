"""Who may call what: a table written out by hand, held against the routes as they are."""

from __future__ import annotations

from typing import Any, Final

import pytest
from tests.unit.gateway.in_memory import InMemoryGateway

from consentry.gateway.app import build_app

ROLES: Final = ("producer", "trainer", "desk", "approver", "auditor")
P, T, D, A, U = ROLES
OPEN: Final = {"/healthz", "/openapi.json"}
MAY: Final[dict[tuple[str, str], set[str]]] = {
    ("POST", "/v1/consent-changes"): {P},
    ("POST", "/v1/relocations"): {P},
    ("POST", "/v1/erasures"): {P},
    ("POST", "/v1/bulk"): {P},
    ("GET", "/v1/members/{member_id}/decision"): {P, T, D, U},
    ("GET", "/v1/members/{member_id}/explain"): {D, U},
    ("GET", "/v1/controls"): {P, T, D, A, U},
    ("GET", "/v1/status"): {P, T, D, A, U},
    ("POST", "/v1/pauses"): {D},
    ("POST", "/v1/pauses/{pause}/lift"): {D},
    ("POST", "/v1/policies"): {D},
    ("GET", "/v1/approvals"): {D, A, U},
    ("GET", "/v1/approvals/{approval_id}"): {D, A, U},
    ("POST", "/v1/approvals/{approval_id}/approve"): {A},
    ("POST", "/v1/approvals/{approval_id}/reject"): {A},
    ("GET", "/v1/quarantine"): {D, A, U},
    ("GET", "/v1/quarantine/{entry}"): {D, A, U},
    ("POST", "/v1/quarantine/{entry}/release"): {D},
    ("POST", "/v1/quarantine/{entry}/replay"): {D},
    ("GET", "/v1/bundles/latest"): {T, U},
    ("GET", "/v1/bundles/latest.jsonl"): {T, U},
    ("GET", "/v1/bundles/{bundle_id}/{file}"): {T, U},
}
GIVEN: Final = {
    "{member_id}": "m:1",
    "{pause}": "hk",
    "{approval_id}": "0" * 32,
    "{entry}": "0-0",
    "{bundle_id}": "0000000001-snapshot-0123456789abcdef",
    "{file}": "manifest.json",
}


def declared() -> list[tuple[str, str]]:
    """Every operation of the description."""
    paths: dict[str, Any] = build_app(None).openapi()["paths"]
    return [(method.upper(), path) for path, operations in paths.items() for method in operations]


def asked(path: str) -> str:
    for name, value in GIVEN.items():
        path = path.replace(name, value)
    return path + (
        "?purpose=genai_training&wait=0" if path.endswith(("decision", "explain")) else ""
    )


@pytest.fixture(scope="module")
def gateway() -> InMemoryGateway:
    gateway = InMemoryGateway()
    # What these two find is told elsewhere, by the real log; here only who may look counts.
    gateway.context.quarantine.entries = lambda: []  # type: ignore[method-assign] # this gateway has no broker
    gateway.context.quarantine.find = lambda partition, offset: None  # type: ignore[method-assign] # as above
    return gateway


def test_the_table_names_every_route() -> None:
    """A new route that nobody thought about would be open to whoever its code happens to ask
    for.
    """
    assert set(declared()) == MAY.keys()


@pytest.mark.parametrize(("method", "path"), MAY)
def test_a_route_is_forbidden_to_all_but_those_in_the_table(
    gateway: InMemoryGateway, method: str, path: str
) -> None:
    """A producer that could lift a pause, or a trainer that could opt people in."""
    for role in ROLES:
        reply = gateway.call(method, asked(path), {} if method == "POST" else None, f"dev:x:{role}")
        assert (reply.status == 403) is (role not in MAY[method, path]), (role, reply)
        assert reply.status not in (401, 500)


@pytest.mark.parametrize(("method", "path"), MAY)
@pytest.mark.parametrize(
    "who", [None, "", "dev:x:", "dev:x:root", "dev:x:producer:", "x", "ck_aaaaaaaaaa.b"]
)
def test_no_route_answers_without_a_credential(
    gateway: InMemoryGateway, method: str, path: str, who: str | None
) -> None:
    """Everybody who reaches the port could write consent."""
    reply = gateway.call(method, asked(path), b"{", who)

    assert (reply.status, reply.code) == (401, "auth.unauthenticated")
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert gateway.log.messages == []


@pytest.mark.parametrize("path", sorted(OPEN))
def test_what_says_nothing_of_anybody_is_open(gateway: InMemoryGateway, path: str) -> None:
    """A load balancer has no credential."""
    assert gateway.call("GET", path, who=None).status == 200


def test_roles_add_up(gateway: InMemoryGateway) -> None:
    """A small company gives one key both; it must not be refused for having more."""
    assert gateway.call("GET", "/v1/approvals", who="dev:x:producer+auditor").status == 200
    assert gateway.call("POST", "/v1/consent-changes", {}, "dev:x:producer+auditor").status == 422
