"""Pages of documentation: their fenced blocks, and the world in which a test runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tests.stack import CONSENTRY, ProducedEvent, World

from consentry.local.stack import LocalStack
from consentry.wire.catalog import register_all
from consentry.wire.schemas import NAMESPACE

ROOT: Final = Path(__file__).parents[1]
SNIPPET_SECONDS_MAX: Final = 120
INTERPRETERS: Final[Mapping[str, list[str]]] = {
    "python": [sys.executable, "-c"],
    "bash": ["bash", "-euo", "pipefail", "-c"],
}
"""The command that runs a snippet, by its language."""


class Snippet(NamedTuple):
    """A fenced block: its page, the heading above it, its language, its text and its line."""

    page: str
    section: str
    language: str
    text: str
    line: int


def snippets(text: str, page: str = "") -> list[Snippet]:
    """Return every fenced block of a page, in order."""
    blocks: list[Snippet] = []
    section = language = ""
    first_line = -1
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if first_line >= 0:
            if line == "```":
                block = "\n".join(lines[first_line:number]) + "\n"
                blocks.append(Snippet(page, section, language, block, first_line))
                first_line = -1
        elif line.startswith("```"):
            first_line, language = number + 1, line[3:].strip()
        elif line.startswith("## "):
            section = line[3:]
    assert first_line < 0, f"the block of line {first_line} has no end"
    return blocks


class Page:
    """One page, by its path from the top of the repository."""

    def __init__(self, path: str) -> None:
        self.path = ROOT / path

    @property
    def text(self) -> str:
        """The whole page."""
        return self.path.read_text(encoding="utf-8")

    def snippets(self, section: str = "", language: str = "") -> list[Snippet]:
        """Return the blocks of a section, or of the page; at least one."""
        matching = [
            snippet
            for snippet in snippets(self.text, self.path.name)
            if section in ("", snippet.section) and language in ("", snippet.language)
        ]
        assert matching, f"{self.path.name} has no block of {section!r} in {language!r}"
        return matching

    def lines(self, section: str) -> list[str]:
        """Return the lines of a section, without its heading and the blank ones around it."""
        _, heading, rest = self.text.partition(f"\n## {section}\n")
        assert heading, f"{self.path.name} has no section {section!r}"
        return rest.partition("\n## ")[0].strip().splitlines()


def reader_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which `consentry` and `python` are those of this installation."""
    programs = os.pathsep.join([str(CONSENTRY.parent), environment["PATH"]])
    return {**environment, "PATH": programs}


def run_program(
    program: list[str], *, environment: Mapping[str, str], directory: Path
) -> subprocess.CompletedProcess[str]:
    """Run a program as a reader of a page would, without anything on its standard input."""
    return subprocess.run(
        program,
        env=reader_environment(environment),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SNIPPET_SECONDS_MAX,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def run_snippet(
    snippet: Snippet, *, environment: Mapping[str, str], directory: Path
) -> subprocess.CompletedProcess[str]:
    """Run a snippet as it stands. Fails, with its page and line, if it exits with an error."""
    program = [*INTERPRETERS[snippet.language], snippet.text]
    completed = run_program(program, environment=environment, directory=directory)
    assert completed.returncode == 0, (
        f"{snippet.page}:{snippet.line}: {completed.returncode}\n"
        f"{completed.stdout}\n{completed.stderr[-3000:]}"
    )
    return completed


@contextmanager
def page_world(shared: LocalStack, directory: Path, *events: ProducedEvent) -> Iterator[World]:
    """Open the namespace that snippets use without naming it.

    With events, a processor runs that has folded them. All pages of a test run share the
    namespace: a page that depends on the choices of members needs members of its own.
    """
    world = World(shared, directory, prepare=False)
    try:
        world.namespace = NAMESPACE
        world.apply_topics()
        register_all(world.registry, NAMESPACE)
        if events:
            world.processor().wait_ready()
            world.open_policy()
            world.produce(*events)
            world.assert_all_agree()
        yield world
    finally:
        world.close(keeps_topics=True)


def write_posts(path: Path) -> None:
    """Write a hundred rows: of three authors, and of no member."""
    authors = ["c:1", "c:2", "c:3", "no such id"] * 25
    pq.write_table(
        pa.table({"member_id": authors, "jurisdiction": ["US"] * 100, "text": ["hello"] * 100}),
        path,
    )
