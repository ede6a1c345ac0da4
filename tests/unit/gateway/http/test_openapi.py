"""The description, held against the application: a client is generated from it."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import pytest
from tests.unit.gateway.in_memory import InMemoryGateway

from consentry.gateway.app import build_app
from consentry.gateway.fast_path import ENDPOINTS
from consentry.gateway.http.models import ConsentChangeIn, ErasureIn, RelocationIn
from consentry.ops.http.problems import MEDIA_TYPE

DESCRIPTION: Final[dict[str, Any]] = build_app(None).openapi()
OPERATIONS: Final = [
    (method, path, operation)
    for path, operations in DESCRIPTION["paths"].items()
    for method, operation in operations.items()
]


def test_what_is_served_is_what_is_built() -> None:
    """A file in a repository that differs from what runs is worse than none."""
    served = InMemoryGateway().call("GET", "/openapi.json", who=None)

    assert served.json == json.loads(json.dumps(DESCRIPTION))


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_every_route_tells_its_problems(method: str, path: str, operation: dict[str, Any]) -> None:
    """A client that does not know of 429 or 503 gives up where it should come again."""
    responses = operation["responses"]
    needed = {"401", "403", "429", "500", "503"}
    if method == "post" and not path.startswith("/v1/approvals"):
        needed |= {"400", "408", "413", "415", "422", "409"}
    if "{" in path:
        needed.add("422")

    assert needed <= responses.keys()
    for status, response in responses.items():
        if int(status) >= 400:
            reference = response["content"][MEDIA_TYPE]["schema"]["$ref"]
            assert reference == "#/components/schemas/ProblemOut"
        elif status != "304":
            assert response["content"], "an answer without a kind"


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_every_route_says_what_it_does_and_takes(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    """The description is the only thing that many integrators ever read."""
    assert operation["description"]
    assert ("requestBody" in operation) is (
        method == "post" and not path.startswith("/v1/approvals")
    )
    headers = {one["name"] for one in operation.get("parameters", []) if one["in"] == "header"}
    assert ("Idempotency-Key" in headers) is ("requestBody" in operation)
    assert set(re.findall(r"{(\w+)}", path)) == {
        one["name"] for one in operation.get("parameters", []) if one["in"] == "path"
    }


def test_every_reference_leads_somewhere() -> None:
    """A generator stops at the first that does not."""
    schemas = DESCRIPTION["components"]["schemas"]
    named = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(DESCRIPTION)))

    assert named
    assert named <= {f"#/components/schemas/{name}" for name in schemas}
    assert "HTTPValidationError" not in schemas


def test_every_route_but_the_open_ones_needs_a_credential() -> None:
    """Tools ask for one where the description says so."""
    assert DESCRIPTION["security"] == [{"bearer": []}]
    assert not [path for _, path, operation in OPERATIONS if "security" in operation]


def test_the_fast_path_is_described() -> None:
    """A route that only the fast path knows would be in no client."""
    described = {path for method, path, _ in OPERATIONS if method == "post"}

    assert ENDPOINTS.keys() <= described


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (ConsentChangeIn, "/v1/consent-changes"),
        (RelocationIn, "/v1/relocations"),
        (ErasureIn, "/v1/erasures"),
    ],
)
def test_bodies_are_described_as_they_are_read(model: type, path: str) -> None:
    """They are read by hand, and described by hand: the two could drift apart."""
    schema = DESCRIPTION["paths"][path]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]

    assert schema == {"$ref": f"#/components/schemas/{model.__name__}"}
    assert DESCRIPTION["components"]["schemas"][model.__name__]["additionalProperties"] is False
