"""docs/trainers.md, "A training run and its certificate" and "Who was read where"."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.pages import Page, Snippet, page_world, run_snippet
from tests.stack import World, lives_in, opted_out, pause

from consentry.bundles.keys import make_key_files
from consentry.local.stack import LocalStack

pytestmark = pytest.mark.stack

PAGE = Page("docs/trainers.md")
RUN, REACH = "A training run and its certificate", "Who was read where"
LINES_MAX = 37


@pytest.fixture
def consentry_world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """The namespace that the page's snippets use, with a data set and keys."""
    posts = tmp_path / "posts"
    posts.mkdir()
    pq.write_table(pa.table({"member_id": ["m:7", "m:8", "m:hk"]}), posts / "0.parquet")
    for name in ("runs.key", "bundles.key"):
        make_key_files(tmp_path / name)
    events = lives_in("m:7"), lives_in("m:8"), lives_in("m:hk", "HK"), opted_out("m:8")
    with page_world(shared, tmp_path, *events) as world:
        yield world


def run(world: World, snippet: Snippet) -> subprocess.CompletedProcess[str]:
    """Run one snippet in the directory of the data set."""
    return run_snippet(snippet, environment=world.environment(), directory=world.directory)


def test_what_the_sections_on_runs_say_can_be_done(consentry_world: World) -> None:
    """The first thing that an ML engineer copies, and the first that an auditor does."""
    read, verify = PAGE.snippets(RUN)
    [reach] = PAGE.snippets(REACH)

    trained = run(consentry_world, read)
    assert trained.stdout == "train on 2 rows\n"
    assert "training_run_completed" in trained.stderr, "the log stays apart from the output"

    verified = run(consentry_world, verify)
    assert "HOLDS" in verified.stdout

    consentry_world.produce(opted_out("m:7"))
    consentry_world.control(pause("hk-2024", "HK"))
    consentry_world.assert_all_agree()
    reached = run(consentry_world, reach)
    assert "1 of 1 runs read them" in reached.stdout
    report = json.loads(reached.stdout[reached.stdout.index("{") :])
    assert report["runs"][0]["when"] == "before"


def test_the_sections_are_short() -> None:
    """A section that nobody reads to its end helps nobody."""
    for section in (RUN, REACH):
        assert len(PAGE.lines(section)) <= LINES_MAX, section
