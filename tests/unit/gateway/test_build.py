"""What a gateway needs before it opens, and what its probes answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from consentry.domain.errors import UnsafeSetting
from consentry.gateway.build import liveness, readiness, require_token_keys
from consentry.wire.tokens import TokenKeys


def context(*, follows_controls: bool, stale_detail: str = "") -> Any:
    """A gateway with three messages that wait for Kafka."""
    reader = SimpleNamespace(
        controls=SimpleNamespace(is_alive=follows_controls), stale_detail=lambda: stale_detail
    )
    return SimpleNamespace(reader=reader, submitter=SimpleNamespace(waiting=3))


def test_a_gateway_in_production_needs_token_keys() -> None:
    """Whoever can write to Redis could otherwise put a proposal there in somebody else's name."""
    with pytest.raises(UnsafeSetting) as refusal:
        require_token_keys(TokenKeys(), profile="production")

    assert refusal.value.code == "access.token_keys"
    require_token_keys(TokenKeys(), profile="local")


@pytest.mark.parametrize("follows_controls", [True, False])
def test_a_gateway_without_controls_is_not_alive(follows_controls: bool) -> None:
    """It would answer by the pauses of an hour ago."""
    assert liveness(context(follows_controls=follows_controls))["ok"] is follows_controls


@pytest.mark.parametrize(
    ("follows_controls", "stale_detail", "is_ready"),
    [(True, "", True), (True, "partition 3 is 60 s old", False), (False, "", False)],
)
def test_a_gateway_is_ready_while_table_and_controls_are_fresh(
    follows_controls: bool, stale_detail: str, is_ready: bool
) -> None:
    """A load balancer would send questions where nobody can answer them."""
    answer = readiness(context(follows_controls=follows_controls, stale_detail=stale_detail))

    assert answer == {"ok": is_ready, "detail": stale_detail, "messages_waiting": 3}
