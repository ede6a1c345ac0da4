"""docs/trainers.md, "Purging"."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tests.pages import Page, run_snippet

PAGE = Page("docs/trainers.md")


def test_every_snippet_on_purging_runs_and_the_rows_are_gone(tmp_path: Path) -> None:
    """A reader who copies it believes afterwards that a member's rows are deleted."""
    posts = tmp_path / "posts"
    posts.mkdir()
    table = pa.table({"member_id": ["m:1", "m:2"], "text": ["a", "b"]})
    pq.write_table(table, posts / "a.parquet")
    snippets = PAGE.snippets("Purging")
    assert {snippet.language for snippet in snippets} == {"bash", "python"}

    output = ""
    for snippet in snippets:
        output += run_snippet(snippet, environment=os.environ, directory=tmp_path).stdout

    assert pq.read_table(posts / "a.parquet")["text"].to_pylist() == ["b"]
    [receipt] = json.loads((tmp_path / "receipts.json").read_text())
    assert receipt["result"] == "DELETED"
    assert "clean\n" in output
    assert output.splitlines()[-1] == receipt["version_after"]
