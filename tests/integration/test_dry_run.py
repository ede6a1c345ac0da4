"""What a control would change is told from the real table, and is what then happens; nothing is
sent before.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.stack import (
    PURPOSE,
    World,
    allowed,
    lift,
    lives_in,
    member_of,
    opted_in,
    opted_out,
    pause,
    reason,
    wait_for,
)
from tests.table import store_partition

from consentry import cli
from consentry.domain.controls import OptIns, Regime
from consentry.domain.values import Micros
from consentry.trainer.client import Client
from consentry.wire.schemas import CONTROLS, MEMBER_EVENTS

pytestmark = pytest.mark.stack

PAUSE = """
pause: hk-2024
jurisdictions: [HK]
purposes: [genai_training]
effective: 2024-10-11
authority: PCPD
reach: PRIOR_AND_FUTURE
"""
POLICY = """
version: "2025-11-03"
terms:
  - {jurisdictions: [HK], purpose: genai_training, regime: DEFAULT_ON, purge: {within: P10D}}
  - {jurisdictions: [US], purpose: genai_training, regime: NOT_OFFERED}
"""
MEMBERS = ("hk-silent", "hk-also-silent", "hk-in", "hk-out", "us-silent", "moved-away", "nowhere")


def people(world: World) -> Client:
    """Members in Hong Kong and elsewhere, in the table, and a trainer that knows them."""
    world.produce(
        *(
            lives_in(name, "HK")
            for name in ("hk-silent", "hk-also-silent", "hk-in", "hk-out", "moved-away")
        ),
        lives_in("us-silent", "US"),
        lives_in("moved-away", "US"),
        opted_in("hk-in"),
        opted_out("hk-out"),
        opted_in("nowhere"),
    )
    client = world.client()
    client.wait_until_ready(30)
    world.assert_all_agree(client)
    return client


def written(world: World) -> int:
    """How many messages stand in the topics that people write to."""
    return len(world.log(CONTROLS)) + len(world.log(MEMBER_EVENTS))


def told(world: World, *arguments: str) -> dict[str, Any]:
    """What a dry run says; it must have sent nothing."""
    before = written(world)
    found: dict[str, Any] = json.loads(
        world.ok(
            *arguments,
            "--dry-run",
            "--json",
            environment={"SUBSCRIBERS": "ranker=posts,writer=articles"},
        )
    )
    assert written(world) == before
    assert found["sent"] is False
    return found


def reasons(client: Client) -> dict[str, str]:
    """The trainer's reason for every member, now."""
    return {name: reason(client, name) for name in MEMBERS}


def changed(before: dict[str, str], after: dict[str, str]) -> Counter[tuple[str, str]]:
    """How many members went from one reason to another."""
    return Counter((before[name], after[name]) for name in MEMBERS if before[name] != after[name])


def counted(changes: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """The same, as a dry run told it."""
    found: Counter[tuple[str, str]] = Counter()
    for change in changes:
        found[change["before"], change["after"]] += change["members"]
    return found


def test_a_dry_run_of_a_pause_and_of_its_lift_tells_exactly_what_then_happens(world: World) -> None:
    """A regulator would be told a number, and another one be paused; or the try itself would pause
    a country.
    """
    world.processor().wait_ready()
    world.open_policy(Regime.DEFAULT_ON)
    client = people(world)
    wait_for(lambda: allowed(client, "hk-silent"), "the policy")
    (world.directory / "pause.yaml").write_text(PAUSE)
    impose = ("pause", "impose", "--file", "pause.yaml")

    found, before = told(world, *impose), reasons(client)
    assert (found["members"], found["covered"], found["without_residence"]) == (7, {"HK": 4}, 1)
    assert found["allowed_to_excluded"] == {PURPOSE: 3}
    assert found["excluded_to_allowed"] == {}
    assert found["purge_order"]["order_id"] == "pause:hk-2024:1"
    assert [(one["subscriber"], one["owes_receipt"]) for one in found["datasets"]] == [
        ("ranker", True),
        ("writer", True),
    ]
    assert reasons(client) == before

    assert "PauseImposed" in world.ok(*impose)
    wait_for(lambda: reason(client, "hk-silent") == "PAUSED", "the pause")
    paused = reasons(client)
    assert counted(found["changes"]) == changed(before, paused)
    assert told(world, *impose)["changes_nothing"]
    explained = json.loads(world.ok("explain", "hk-out", "--jurisdiction", "US", "--json"))
    assert explained["because"][0].startswith(
        "Hong Kong (HK) is paused since 11 Oct 2024 by PCPD undertaking (hk-2024"
    )
    assert [ground["kind"] for ground in explained["grounds"]] == [
        "pause",
        "fact",
        "fact",
        "policy",
    ]
    assert (explained["row"]["jurisdiction"], explained["controls"]) == ("US", 2)
    assert all(fact["counts"] for fact in explained["facts"])

    (world.directory / "lift.yaml").write_text("pause: hk-2024\nopt_ins: VOID\n")
    found = told(world, "pause", "lift", "hk-2024")
    assert found["opens_use"]
    assert found["excluded_to_allowed"] == {PURPOSE: 3}
    world.ok("pause", "lift", "--file", "lift.yaml")
    wait_for(lambda: allowed(client, "hk-silent"), "the lift")
    assert counted(found["changes"]) == changed(paused, reasons(client))
    assert reason(client, "hk-out") == "OPTED_OUT"


def test_a_dry_run_of_a_policy_says_what_it_opens_and_tells_exactly_what_then_happens(
    world: World,
) -> None:
    """A second pair of eyes would sign a policy without knowing that it opens a country."""
    world.processor().wait_ready()
    world.open_policy(Regime.OPT_IN)
    client = people(world)
    wait_for(lambda: reason(client, "hk-in") == "OPTED_IN", "the policy")
    (world.directory / "policy.yaml").write_text(POLICY)

    found, before = told(world, "policy", "publish", "policy.yaml"), reasons(client)
    text = world.ok("policy", "publish", "policy.yaml", "--dry-run")
    assert found["opens_use"]
    assert found["excluded_to_allowed"] == {PURPOSE: 2}
    assert {tuple(change["jurisdictions"]): change["opens"] for change in found["terms"]} == {
        ("CN-HK", "HK"): ["members who have not chosen are used too"],
        ("US", "US-AS", "US-GU", "US-MP", "US-PR", "US-UM", "US-VI"): [],
    }, "also by the other codes of these places"
    assert "opens use: YES" in text
    assert "is   default on; purge within 10 days" in text

    world.ok("policy", "publish", "policy.yaml")
    wait_for(lambda: allowed(client, "hk-silent"), "the new policy")
    assert counted(found["changes"]) == changed(before, reasons(client))
    assert "in force for genai_training in HK, US" in world.ok("policy", "list")


def test_a_member_whose_record_cannot_be_trusted_is_counted_as_held(world: World) -> None:
    """Damage in the table would be counted as somebody who is open to use."""
    world.processor().wait_ready()
    world.open_policy()
    broken, whole = member_of(3), member_of(3, 1)
    world.produce(lives_in(broken, "HK"), lives_in(whole, "HK"))
    world.assert_all_agree()
    with world.table() as table:
        found = table.meta(3)
        assert found.epoch is not None
        raw = dict(table.scan(3))[broken.encode()]
        store_partition(
            table,
            3,
            {broken.encode(): raw[:-1] + bytes([raw[-1] ^ 1])},
            epoch=found.epoch,
            expected_offset=found.next_offset,
            next_offset=found.next_offset,
        )

    dry = told(world, "pause", "impose", "hk-2024", "--jurisdiction", "HK")

    assert (dry["quarantined"], dry["covered"]) == (1, {"HK": 1})


def test_a_table_that_cannot_be_trusted_gives_no_numbers(world: World) -> None:
    """Numbers from a table that nobody keeps up to date would be read out to a regulator."""
    impose = ("pause", "impose", "hk-2024", "--jurisdiction", "HK", "--dry-run")
    unbuilt = world.cli(*impose)
    assert (unbuilt.returncode, unbuilt.stdout) == (2, "")
    assert "Partition 0 of the table is not built. [table.not_built]" in unbuilt.stderr

    processor = world.processor().wait_ready()
    assert world.cli(*impose).returncode == 0
    world.produce_raw(b"\xff\xfe", b"?", partition=5)
    wait_for(lambda: processor.metric("consentry_partitions_tainted") == 1, "the taint")
    tainted = world.cli(*impose)
    assert tainted.returncode == 2
    assert "Partition 5 is tainted" in tainted.stderr

    processor.kill()

    def is_stale() -> bool:
        done = world.cli(*impose)
        return done.returncode == 2 and "[table.stale]" in done.stderr and not done.stdout

    wait_for(is_stale, "a refusal", seconds=20)
    assert world.log(CONTROLS) == []


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        (
            "impose",
            "pause: a\njurisdicions: [HK]",
            "line 2, jurisdicions: 'jurisdicions' is not a field of the pause",
        ),
        (
            "impose",
            "pause: a\njurisdictions: [HK, UK]",
            "line 2, jurisdictions: 'UK' is not an ISO 3166 code",
        ),
        ("impose", "pause: a\n\njurisdictions: []", "line 3, jurisdictions: '[]' is empty"),
        (
            "impose",
            "pause: a\njurisdictions: [HK]\nversion: 0",
            "line 3, version: '0' is not a whole number",
        ),
        (
            "lift",
            "pause: hk-2024\nopt_ins: false",
            "line 2, opt_ins: 'False' is not one of the known words",
        ),
    ],
)
def test_a_file_with_a_mistake_is_refused_by_file_line_and_field_before_anything_is_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    text: str,
    said: str,
) -> None:
    """A slip in a file would pause the wrong country, or none, and nobody would find where it
    stands.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "control.yaml").write_text(text)
    for more in ((), ("--dry-run",)):
        monkeypatch.setattr(
            sys, "argv", ["consentry", "pause", command, "--file", "control.yaml", *more]
        )
        with pytest.raises(SystemExit) as ended:
            cli.run()
        error = capsys.readouterr().err
        assert ended.value.code == 2
        assert f"control.yaml, {said}" in error
        assert "[input.form]" in error


def test_a_file_that_contradicts_what_was_sent_before_is_refused_by_line_and_field_and_nothing_is_sent(
    world: World,
) -> None:
    """*Accepted* would be said to a control that changes nothing, or that undoes a pause from
    before it began.
    """
    world.control(pause("hk-2024", "HK", effective=Micros(1_728_600_000_000_000)))
    before = written(world)
    mistakes = {
        "pause: hk-2024\njurisdictions: [SG]": (
            "impose",
            "line 1, version: version 1",
            "pause_version",
        ),
        "pause: nobody": ("lift", "line 1, pause: no pause 'nobody'", "pause_unknown"),
        "pause: hk-2024\neffective: 2024-01-01": (
            "lift",
            "line 2, effective: the lift takes",
            "dates_inverted",
        ),
    }
    for text, (command, said, code) in mistakes.items():
        (world.directory / "control.yaml").write_text(text)
        done = world.cli("pause", command, "--file", "control.yaml")
        assert (done.returncode, f"[input.{code}]" in done.stderr) == (2, True), done.stderr
        assert f"control.yaml, {said}" in done.stderr

    (world.directory / "control.yaml").write_text(PAUSE)
    both = world.cli("pause", "impose", "--file", "control.yaml", "--jurisdiction", "HK")
    assert (both.returncode, "[input.file_and_options]" in both.stderr) == (2, True)
    assert written(world) == before


def test_a_choice_for_a_purpose_that_no_policy_names_is_accepted_with_a_note(world: World) -> None:
    """A misspelt opt-out is accepted, decides nothing, and its member is trained on."""
    world.open_policy()

    slip = world.cli("emit", "opt-out", "anna", "--purpose", "genai-training")
    right = world.cli("emit", "opt-out", "anna")

    assert (slip.returncode, right.returncode) == (0, 0)
    assert "accepted" in slip.stdout
    assert (
        "no policy has terms for the purpose 'genai-training'; they have genai_training"
        in slip.stderr
    )
    assert "note" not in right.stderr


def test_a_pause_of_an_unknown_place_pauses_everything_and_is_counted_until_it_is_lifted(
    world: World,
) -> None:
    """Either a regulator's stop goes unheard, or all training stands still and nobody is told
    why.
    """
    processor = world.processor().wait_ready()
    world.open_policy()
    world.produce(lives_in("anna", "HK"), lives_in("bo", "US"))
    client = world.client()
    client.wait_until_ready(30)
    wait_for(lambda: allowed(client, "anna") and allowed(client, "bo"), "both allowed")

    def counts() -> tuple[float, float]:
        names = ("scope", "unreadable")
        scope, unreadable = (
            processor.metric("consentry_controls_not_understood", kind=kind) for kind in names
        )
        return scope, unreadable

    assert counts() == (0, 0)
    world.control(pause("atlantis", "ATLANTIS"))
    wait_for(
        lambda: {reason(client, "anna"), reason(client, "bo")} == {"PAUSED"}, "everything paused"
    )
    wait_for(lambda: counts() == (1, 0), "the count")
    assert [
        (line["pause"], line["kind"]) for line in processor.lines("control_not_understood")
    ] == [("atlantis", "scope")]

    world.producer.produce(world.topic(CONTROLS), b"no control", b"key")
    assert world.producer.flush(10) == 0
    wait_for(lambda: counts() == (1, 1), "the unreadable one")
    unreadable = processor.lines("control_not_understood")[-1]["pause"]
    world.control(lift("atlantis", OptIns.KEEP))
    world.ok("pause", "lift", unreadable, "--opt-ins", "KEEP")
    wait_for(lambda: counts() == (0, 0), "both lifted")
    wait_for(lambda: allowed(client, "anna"), "open again")
