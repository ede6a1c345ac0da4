"""docs/trainers.md, "Bundles": whoever copies its lines has a bundle that verifies, and reads
it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pages import Snippet, page_world, snippets
from tests.stack import World, lives_in, opted_out

from consentry.local.stack import LocalStack

pytestmark = pytest.mark.stack

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
SECTION = "Bundles"
LINES_MAX = 40


def ours() -> list[Snippet]:
    """The snippets of the section."""
    return [one for one in snippets(PAGE.read_text()) if one.section == SECTION]


@pytest.fixture
def consentry_world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """The namespace that the page's snippets use."""
    with page_world(shared, tmp_path) as world:
        yield world


def test_every_snippet_of_the_section_runs_as_it_stands(consentry_world: World) -> None:
    """A newcomer whose first bundle does not verify turns verifying off."""
    world = consentry_world
    world.processor().wait_ready()
    world.open_policy()
    world.produce(lives_in("b:1"), opted_out("b:2"), opted_out("20260101"))
    world.assert_all_agree()
    environment = world.environment()
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    printed = ""
    for snippet in ours():
        program = (
            [sys.executable, "-c"]
            if snippet.language == "python"
            else ["bash", "-euo", "pipefail", "-c"]
        )
        done = subprocess.run(
            [*program, snippet.text],
            env=environment,
            cwd=world.directory,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, (
            f"{PAGE.name}:{snippet.line}: {done.stdout}\n{done.stderr[-3000:]}"
        )
        printed += done.stdout
    assert [snippet.language for snippet in ours()] == ["bash", "python"]
    assert "true: 0000000001-snapshot-" in printed
    assert "excluded" in printed.splitlines()[-1]


def test_the_section_is_short() -> None:
    """Nobody reads to the end of a long one."""
    text = PAGE.read_text().split(f"## {SECTION}\n", 1)[1].split("\n## ", 1)[0]
    assert len(text.splitlines()) <= LINES_MAX
