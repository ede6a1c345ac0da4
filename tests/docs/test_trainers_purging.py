"""docs/trainers.md, "Purging": every snippet is run as it stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tests.pages import snippets

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"


def test_every_snippet_on_purging_runs_and_the_rows_are_gone(tmp_path: Path) -> None:
    """Whoever copies it believes afterwards that a member's rows are deleted."""
    (tmp_path / "posts").mkdir()
    pq.write_table(
        pa.table({"member_id": ["m:1", "m:2"], "text": ["a", "b"]}),
        tmp_path / "posts" / "a.parquet",
    )
    found = [snippet for snippet in snippets(PAGE.read_text()) if snippet.section == "Purging"]
    assert {snippet.language for snippet in found} == {"bash", "python"}

    printed = ""
    for snippet in found:
        program = (
            [sys.executable, "-c"]
            if snippet.language == "python"
            else ["bash", "-euo", "pipefail", "-c"]
        )
        done = subprocess.run(
            [*program, snippet.text],
            cwd=tmp_path,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, (
            f"{PAGE.name}:{snippet.line}: {done.stdout}\n{done.stderr[-3000:]}"
        )
        printed += done.stdout

    assert pq.read_table(tmp_path / "posts" / "a.parquet")["text"].to_pylist() == ["b"]
    assert json.loads((tmp_path / "receipts.json").read_text())[0]["result"] == "DELETED"
    assert "clean\n" in printed
    assert (
        printed.splitlines()[-1]
        == json.loads((tmp_path / "receipts.json").read_text())[0]["version_after"]
    )
