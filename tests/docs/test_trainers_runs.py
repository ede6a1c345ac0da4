"""docs/trainers.md, "A training run and its certificate" and "Who was read where": every line of
them is run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.pages import Snippet, page_world, snippets
from tests.stack import CONSENTRY, World, lives_in, opted_out, pause

from consentry.bundles.keys import make_key_files
from consentry.local.stack import LocalStack

pytestmark = pytest.mark.stack

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
RUN, REACH = "A training run and its certificate", "Who was read where"
LINES_MAX = 38


def ours(section: str) -> list[Snippet]:
    """The snippets of a section."""
    return [one for one in snippets(PAGE.read_text()) if one.section == section]


@pytest.fixture
def consentry_world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """The namespace that the page's snippets use, with a data set and keys."""
    (tmp_path / "posts").mkdir()
    pq.write_table(
        pa.table({"member_id": ["m:7", "m:8", "m:hk"]}), tmp_path / "posts" / "0.parquet"
    )
    for name in ("runs.key", "bundles.key"):
        make_key_files(tmp_path / name)
    events = lives_in("m:7"), lives_in("m:8"), lives_in("m:hk", "HK"), opted_out("m:8")
    with page_world(shared, tmp_path, *events) as world:
        yield world


def run(world: World, snippet: Snippet) -> subprocess.CompletedProcess[str]:
    """Run one snippet as its reader would, in the directory of the data set."""
    python = snippet.language == "python"
    program = [sys.executable, "-c"] if python else ["bash", "-euo", "pipefail", "-c"]
    environment = world.environment()
    environment["PATH"] = f"{CONSENTRY.parent}:{environment['PATH']}"
    return subprocess.run(
        [*program, snippet.text],
        env=environment,
        cwd=world.directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_what_the_sections_on_runs_say_can_be_done(consentry_world: World) -> None:
    """The first thing that an ML engineer copies, and the first that an auditor does."""
    read, verify = ours(RUN)
    (reach,) = ours(REACH)
    trained = run(consentry_world, read)
    assert trained.returncode == 0, trained.stderr
    assert "training_run_completed" in trained.stderr, (
        "what the library tells goes beside what the program prints"
    )
    assert trained.stdout == "train on 2 rows\n"
    verified = run(consentry_world, verify)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "HOLDS" in verified.stdout
    consentry_world.produce(opted_out("m:7"))
    consentry_world.control(pause("hk-2024", "HK"))
    consentry_world.assert_all_agree()
    reached = run(consentry_world, reach)
    assert reached.returncode == 0, reached.stdout + reached.stderr
    assert "1 of 1 runs read them" in reached.stdout
    told = json.loads(reached.stdout[reached.stdout.index("{") :])
    assert told["runs"][0]["when"] == "before"


def test_the_sections_are_short() -> None:
    """A section that nobody reads to its end helps nobody."""
    text = PAGE.read_text()
    for section in (RUN, REACH):
        body = text.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
        assert len(body.splitlines()) <= LINES_MAX
