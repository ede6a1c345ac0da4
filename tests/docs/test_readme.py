"""README.md: a reader who copies its snippets sends an opt-out, and trains without it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.pages import Page, page_world, run_program, run_snippet
from tests.stack import World, lives_in

from consentry.local.stack import LocalStack

pytestmark = pytest.mark.stack

PAGE = Page("README.md")
TRAIN = "def train(batch):\n    print('train on', batch['member_id'].to_pylist())\n"
"""The step that the page leaves to its reader."""


@pytest.fixture
def consentry_world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """The namespace that the snippets use; m:42 opts out by the first of them, m:43 never does."""
    pq.write_table(pa.table({"member_id": ["m:42", "m:43"]}), tmp_path / "posts.parquet")
    with page_world(shared, tmp_path, lives_in("m:43")) as world:
        yield world


def test_the_snippets_send_an_opt_out_and_train_without_it(consentry_world: World) -> None:
    """The first thing that a newcomer copies has to be true."""
    world = consentry_world
    [producer] = PAGE.snippets("For a producer", "python")
    [trainer] = PAGE.snippets("For a training system", "python")
    addresses = producer.text.partition("with ")[0]

    run_snippet(producer, environment=world.environment(), directory=world.directory)
    world.assert_all_agree()
    program = [sys.executable, "-c", addresses + TRAIN + trainer.text]
    trained = run_program(program, environment=world.environment(), directory=world.directory)
    explained = world.ok("explain", "m:42")

    assert trained.returncode == 0, trained.stderr
    assert trained.stdout == "train on ['m:43']\n"
    assert "OPTED_OUT" in explained
