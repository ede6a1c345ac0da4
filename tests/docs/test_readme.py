"""README.md: whoever copies its snippets sends an opt-out, and trains without it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.pages import Snippet, page_world, snippets
from tests.stack import CONSENTRY, World, lives_in

from consentry.local.stack import LocalStack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(180)]

PAGE = Path(__file__).parents[2] / "README.md"
TRAIN = "def train(batch):\n    print('train on', batch['member_id'].to_pylist())\n"
"""What the page leaves to its reader."""


def ours(section: str) -> Snippet:
    """The one Python snippet of a section."""
    [snippet] = [
        snippet
        for snippet in snippets(PAGE.read_text())
        if (snippet.section, snippet.language) == (section, "python")
    ]
    return snippet


@pytest.fixture
def consentry_world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """The namespace that the snippets use; m:42 opts out by the first of them, m:43 never does."""
    pq.write_table(pa.table({"member_id": ["m:42", "m:43"]}), tmp_path / "posts.parquet")
    with page_world(shared, tmp_path, lives_in("m:43")) as world:
        yield world


def run(world: World, program: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program as its reader would, in the directory of the data set."""
    environment = world.environment()
    environment["PATH"] = os.pathsep.join([str(CONSENTRY.parent), environment["PATH"]])
    return subprocess.run(
        [program, *command],
        env=environment,
        cwd=world.directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_the_snippets_send_an_opt_out_and_train_without_it(consentry_world: World) -> None:
    """The first thing that a newcomer copies has to be true."""
    world = consentry_world
    producer, trainer = ours("For a producer"), ours("For a training system")
    sent = run(world, sys.executable, "-c", producer.text)
    assert sent.returncode == 0, sent.stderr
    world.assert_all_agree()
    addresses = producer.text.partition("with ")[0]
    trained = run(world, sys.executable, "-c", addresses + TRAIN + trainer.text)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout == "train on ['m:43']\n"
    explained = run(world, "consentry", "explain", "m:42")
    assert "OPTED_OUT" in explained.stdout, explained.stdout + explained.stderr
