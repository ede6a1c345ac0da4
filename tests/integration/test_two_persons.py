"""What a person types where it takes two: keys, a lift, a policy, the quarantine; on a real
gateway, with real keys.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.stack import PURPOSE, World, allowed, lives_in, opted_out, reason, wait_for

from consentry.wire.events import write_event
from consentry.wire.schemas import QUARANTINE

pytestmark = pytest.mark.stack


class Desk(NamedTuple):
    """A gateway that lets API keys in, and a file with the key of each person."""

    world: World
    url: str
    settings: dict[str, str]

    def run(self, person: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """One command as that person."""
        who = {
            "GATEWAY_URL": self.url,
            "GATEWAY_CREDENTIAL_FILE": str(self.world.directory / f"{person}.key"),
        }
        return self.world.cli(*arguments, environment=self.settings | who | more)

    def ok(self, person: str, *arguments: str) -> str:
        """One command that has to succeed."""
        done = self.run(person, *arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def refused(self, person: str, *arguments: str, **more: str) -> str:
        """One command that has to be refused with exit status 2; what it said."""
        done = self.run(person, *arguments, **more)
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def desk(world: World) -> Iterator[Desk]:
    """A gateway with keys, made as an operator makes them."""
    settings = {
        "ACCESS_KEYS_FILE": str(world.directory / "keys.yaml"),
        "ACCESS_PEPPER_FILE": str(world.directory / "pepper"),
        "TOKEN_KEYS_FILE": str(world.directory / "tokens"),
    }
    (world.directory / "tokens").write_text(f"1:{'5a' * 32}\n")
    for person, roles in (
        ("anna", ("desk", "approver")),
        ("ben", ("approver",)),
        ("web", ("producer",)),
    ):
        made = [part for role in roles for part in ("--role", role)]
        key = world.ok("keys", "new", "--subject", person, *made, environment=settings)
        (world.directory / f"{person}.key").write_text(key)
    world.processor()
    gateway = world.start("gateway", "--port", "0", **settings)
    world.open_policy()
    url = str(wait_for(lambda: gateway.lines("gateway"), "the gateway", seconds=40)[0]["url"])
    yield Desk(world, url, settings)
    for person in ("anna", "ben", "web"):
        assert (world.directory / f"{person}.key").read_text().strip() not in gateway.text()


def test_a_lift_takes_effect_when_a_second_person_says_so(desk: Desk, tmp_path: Path) -> None:
    """One tired person would open a country again."""
    client = desk.world.client()
    desk.world.produce(lives_in("anna", "HK"))
    wait_for(lambda: allowed(client, "anna"), "allowed")
    assert "accepted" in desk.ok(
        "anna", "pause", "impose", "hk-2024", "--jurisdiction", "HK", "--authority", "PCPD"
    )
    wait_for(lambda: reason(client, "anna") == "PAUSED", "paused, by one person alone")

    nothing_else = {
        "KAFKA_BOOTSTRAP": "",
        "REDIS_URL": "",
        "REGISTRY_URL": "",
        "PROFILE": "production",
    }
    proposed = wait_for(lambda: _lift(desk, **nothing_else), "the gateway knows the pause")
    assert "A dry run" in desk.refused(
        "anna", "pause", "lift", "hk-2024", "--dry-run", **nothing_else
    )
    found = re.search(r"approval approve ([0-9a-f]{32})", proposed)
    assert found is not None, proposed
    assert "no longer paused in HK" in proposed
    assert found[1] in desk.ok("ben", "approval", "list")
    assert "auth.forbidden" in desk.refused("web", "approval", "list")
    assert "approval.own" in desk.refused("anna", "approval", "approve", found[1])
    assert reason(client, "anna") == "PAUSED"
    desk.ok("ben", "approval", "approve", found[1])
    wait_for(lambda: allowed(client, "anna"), "lifted")
    told = json.loads(desk.world.ok("explain", "anna", "--json"))
    assert told["allowed"]
    [lift] = [
        control
        for control in client.snapshot.controls.log
        if type(control).__name__ == "PauseLifted"
    ]
    assert lift.source == "anna, approved by ben"
    listed = desk.world.ok("pause", "list")
    assert "PCPD; UNDERTAKING; by anna" in listed
    assert "by anna, approved by ben" in listed
    [told] = json.loads(desk.world.ok("pause", "list", "--json"))
    assert (told["state"], told["lifted_by"], told["purposes"]) == (
        "lifted",
        "anna, approved by ben",
        None,
    )
    assert "nothing waits" in desk.ok("ben", "approval", "list")


def _lift(desk: Desk, **settings: str) -> str:
    done = desk.run("anna", "pause", "lift", "hk-2024", **settings)
    return done.stdout if done.returncode == 0 else ""


def test_without_a_gateway_production_refuses_to_widen_and_never_to_pause(
    desk: Desk, tmp_path: Path
) -> None:
    """Whoever has a shell and Kafka's password would be one person who decides for everybody."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: opt-in\nterms:\n- {jurisdictions: ['*'], purpose: genai_training, regime: "
        "NOT_OFFERED}\n"
    )
    alone = {"GATEWAY_URL": "", "PROFILE": "production"}
    assert desk.run("anna", "policy", "publish", str(policy), **alone).returncode == 0
    policy.write_text(
        "version: wide\nterms:\n- {jurisdictions: ['*'], purpose: genai_training, regime: "
        "DEFAULT_ON}\n"
    )
    said = desk.refused("anna", "policy", "publish", str(policy), **alone)
    assert "approval.needed" in said
    assert "CONSENTRY_GATEWAY_URL" in said
    assert (
        desk.run("anna", "pause", "impose", "gb-2024", "--jurisdiction", "GB", **alone).returncode
        == 0
    )
    assert "approval.needed" in desk.refused("anna", "pause", "lift", "gb-2024", **alone)
    assert "awaiting approval" in wait_for(
        lambda: desk.run("anna", "policy", "publish", str(policy)).stdout,
        "the gateway takes it for approval",
    )


def test_a_message_that_could_not_be_read_is_replayed_by_two_persons(desk: Desk) -> None:
    """A schema that was registered too late: the member's opt-out was unreadable, and is none the
    less theirs.
    """
    world, client = desk.world, desk.world.client()
    world.produce(lives_in("anna"))
    wait_for(lambda: allowed(client, "anna"), "allowed")
    whole = write_event(opted_out("anna"), world.catalog)
    world.produce_raw(b"anna", whole[:-1])
    world.produce_raw(b"anna", whole[:1] + (999_999).to_bytes(4, "big") + whole[5:])
    wait_for(
        lambda: reason(client, "anna") == "QUARANTINED" and len(world.log(QUARANTINE)) == 2,
        "quarantined",
    )

    listed = wait_for(lambda: _entries(desk), "both entries")
    first, second = sorted(listed, key=lambda one: int(one["entry"].partition("-")[2]))
    shown = desk.ok("ben", "quarantine", "show", first["entry"])
    assert whole[:-1].hex(" ")[:40] in shown
    assert "still cannot be read" in shown
    assert "quarantine.not_replayable" in desk.refused(
        "anna", "quarantine", "replay", first["entry"], "--reason", "x"
    )
    assert "quarantine.order" in desk.refused(
        "anna", "quarantine", "replay", second["entry"], "--reason", "x"
    )
    proposed = desk.ok(
        "anna",
        "quarantine",
        "release",
        first["entry"],
        "--reason",
        "cut short by a proxy",
        "--json",
    )
    desk.ok("ben", "approval", "approve", json.loads(proposed)["approval_id"])
    assert reason(client, "anna") == "QUARANTINED", "the second message is still open"
    proposed = desk.ok(
        "anna", "quarantine", "release", second["entry"], "--reason", "sent again", "--json"
    )
    desk.ok("ben", "approval", "approve", json.loads(proposed)["approval_id"])
    wait_for(lambda: allowed(client, "anna"), "released")
    assert {one["state"] for one in _entries(desk)} == {"released"}
    world.assert_all_agree(client)


def _entries(desk: Desk) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(desk.ok("anna", "quarantine", "list", "--json"))
    return found if len(found) == 2 else []


def test_explain_and_decide_know_of_an_event_that_came_by_http(desk: Desk) -> None:
    """The token of the gateway, signed, is taken by a trainer that has the keys, and refused when
    altered.
    """
    from consentry.domain.errors import InvalidInput
    from consentry.wire.tokens import TokenKeys, read_token

    keys = TokenKeys.parse(Path(desk.settings["TOKEN_KEYS_FILE"]).read_text())
    from consentry.cli.gateway_client import GatewayClient

    web = GatewayClient(desk.url, (desk.world.directory / "web.key").read_text().strip())
    answer = web.post(
        "/v1/consent-changes", {"member_id": "carl", "purpose": PURPOSE, "choice": "OPT_OUT"}
    )
    token = read_token(answer["token"], keys)
    assert token.offsets == {answer["partition"]: answer["offset"] + 1}
    assert token.controls == 1
    with pytest.raises(InvalidInput, match="altered"):
        read_token(answer["token"][:-6] + "AAAAAA", keys)
    told = web.get(
        f"/v1/members/carl/decision?purpose={PURPOSE}&at_least={answer['token']}&wait=10"
    )
    assert (told["allowed"], told["version"]) == (False, 1)
