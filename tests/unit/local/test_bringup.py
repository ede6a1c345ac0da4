"""A service counts as up only when our own child listens and answers; a port of somebody else
proves nothing.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from consentry.local.bringup import Bringup
from consentry.local.child import Launch, Spawner
from consentry.local.errors import Cancelled, LocalStackError
from consentry.local.health import NotAnswering
from consentry.local.ports import Listener, find_listener, free_ports, is_free

ECHO = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    print("listening", flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"hello")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """A small server in the form that the stack starts: it greets whoever connects."""

    directory: Path
    program: str = ECHO
    preparing: str | None = None
    name: str = "echo"
    port_count: int = 1

    def preparation(self, ports: tuple[int, ...]) -> Launch | None:
        """Run `preparing`, if it is given."""
        return None if self.preparing is None else self._python(self.preparing)

    def launch(self, ports: tuple[int, ...]) -> Launch:
        """Start the server."""
        return self._python(self.program, str(ports[0]))

    def address(self, ports: tuple[int, ...]) -> str:
        """Return host and port."""
        return f"127.0.0.1:{ports[0]}"

    def ask(self, ports: tuple[int, ...], *, timeout_seconds: float) -> None:
        """Expect the greeting."""
        with socket.create_connection(("127.0.0.1", ports[0]), timeout_seconds) as connection:
            if connection.recv(5) != b"hello":
                raise NotAnswering("no hello")

    def _python(self, *arguments: str) -> Launch:
        return Launch(command=(sys.executable, "-c", *arguments), directory=self.directory)


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    """The children that a test starts; they are ended after it."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        child.kill()
        child.wait()


@pytest.fixture
def bringup(tmp_path: Path, children: list[subprocess.Popen[bytes]]) -> Iterator[Bringup]:
    """What a stack would bring its services up with."""
    spawner = Spawner()
    yield Bringup(
        spawner=spawner,
        log_path=tmp_path / "echo.log",
        abort=threading.Event(),
        report=lambda line: None,
        on_spawn=lambda name, child: children.append(child),
        start_seconds_max=20.0,
    )
    spawner.close()


@pytest.fixture
def foreign() -> Iterator[int]:
    """A port on which somebody else listens: this process, which is not the child."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class TestWhoListens:
    """The proof itself."""

    def test_a_listener_that_is_not_the_child_is_foreign(
        self, foreign: int, tmp_path: Path
    ) -> None:
        """A test would pass against the Kafka of another project, and its data would be altered."""
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            assert find_listener(foreign, child_pid=child.pid) is Listener.FOREIGN

    def test_a_port_without_a_listener_is_nobodys(self) -> None:
        """A start would give a free port up, or wait for a server that is not there."""
        (port,) = free_ports(1)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            assert find_listener(port, child_pid=child.pid) is Listener.NOBODY

    def test_a_port_with_a_listener_is_not_free(self, foreign: int) -> None:
        """The ports of the last run would be used again although somebody has them now."""
        assert not is_free(foreign)

    def test_free_ports_are_different_ones(self) -> None:
        """Two services of one stack would fight for one port."""
        assert len(set(free_ports(20))) == 20


class TestBringup:
    """From nothing to a service that answers."""

    def test_a_service_is_up_when_our_child_listens_and_answers(
        self, bringup: Bringup, tmp_path: Path
    ) -> None:
        """`up` would print addresses that refuse the first connection."""
        child, ports = bringup.bring_up(Echo(directory=tmp_path), free_ports(1), may_move=True)
        assert find_listener(ports[0], child_pid=child.pid) is Listener.OURS

    def test_a_port_that_another_process_took_is_given_up_for_a_new_one(
        self, bringup: Bringup, foreign: int, tmp_path: Path
    ) -> None:
        """The race for a port is rare and real: a start would fail once in a while, and nobody
        could say why.
        """
        child, ports = bringup.bring_up(Echo(directory=tmp_path), (foreign,), may_move=True)
        assert ports[0] != foreign
        assert find_listener(ports[0], child_pid=child.pid) is Listener.OURS

    def test_a_service_that_has_to_keep_its_port_says_that_it_is_taken(
        self,
        bringup: Bringup,
        foreign: int,
        tmp_path: Path,
        children: list[subprocess.Popen[bytes]],
    ) -> None:
        """A restarted broker that moved would leave every client talking to nobody."""
        with pytest.raises(LocalStackError) as refused:
            bringup.bring_up(Echo(directory=tmp_path), (foreign,), may_move=False)
        assert refused.value.code == "local.port_taken"
        assert str(foreign) in str(refused.value)
        assert all(child.poll() is not None for child in children)

    def test_a_service_that_dies_shows_the_end_of_its_log(
        self, bringup: Bringup, tmp_path: Path
    ) -> None:
        """A person would be told *exit status 3* and nothing to act on."""
        broken = Echo(
            directory=tmp_path, program="import sys; print('the disk is full'); sys.exit(3)"
        )
        with pytest.raises(LocalStackError) as failed:
            bringup.bring_up(broken, free_ports(1), may_move=True)
        assert "exit status 3" in str(failed.value)
        assert str(bringup.log_path) in str(failed.value)
        assert "the disk is full" in failed.value.__notes__[0]

    def test_a_preparation_that_fails_keeps_the_service_from_starting(
        self, bringup: Bringup, tmp_path: Path, children: list[subprocess.Popen[bytes]]
    ) -> None:
        """A broker would start on a directory that was not formatted."""
        unprepared = Echo(directory=tmp_path, preparing="import sys; sys.exit('cannot format')")
        with pytest.raises(LocalStackError) as failed:
            bringup.bring_up(unprepared, free_ports(1), may_move=True)
        assert "could not be prepared" in str(failed.value)
        assert "cannot format" in failed.value.__notes__[0]
        assert len(children) == 1

    def test_a_service_that_never_listens_is_ended_at_the_limit(
        self, tmp_path: Path, bringup: Bringup, children: list[subprocess.Popen[bytes]]
    ) -> None:
        """`up` would hang for ever on a machine where Java cannot start."""
        hurried = Bringup(
            spawner=bringup.spawner,
            log_path=bringup.log_path,
            abort=bringup.abort,
            report=bringup.report,
            on_spawn=bringup.on_spawn,
            start_seconds_max=0.3,
        )
        with pytest.raises(LocalStackError, match="not ready after"):
            hurried.bring_up(
                Echo(directory=tmp_path, program="import time; time.sleep(60)"),
                free_ports(1),
                may_move=True,
            )
        assert all(child.poll() is not None for child in children)

    def test_an_aborted_start_ends_its_child(
        self, bringup: Bringup, tmp_path: Path, children: list[subprocess.Popen[bytes]]
    ) -> None:
        """Ctrl-C while the stack starts would leave servers behind."""
        bringup.abort.set()
        with pytest.raises(Cancelled):
            bringup.bring_up(Echo(directory=tmp_path), free_ports(1), may_move=True)
        assert all(child.poll() is not None for child in children)
