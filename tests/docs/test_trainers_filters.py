"""docs/trainers.md, the client and the libraries that filter inside one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pages import Page, page_world, run_snippet, write_posts
from tests.stack import World, lives_in, opted_out

from consentry.local.stack import LocalStack

PAGE = Page("docs/trainers.md")
SECTIONS = ("The client", "Arrow, Polars, pandas, DuckDB", "Hugging Face datasets")
LINES_MAX = 34


@pytest.fixture
def consentry_world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """The namespace that the snippets use.

    Of three authors one opted out, and one row in four has no member.
    """
    write_posts(tmp_path / "posts.parquet")
    events = lives_in("c:1"), lives_in("c:2"), lives_in("c:3"), opted_out("c:2")
    with page_world(shared, tmp_path, *events) as world:
        yield world


def test_each_section_is_short() -> None:
    """A page that nobody reads to its end helps nobody."""
    for section in SECTIONS:
        assert len(PAGE.lines(section)) <= LINES_MAX, section


@pytest.mark.stack
def test_every_snippet_runs_and_leaves_out_who_opted_out(
    consentry_world: World, tmp_path: Path
) -> None:
    """The first thing that anybody does with a page is to copy it."""
    cache = {"HF_HOME": str(tmp_path / "huggingface"), "HF_HUB_OFFLINE": "1"}
    environment = consentry_world.environment() | cache

    printed: list[str] = []
    for section in SECTIONS:
        for snippet in PAGE.snippets(section):
            completed = run_snippet(snippet, environment=environment, directory=tmp_path)
            printed += completed.stdout.splitlines()

    assert "OPTED_OUT" in printed
    assert any(line.startswith("50 rows;") and "'QUARANTINED': 25" in line for line in printed)
    assert not any("<" in line for line in printed), "a reason is shown by its name"
    assert any(line.startswith("fresh ") for line in printed)
    assert {"polars 50", "pandas 50", "duckdb 50", "map-style 50"} <= set(printed)
    assert sum(int(line.split()[1]) for line in printed if line.startswith("arrow ")) == 50
    streamed = [line.split()[1] for line in printed if line.startswith("streaming ")]
    assert sorted(streamed) == ["c:1"] * 25 + ["c:3"] * 25
