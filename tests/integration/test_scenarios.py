"""Every scenario of the project once more, through the real broker, processor, table and
trainer.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AdminClient
from tests.sizes import IS_FULL

from consentry.forms.scenarios import read_scenario

if TYPE_CHECKING:
    from tests.stack import World

pytestmark = pytest.mark.stack

SCENARIOS = Path(str(files("consentry_schemas") / "scenarios"))


SOON = (
    "canada-removal-2024",
    "erasure-latches",
    "hong-kong-pause",
    "opt-out-survives-a-lift",
    "quarantined-and-released",
    "united-kingdom-stop-2024",
)
"""The stories that `make test` plays on the stack; `make test-all` plays every one."""


@pytest.mark.sized
@pytest.mark.timeout(1500)
def test_every_scenario_holds_on_the_stack(bare: World) -> None:
    """What the rules say on paper and what a trainer is told must be one thing."""
    every = sorted(SCENARIOS.glob("*.yaml"))
    assert len(every) >= 25
    paths = every if IS_FULL else [SCENARIOS / f"{name}.yaml" for name in SOON]
    result = bare.cli(
        "scenario", "run", "--engine", "stack", "--json", *map(str, paths), seconds=1400
    )

    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    stories = [read_scenario(path.read_text()) for path in paths]
    assert found == {
        "scenarios": len(stories),
        "expectations": sum(len(story.expect) for story in stories),
        "failed": [],
    }


WRONG = """
name: wrong
timeline:
  - recorded: 2024-09-18
    policy_published:
      version: "1"
      terms: [{jurisdictions: ["*"], purpose: genai_training, regime: DEFAULT_ON}]
  - {recorded: 2024-09-19, member_relocated: {member: ana, jurisdiction: HK, age_band: ADULT}}
  - {recorded: 2024-09-20, unreadable: {member: ben}}
  - {recorded: 2024-09-21, member_erased: {member: kim}}
expect:
  - {member: ana, purpose: genai_training, allowed: false, reason: OPTED_OUT}
  - {member: ana, purpose: genai_training, at: 2024-09-18, known_at: 2024-09-18, allowed: true, reason: DEFAULT_ON}
  - {member: ben, purpose: genai_training, allowed: false, reason: JURISDICTION_UNKNOWN}
  - {member: kim, purpose: genai_training, allowed: false, reason: ERASED}
expect_orders: []
"""


def test_what_the_stack_answers_otherwise_is_told(bare: World, tmp_path: Path) -> None:
    """A run that could not fail would prove nothing: each wrong line is named, with what the
    trainer or table said.
    """
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG)

    result = bare.cli("scenario", "run", "--engine", "stack", "--json", str(file), seconds=120)

    assert result.returncode == 1, result.stderr
    failed = json.loads(result.stdout.splitlines()[-1])["failed"]
    assert [(one["where"], one["got"]) for one in failed] == [
        ("expect[0]", "allowed, DEFAULT_ON"),
        ("expect[1]", "excluded, JURISDICTION_UNKNOWN"),
        ("expect[2]", "excluded, QUARANTINED"),
        ("expect_orders", "ERASURE of kim, due 21 Oct 2024"),
    ]


def test_nothing_of_a_scenario_is_left_on_a_stack_that_is_not_its_own(
    bare: World, tmp_path: Path
) -> None:
    """Somebody's broker must not fill with the topics of stories."""
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG)

    bare.cli("scenario", "run", "--engine", "stack", str(file), seconds=120)

    topics = AdminClient(dict(bare.kafka)).list_topics(timeout=10).topics
    assert not [name for name in topics if name.startswith("scenario-")]
    table = bare.redis()
    assert not list(table.scan_iter(match="scenario-*"))
    table.close()


def test_a_wrong_file_starts_nothing(bare: World, tmp_path: Path) -> None:
    """Exit status 2, the line and the field; the stack never hears of it."""
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG.replace("jurisdiction: HK", "jurisdiction: Hong Kong"))

    result = bare.cli("scenario", "run", "--engine", "stack", str(file), seconds=60)

    assert result.returncode == 2
    assert "line 8, timeline[1].member_relocated.jurisdiction: 'Hong Kong'" in result.stderr
    assert "Using" not in result.stdout + result.stderr
