"""The two ways in, `make` and `.ci/run`: they say what is wrong, and cannot be green without having
run a test.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TARGETS = {
    "bench", "check", "clean", "demo", "exhaustive", "help", "lint", "lock", "mutants", "setup", "setup-all", "test",
    "test-all",
}  # fmt: skip

PYTEST = ".venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder"

PASSED = "======== 3 passed, 1 skipped in 0.42s ========"
SKIPPED = "======== 4 skipped in 0.42s ========"
FAILED = "======== 1 failed, 3 passed in 0.42s ========"


def run_make(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def plain_environment() -> dict[str, str]:
    """The environment without what an outer `make` leaves in it, which would change the inner
    one.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    }


class TestMake:
    def test_make_alone_lists_every_target(self) -> None:
        """A contributor should not have to read a Makefile to find the one command."""
        listing = run_make(folder=ROOT)

        assert listing.returncode == 0, listing.stderr
        assert {line.split()[1] for line in listing.stdout.splitlines()} == TARGETS

    def test_the_gate_is_everything_that_check_is_and_more(self) -> None:
        """A commit that passes `make check` and fails on style in the gate costs a day."""
        check = [
            line
            for line in run_make("-n", "check", folder=ROOT).stdout.splitlines()
            if ".venv" in line
        ]
        gate = [
            line
            for line in run_make("-n", "test", folder=ROOT).stdout.splitlines()
            if ".venv" in line
        ]

        assert gate[:-1] == check[:-1]
        assert gate[-1] == f'{PYTEST} -m "not long"'
        for tool in (
            "ruff check",
            "ruff format --check",
            "mypy",
            "lint-imports",
            "consentry schemas lint",
        ):
            assert any(f".venv/bin/{tool}" in line for line in gate), tool

    def test_what_the_gate_leaves_out_is_run_by_test_all(self) -> None:
        """A test that neither command runs guards nothing, and looks as if it did."""
        listing = run_make("-n", "test-all", folder=ROOT).stdout.splitlines()
        commands = [line for line in listing if "pytest" in line]

        assert commands[-2:] == [
            f'CONSENTRY_TEST_SIZE=full {PYTEST} -m "long or sized"',
            ".venv/bin/pytest tests/heavy",
        ]

    def test_without_a_usable_python_it_says_so(self, tmp_path: Path) -> None:
        """Version managers leave commands that exist and refuse to run; the error must not come out
        of pip later.
        """
        for name in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / name, tmp_path)

        result = run_make("setup", "PYTHON=false", folder=tmp_path)

        assert result.returncode != 0
        assert "No usable Python 3.11 or newer among: false." in result.stderr
        assert not (tmp_path / ".venv").exists()

    def test_an_installed_environment_is_left_alone(self, tmp_path: Path) -> None:
        """Whoever runs `make check` fifty times a day should not wait for pip fifty times."""
        for name in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / name, tmp_path)
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv" / ".installed").touch()

        untouched = run_make("-n", "setup", folder=tmp_path).stdout
        os.utime(tmp_path / "requirements.lock", (4_000_000_000, 4_000_000_000))
        changed = run_make("-n", "setup", folder=tmp_path).stdout

        assert "pip install" not in untouched
        assert (
            "pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock"
            in changed
        )

    def test_nothing_in_it_needs_a_newer_make(self) -> None:
        """macOS still ships make 3.81, and fails there in ways that look like our fault."""
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

        assert newer_features(makefile) == []
        assert newer_features("A != date\n.ONESHELL:\nB ::= c\nC = $(file > x)\n&: d") != []


def newer_features(makefile: str) -> list[str]:
    """What make 3.81 does not understand: !=, ::=, &:, .ONESHELL, $(file …), $(let …)."""
    lines = [line for line in makefile.splitlines() if not line.startswith(("\t", "#"))]
    return re.findall(
        r"^\w+ (?:!=|::=)|\.ONESHELL|\$\((?:file|let|guile) |&:", "\n".join(lines), re.MULTILINE
    )


class TestTheGate:
    def test_it_runs_make_test_and_what_is_too_heavy_for_it(self, tmp_path: Path) -> None:
        """Whoever merges trusts that the gate ran what they can run."""
        result = run_gate(tmp_path, f'echo "asked for: $*"; echo "{PASSED}"')

        assert result.returncode == 0, result.stdout + result.stderr
        assert "asked for: test\n" in result.stdout
        assert "asked for: test-all\n" in result.stdout
        assert f"make test: {PASSED}" in result.stdout
        assert f"make test-all: {PASSED}" in result.stdout

    @pytest.mark.parametrize(
        "script",
        [
            f'echo "{SKIPPED}"',
            'echo "======== no tests ran in 0.01s ========"',
            "true",
            f'echo "{FAILED}"; exit 2',
            f'echo "{PASSED}"; exit 2',
        ],
    )
    @pytest.mark.parametrize("target", ["test", "test-all"])
    def test_it_fails_when_no_test_ran_or_one_failed(
        self, script: str, target: str, tmp_path: Path
    ) -> None:
        """A green gate that proved nothing lets through what trains on somebody who opted out."""
        only_there = f'if [ "$1" = {target} ]; then {script}; else echo "{PASSED}"; fi'

        assert run_gate(tmp_path, only_there).returncode != 0

    def test_it_hands_over_no_terminal_and_demands_promtool(self, tmp_path: Path) -> None:
        """A question that nobody answers hangs for an hour; an alert test that is skipped proves
        nothing.
        """
        script = (
            f'read -r answer && exit 3; echo "$CI $CONSENTRY_REQUIRE_PROMTOOL"; echo "{PASSED}"'
        )

        result = run_gate(tmp_path, script)

        assert result.returncode == 0, result.stdout + result.stderr
        assert "true 1\n" in result.stdout

    def test_it_is_bash_that_parses(self) -> None:
        """A misprint in the gate is found by the gate only, when everybody waits for it."""
        subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True, timeout=60)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter and write to, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


class TestABareMachine:
    def test_as_root_it_installs_what_is_missing(self, open_folder: Path) -> None:
        """A new machine has neither make nor promtool; whoever sets it up should have nothing to
        read first.
        """
        if os.geteuid() != 0:
            pytest.skip("only root may install packages")

        result = run_bare(open_folder, "apt-get", "timeout")

        assert result.returncode == 0, result.stdout + result.stderr
        *installed, test, test_all = (
            (open_folder / "asked").read_text(encoding="utf-8").splitlines()
        )
        assert installed == [
            "apt-get update -qq",
            "apt-get install -y -qq --no-install-recommends python3 python3-venv make prometheus "
            "curl postgresql",
        ]
        for line, target in ((test, "test"), (test_all, "test-all")):
            timed = re.fullmatch(rf"timeout --kill-after=30 (\d+) make {target}", line)
            assert timed is not None, line
            assert 3500 < int(timed[1]) <= 3600, "both together have an hour"

    def test_without_root_it_says_what_is_missing(self, open_folder: Path) -> None:
        """Half an installation, or a password prompt that nobody sees, would be worse than a
        sentence.
        """
        nobody = 65534 if os.geteuid() == 0 else None

        result = run_bare(open_folder, "apt-get", "timeout", user=nobody)

        assert result.returncode == 1
        assert (
            "only root can install it: python3 python3-venv make prometheus curl postgresql"
            in result.stderr
        )
        assert not (open_folder / "asked").exists()


def run_bare(
    folder: Path, *recorded: str, user: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real .ci/run on a machine that has next to nothing; calls of `recorded` are written
    down, not made.
    """
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    tools = folder / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "grep", "mktemp", "rm", "tail", "tee"):
        (tools / name).symlink_to(str(shutil.which(name)))
    for name in recorded:
        (tools / name).write_text(
            f'#!/bin/sh\necho "{name} $*" >> "{folder}/asked"\necho "{PASSED}"\n', encoding="utf-8"
        )
        (tools / name).chmod(0o755)
    return subprocess.run(
        [tools / "bash", folder / ".ci" / "run"], env={"PATH": str(tools)}, user=user,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def run_gate(folder: Path, make: str) -> subprocess.CompletedProcess[str]:
    """Run the real .ci/run in an empty project where `make` is `make`, and everything it asks for
    is there.
    """
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    tools = folder / "tools"
    tools.mkdir()
    for name, body in {
        "make": make,
        **dict.fromkeys(("promtool", "prometheus", "curl", "pg_ctlcluster"), "true"),
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.run(
        [folder / ".ci" / "run"],
        env=environment,
        capture_output=True,
        input="yes\n",
        text=True,
        timeout=60,
        check=False,
    )
