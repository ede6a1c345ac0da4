"""The files that the tests of the repository itself read."""

from __future__ import annotations

import fnmatch
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def project_files() -> tuple[Path, ...]:
    """Every file of the project, relative to its top.

    That is every file that git tracks or would track, and none that a tool left behind.
    """
    files = _listed_by_git(ROOT) or _found_by_walking(ROOT)
    return tuple(sorted(path for path in files if (ROOT / path).is_file()))


@pytest.fixture(scope="session")
def project_texts(project_files: tuple[Path, ...]) -> dict[str, str]:
    """The text of each project file by its path; files that are no text are left out."""
    texts: dict[str, str] = {}
    for path in project_files:
        try:
            texts[path.as_posix()] = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return texts


def _listed_by_git(root: Path) -> list[Path]:
    # In a gate the checkout may belong to another user; git refuses that without this setting.
    command = ["git", "-c", f"safe.directory={root}", "ls-files", "-z"]
    command += ["--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(
            command, cwd=root, capture_output=True, check=True, text=True, timeout=60
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return [Path(name) for name in listing.stdout.split("\0") if name]


def _found_by_walking(root: Path) -> list[Path]:
    """Return every file that .gitignore does not name, for a checkout without git."""
    ignored = [
        line.rstrip("/")
        for line in (root / ".gitignore").read_text(encoding="utf-8").split()
        if line
    ]
    ignored.append(".git")

    def is_ignored(path: Path) -> bool:
        steps = [path, *path.parents]
        return any(
            fnmatch.fnmatch(step.name, pattern) or step.as_posix() == pattern
            for step in steps
            for pattern in ignored
        )

    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return [path for path in files if not is_ignored(path)]
