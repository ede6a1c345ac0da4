"""The fenced blocks of a page of documentation, and the world in which a test runs them as they
stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tests.stack import ProducedEvent, World

from consentry.local.stack import LocalStack
from consentry.wire.catalog import register_all
from consentry.wire.schemas import NAMESPACE


class Snippet(NamedTuple):
    """A fenced block: under which heading, in which language, at which line."""

    section: str
    language: str
    text: str
    line: int


def snippets(text: str) -> list[Snippet]:
    """Every fenced block of a page, in order."""
    found, section, begun, language = [], "", -1, ""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if begun >= 0:
            if line == "```":
                found.append(
                    Snippet(
                        section, language, "\n".join(lines[begun + 1 : number]) + "\n", begun + 1
                    )
                )
                begun = -1
        elif line.startswith("```"):
            begun, language = number, line[3:].strip()
        elif line.startswith("## "):
            section = line[3:]
    assert begun < 0, f"the block of line {begun + 1} has no end"
    return found


@contextmanager
def page_world(shared: LocalStack, directory: Path, *events: ProducedEvent) -> Iterator[World]:
    """The namespace that snippets use without naming it; with events, a processor runs that has
    folded them.

    All pages of a test run share it: members whose choices matter have to be a page's own.
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
    """A hundred rows of three authors and of nobody."""
    authors = ["c:1", "c:2", "c:3", "no such id"] * 25
    pq.write_table(
        pa.table({"member_id": authors, "jurisdiction": ["US"] * 100, "text": ["hello"] * 100}),
        path,
    )
