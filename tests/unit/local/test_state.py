"""Whether a stack lives is told by the process that keeps it, named by pid and start; nothing else
is ever ended.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consentry.local.errors import LocalStackError
from consentry.local.state import (
    RUNNING,
    Addresses,
    ProcessIdentity,
    StackState,
    clear_stale_state,
    load_state,
    read_state,
    state_directory,
    state_path,
    write_state,
)

ADDRESSES = Addresses(
    kafka="127.0.0.1:1",
    redis_url="redis://127.0.0.1:2/0",
    registry_url="http://127.0.0.1:3/apis/ccompat/v7",
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory in which a stack could live."""
    state_directory(tmp_path).mkdir()
    return tmp_path


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A real process that does nothing."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def dead_process() -> ProcessIdentity:
    """Return the identity of a process that has just ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        return ProcessIdentity.of(process.pid)


def stack(supervisor: ProcessIdentity, **services: ProcessIdentity) -> StackState:
    """Return the state of a stack that is up."""
    return StackState(
        phase=RUNNING,
        supervisor=supervisor,
        ephemeral=False,
        data_directory="data",
        services=services,
        addresses=ADDRESSES,
    )


class TestReadState:
    """What another process learns."""

    def test_a_live_stack_is_read_as_it_was_written(self, directory: Path) -> None:
        """Programs that follow the state would connect to the wrong addresses."""
        me = ProcessIdentity.of(os.getpid())
        write_state(directory, stack(me, redis=me))
        assert read_state(directory) == stack(me, redis=me)

    def test_a_stack_whose_supervisor_has_died_is_no_stack(self, directory: Path) -> None:
        """`status` would call a stack up that was killed, and `up` would refuse for ever."""
        write_state(directory, stack(dead_process()))
        assert read_state(directory) is None

    def test_a_stranger_who_got_the_pid_of_a_dead_supervisor_is_not_taken_for_it(
        self, directory: Path, sleeper: subprocess.Popen[bytes]
    ) -> None:
        """`down` would end a program of somebody else."""
        stranger = ProcessIdentity(
            pid=sleeper.pid, started=ProcessIdentity.of(sleeper.pid).started - 3600
        )
        write_state(directory, stack(stranger))
        assert read_state(directory) is None

    def test_no_file_is_no_stack(self, tmp_path: Path) -> None:
        """The first start in a new directory must not fail."""
        assert read_state(tmp_path) is None

    def test_only_the_owner_may_read_the_state(self, directory: Path) -> None:
        """Another user of the computer would learn where the stack listens and which processes it
        has.
        """
        write_state(directory, stack(ProcessIdentity.of(os.getpid())))
        assert stat.S_IMODE(state_path(directory).stat().st_mode) == 0o600

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
    def test_a_state_that_cannot_be_read_says_so_instead_of_guessing(
        self, directory: Path, text: str
    ) -> None:
        """`status` would answer *not running* over a running stack."""
        state_path(directory).write_text(text, "utf-8")
        with pytest.raises(LocalStackError) as refused:
            read_state(directory)
        assert refused.value.code == "local.state_unreadable"
        assert str(state_path(directory)) in str(refused.value)


class TestClearStaleState:
    """Cleaning up after a run that was killed."""

    def test_a_left_over_service_is_ended_and_the_state_is_gone(
        self, directory: Path, sleeper: subprocess.Popen[bytes]
    ) -> None:
        """An old broker would hold the lock of the data directory, and the next start would
        fail.
        """
        write_state(directory, stack(dead_process(), kafka=ProcessIdentity.of(sleeper.pid)))
        lines: list[str] = []
        clear_stale_state(directory, lines.append)
        assert sleeper.wait(5) != 0
        assert load_state(directory) is None
        assert len(lines) == 1
        assert "ended its kafka" in lines[0]

    def test_a_stranger_with_the_pid_of_a_left_over_service_is_left_alone(
        self, directory: Path, sleeper: subprocess.Popen[bytes]
    ) -> None:
        """A person's own program would be killed because it was given an old number."""
        stranger = ProcessIdentity(
            pid=sleeper.pid, started=ProcessIdentity.of(sleeper.pid).started - 3600
        )
        write_state(directory, stack(dead_process(), kafka=stranger))
        clear_stale_state(directory, lambda line: None)
        assert sleeper.poll() is None

    def test_an_unreadable_state_is_cleared_and_ephemeral_data_with_it(
        self, directory: Path
    ) -> None:
        """A file torn by a full disk would keep every later start from working."""
        state_path(directory).write_text("{", "utf-8")
        (state_directory(directory) / "ephemeral-x" / "kafka").mkdir(parents=True)
        lines: list[str] = []
        clear_stale_state(directory, lines.append)
        assert not state_path(directory).exists()
        assert not list(state_directory(directory).glob("ephemeral-*"))
        assert len(lines) == 1

    def test_nothing_is_said_where_nothing_was_left(self, directory: Path) -> None:
        """A warning on every clean start is one that nobody reads."""
        lines: list[str] = []
        clear_stale_state(directory, lines.append)
        assert lines == []
