"""The list of commands: its help is what the commands say, and each imports only what it needs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from consentry.cli.commands import COMMANDS, load_command

OF_SERVERS = ("faust", "redis", "fastapi", "uvicorn", "aiokafka")
OF_TRAINERS = ("check", "verify", "purge", "reach", "bundle", "trainer")
OF_DESKS = ("emit", "pause", "policy", "approval", "quarantine", "scenario", "schemas", "topics")


def run_python(program: str) -> str:
    """Run a program in a process of its own, which has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def subcommands(command: Any) -> list[Any]:
    """A command and all below it."""
    found = [command]
    for below in getattr(command, "commands", {}).values():
        found += subcommands(below)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_gives_the_first_line_of_a_commands_own_help(name: str) -> None:
    """`consentry --help` does not import the commands, so it could say something else."""
    first_line = load_command(name).help.split("\n")[0]

    assert first_line == COMMANDS[name].help


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_begins_with_a_line_that_names_the_act(name: str) -> None:
    """In a list of commands a sentence that goes on in the next line is cut off."""
    for command in subcommands(load_command(name)):
        first_line = command.help.split("\n")[0]
        assert first_line.endswith("."), command.name
        assert first_line.split()[0].rstrip(",:").isalpha(), command.name
        assert len(first_line) <= 80, command.name


def test_the_list_of_commands_imports_none_of_them() -> None:
    """Shell completion and `--help` would wait for libraries that they do not use."""
    program = "import sys; sys.argv = ['consentry', '--help']; from consentry.cli import run\n"
    program += "try: run()\nexcept SystemExit: pass\n"
    program += "print(*[name for name in sys.modules if name.startswith('consentry.cli.')])"

    imported = run_python(program).splitlines()[-1].split()

    assert set(imported) == {
        "consentry.cli.app",
        "consentry.cli.commands",
        "consentry.cli.exit",
    }


@pytest.mark.parametrize("name", [*OF_TRAINERS, *OF_DESKS])
def test_a_command_for_trainers_or_desks_imports_nothing_of_a_server(name: str) -> None:
    """Whoever installed consentry alone, without its extras, could not run it."""
    program = f"import sys; from consentry.cli.commands import load_command; load_command({name!r})"
    program += f"\nprint([name for name in {OF_SERVERS} if name in sys.modules])"

    assert run_python(program) == "[]\n"


def test_the_agent_imports_neither_faust_nor_redis() -> None:
    """It is a server for one trainer, which has no table and no processor."""
    program = "import sys; from consentry.cli.commands import load_command; load_command('agent')"
    program += "\nprint([name for name in ('faust', 'redis', 'aiokafka') if name in sys.modules])"

    assert run_python(program) == "[]\n"


def test_a_missing_package_is_named_with_the_extra_that_installs_it() -> None:
    """A traceback would not say what to do."""
    program = "import sys; sys.modules['redis'] = None; sys.argv = ['consentry', 'table', 'stats']"
    program += "\nfrom consentry.cli import main; main()"

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 2
    assert "[install.extra] Fix: pip install 'consentry[processor]'" in done.stderr
