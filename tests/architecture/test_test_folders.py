"""Every folder of tests is run by one of the two commands."""

from __future__ import annotations

import tomllib
from pathlib import Path


def test_every_folder_of_tests_is_run_by_make_test_or_make_test_all(root: Path) -> None:
    """A folder that neither names would hold tests that nobody ever runs."""
    options = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    folders = {
        f"tests/{file.relative_to(root / 'tests').parts[0]}"
        for file in (root / "tests").rglob("*/test_*.py")
    }

    assert folders - set(options["testpaths"]) <= {"tests/heavy"}
    assert "\t$(BIN)/pytest tests/heavy" in (root / "Makefile").read_text()
