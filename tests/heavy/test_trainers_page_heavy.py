"""docs/trainers.md, "PyTorch", "Ray Data" and "Spark": every snippet is run as it stands."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.heavy.conftest import java_home
from tests.pages import page_world, snippets, write_posts
from tests.stack import World, lives_in, opted_out

from consentry.local.stack import LocalStack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
SECTIONS = ("PyTorch", "Ray Data", "Spark")
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
        assert max(map(len, own.splitlines())) <= 120, section


def run_section(world: World, section: str) -> str:
    """Run the one snippet of a section from a file, as who copies it does; gives what it printed.

    A file, as workers that are spawned import it again: what `python -c` runs they never see.
    """
    environment = world.environment() | {
        "JAVA_HOME": java_home(world.directory / "java"),
        "PATH": os.environ["PATH"],
        "HOME": str(world.directory),
        "PYSPARK_PYTHON": sys.executable,
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    [snippet] = [one for one in snippets(PAGE.read_text()) if one.section == section]
    script = world.directory / "copied.py"
    script.write_text(snippet.text)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        cwd=world.directory,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{PAGE.name}:{snippet.line}: {done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_pytorch_snippet_runs_from_a_file_and_leaves_out_who_opted_out(
    consentry_world: World,
) -> None:
    """The first thing that anybody does with a page is to copy it; without a guard its workers
    begin it anew.
    """
    printed = run_section(consentry_world, "PyTorch").splitlines()
    assert sum(int(line.split()[0]) for line in printed if line.endswith("rows of a batch")) == 50


def test_the_ray_snippet_runs_from_a_file_and_leaves_out_who_opted_out(
    consentry_world: World,
) -> None:
    """The first thing that anybody does with a page is to copy it."""
    assert "50 rows" in run_section(consentry_world, "Ray Data")


def test_the_spark_snippet_runs_from_a_file_and_leaves_out_who_opted_out(
    consentry_world: World,
) -> None:
    """The first thing that anybody does with a page is to copy it."""
    run_section(consentry_world, "Spark")
    assert pq.read_table(consentry_world.directory / "allowed.parquet")[
        "member_id"
    ].value_counts().to_pylist() == [
        {"values": "c:1", "counts": 25},
        {"values": "c:3", "counts": 25},
    ]
