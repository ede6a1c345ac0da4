"""docs/trainers.md, the client and the libraries of one process: every snippet is run as it
stands.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pages import page_world, snippets, write_posts
from tests.stack import World, lives_in, opted_out

from consentry.local.stack import LocalStack

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
SECTIONS = ("The client", "Arrow, Polars, pandas, DuckDB", "Hugging Face datasets")
LINES_MAX = 35


@pytest.fixture
def consentry_world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """The namespace that the snippets use; of three authors one opted out, and one row in four is
    nobody's.
    """
    write_posts(tmp_path / "posts.parquet")
    with page_world(
        shared, tmp_path, *map(lives_in, ("c:1", "c:2", "c:3")), opted_out("c:2")
    ) as world:
        yield world


def test_each_section_is_short() -> None:
    """A page that nobody reads to its end helps nobody."""
    text = PAGE.read_text()
    for section in SECTIONS:
        own = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        assert 0 < len(own.splitlines()) <= LINES_MAX, section


@pytest.mark.stack
def test_every_snippet_runs_and_leaves_out_who_opted_out(
    consentry_world: World, tmp_path: Path
) -> None:
    """The first thing that anybody does with a page is to copy it."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("CONSENTRY_")
    } | {
        "CONSENTRY_KAFKA_BOOTSTRAP": consentry_world.stack.addresses.kafka,
        "CONSENTRY_REGISTRY_URL": consentry_world.stack.addresses.registry_url,
        "HF_HOME": str(tmp_path / "huggingface"),
        "HF_HUB_OFFLINE": "1",
    }
    printed = []
    for snippet in snippets(PAGE.read_text()):
        if snippet.section not in SECTIONS:
            continue
        done = subprocess.run(
            [sys.executable, "-c", snippet.text],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, (
            f"{PAGE.name}:{snippet.line}: {done.stdout}\n{done.stderr[-3000:]}"
        )
        printed += done.stdout.splitlines()
    assert "OPTED_OUT" in printed
    assert any(line.startswith("50 rows;") and "'QUARANTINED': 25" in line for line in printed)
    assert not any("<" in line for line in printed), "a reason is told by its name"
    assert any(line.startswith("fresh ") for line in printed)
    assert {"polars 50", "pandas 50", "duckdb 50", "map-style 50"} <= set(printed)
    assert sum(int(line.split()[1]) for line in printed if line.startswith("arrow ")) == 50
    read = [line.split()[1] for line in printed if line.startswith("streaming ")]
    assert sorted(read) == ["c:1"] * 25 + ["c:3"] * 25
