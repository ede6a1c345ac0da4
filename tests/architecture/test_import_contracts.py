"""The rooms stand apart: every import contract is kept, and each notices a broken copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BREAKAGES = {
    "the domain talks to Redis": (
        {"domain/broken_on_purpose.py": "import redis\n"},
        "the domain does no input or output",
    ),
    "one room imports another": (
        {"processor/broken_on_purpose.py": "import consentry.trainer\n"},
        "rooms stand apart, and dependencies point at the domain",
    ),
    "a lower layer imports a higher one": (
        {"wire/broken_on_purpose.py": "import consentry.table\n"},
        "rooms stand apart, and dependencies point at the domain",
    ),
    "a room that no layer names": (
        {"backroom/__init__.py": ""},
        "rooms stand apart, and dependencies point at the domain",
    ),
    "a room reads settings": (
        {
            "ops/settings.py": "",
            "processor/broken_on_purpose.py": "import consentry.ops.settings\n",
        },
        "only the command line reads settings",
    ),
    "a trainer loads a server package by a detour": (
        {
            "table/broken_on_purpose.py": "import redis\n",
            "trainer/broken_on_purpose.py": "import consentry.table.broken_on_purpose\n",
        },
        "the trainer client stays light",
    ),
    "a room of the trainer rests on one above it": (
        {"trainer/deciding/broken_on_purpose.py": "import consentry.trainer.filters\n"},
        "inside the trainer, each room rests on the ones below it",
    ),
    "a room of the trainer that no layer names": (
        {"trainer/backroom.py": ""},
        "inside the trainer, each room rests on the ones below it",
    ),
    "a room of the gateway rests on one above it": (
        {"gateway/http/broken_on_purpose.py": "import consentry.gateway.routes\n"},
        "inside the gateway, each room rests on the ones below it",
    ),
    "bytes need a Kafka client": (
        {"wire/broken_on_purpose.py": "import confluent_kafka\n"},
        "bytes need no Kafka client",
    ),
    "one library's filter imports another's": (
        {"trainer/filters/polars_.py": "import consentry.trainer.filters.pandas_\n"},
        "the filters of the libraries do not know each other",
    ),
    "two siblings import each other": (
        {
            "wire/broken_on_purpose.py": "import consentry.ops.broken_on_purpose\n",
            "ops/broken_on_purpose.py": "import consentry.wire.broken_on_purpose\n",
        },
        "no cycles between siblings",
    ),
}
"""By case: the files to write, relative to services/consentry, and the contract that must notice."""


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of `root` over its own packages, not over the installed ones."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "services"), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_import_contract_is_kept(root: Path) -> None:
    """Whoever reads one room in the night must not have to know the others; a trainer must not
    carry a server.
    """
    result = lint_imports(root)

    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 broken" in result.stdout


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_each_broken_contract_is_noticed(breakage: str, root: Path, tmp_path: Path) -> None:
    """A contract that cannot be broken protects nobody: reviewers would trust a check that
    sleeps.
    """
    files, contract = BREAKAGES[breakage]
    shutil.copy(root / "pyproject.toml", tmp_path)
    shutil.copytree(
        root / "services", tmp_path / "services", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name, text in files.items():
        path = tmp_path / "services" / "consentry" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    result = lint_imports(tmp_path)

    assert result.returncode != 0, result.stdout
    assert (
        f"{contract} BROKEN" in result.stdout
        or contract in result.stdout.partition("Broken contracts")[2]
    )
