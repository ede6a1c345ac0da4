"""The fenced blocks of a page of documentation, for the tests that run them as they stand."""

from __future__ import annotations

from typing import NamedTuple


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
                found.append(Snippet(section, language, "\n".join(lines[begun + 1 : number]) + "\n", begun + 1))
                begun = -1
        elif line.startswith("```"):
            begun, language = number, line[3:].strip()
        elif line.startswith("## "):
            section = line[3:]
    assert begun < 0, f"the block of line {begun + 1} has no end"
    return found
