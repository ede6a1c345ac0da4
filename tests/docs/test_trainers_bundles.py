"""docs/trainers.md, "Bundles": a reader who copies its lines gets a bundle that verifies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pages import Page, page_world, run_snippet
from tests.stack import World, lives_in, opted_out

from consentry.local.stack import LocalStack

pytestmark = pytest.mark.stack

PAGE = Page("docs/trainers.md")
SECTION = "Bundles"
LINES_MAX = 39


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
    commands, program = PAGE.snippets(SECTION)
    assert (commands.language, program.language) == ("bash", "python")

    output = ""
    for snippet in (commands, program):
        completed = run_snippet(snippet, environment=world.environment(), directory=world.directory)
        output += completed.stdout

    assert "true: 0000000001-snapshot-" in output
    assert "excluded" in output.splitlines()[-1]


def test_the_section_is_short() -> None:
    """Nobody reads to the end of a long one."""
    assert len(PAGE.lines(SECTION)) <= LINES_MAX
