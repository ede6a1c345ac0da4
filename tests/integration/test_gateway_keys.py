"""The gateway as it is deployed: API keys made on the command line, and signed tokens."""

from __future__ import annotations

import json

import pytest
from tests.gateway import PRODUCER, Gateway
from tests.stack import PURPOSE, World, wait_for

from consentry.domain.values import Micros
from consentry.kafka.clients import log_identity
from consentry.wire.schemas import MEMBER_EVENTS
from consentry.wire.tokens import Token, TokenKeys, write_token

pytestmark = pytest.mark.stack


def test_keys_let_in_whom_they_were_made_for_until_they_are_revoked(world: World) -> None:
    """The one way to everybody's consent: it has to close behind a stolen key without a
    restart.
    """
    files = {
        f"{name}_FILE": str(world.directory / name.lower())
        for name in ("ACCESS_KEYS", "ACCESS_PEPPER", "TOKEN_KEYS")
    }
    world.ok("keys", "init", environment=files)
    roles = {"billing": "producer", "dora": "desk", "adam": "auditor"}
    made = {
        role: world.ok("keys", "new", "--subject", name, "--role", role, environment=files).strip()
        for name, role in roles.items()
    }
    world.processor().wait_ready()
    world.open_policy()
    gateway = Gateway(world, dev=False, **files)
    body = {"member_id": "keys:1", "purpose": PURPOSE, "choice": "OPT_OUT"}

    accepted = gateway.accept("/v1/consent-changes", body, made["producer"])
    assert gateway.decision("keys:1", accepted["token"], who=made["auditor"])["allowed"] is False
    assert gateway.call("POST", "/v1/consent-changes", body, made["auditor"]).status == 403
    for wrong in (None, PRODUCER, made["producer"][:-1] + "x", made["producer"] + "x", "ck_"):
        assert gateway.call("POST", "/v1/consent-changes", body, wrong).status == 401, wrong

    log = log_identity(world.kafka, world.topic(MEMBER_EVENTS))
    ours = accepted["token"]
    altered = ours[:-5] + ("A" if ours[-5] != "A" else "B") + ours[-4:]
    unsigned = write_token(Token(log, {}, 0, Micros(0)), TokenKeys())
    asked = f"/v1/members/keys:1/decision?purpose={PURPOSE}&at_least="
    codes = [
        gateway.call("GET", asked + token, who=made["auditor"]).code
        for token in (ours, altered, unsigned)
    ]
    assert codes == ["", "token.signature", "token.unsigned"]

    keys = json.loads(world.ok("keys", "list", "--json", environment=files))
    [key] = [
        one["id"]
        for one in (keys["keys"] if isinstance(keys, dict) else keys)
        if one["subject"] == "billing"
    ]
    world.ok("keys", "revoke", key, environment=files)
    wait_for(
        lambda: gateway.call("POST", "/v1/consent-changes", body, made["producer"]).status == 401,
        "it is refused",
    )
    text = gateway.running.text()
    assert not [one for one in made.values() if one in text]
