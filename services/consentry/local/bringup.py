"""Bring up one service of the local stack, until it answers.

It is prepared and started; then it has to listen itself on its port, and answer a real request.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from consentry.local.child import Launch, Spawner, end
from consentry.local.errors import Cancelled, LocalStackError
from consentry.local.health import NotAnswering
from consentry.local.ports import Listener, find_listener, free_ports
from consentry.local.services import Service

START_SECONDS_MAX = 60.0  # measured at 3 to 8; a busy machine gets ten times that
PORT_ATTEMPTS_MAX = 3
POLL_SECONDS = 0.05
ASK_TIMEOUT_SECONDS = 3.0
LOG_LINES_SHOWN = 12

Child = subprocess.Popen[bytes]


class PortTaken(Exception):
    """Raised when another process took the port that a service of the local stack was to use.

    It was free a moment ago.
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.port = port


@dataclass(frozen=True, slots=True, kw_only=True)
class Bringup:
    """Brings services of the local stack up; setting `abort` ends waits in about a second."""

    spawner: Spawner
    log_path: Path
    abort: threading.Event
    report: Callable[[str], None]
    on_spawn: Callable[[str, Child], None]
    start_seconds_max: float = START_SECONDS_MAX

    def bring_up(
        self, service: Service, ports: tuple[int, ...], *, may_move: bool
    ) -> tuple[Child, tuple[int, ...]]:
        """Bring one service of the local stack up; return its child process and its ports.

        The child answers by then. With `may_move`, a port that another process took is replaced by
        a new one. Raises LocalStackError with the end of the log as a note, or Cancelled; a child
        that failed is ended first.
        """
        for attempt in range(1, PORT_ATTEMPTS_MAX + 1):
            try:
                return self._try(service, ports), ports
            except PortTaken as taken:
                if not may_move or attempt == PORT_ATTEMPTS_MAX:
                    raise _port_error(service, taken.port, may_move=may_move) from taken
                self.report(
                    f"{service.name}: another process took port {taken.port}, trying another port"
                )
                ports = free_ports(service.port_count)
        raise AssertionError("the loop returns or raises")

    def _try(self, service: Service, ports: tuple[int, ...]) -> Child:
        started = time.monotonic()
        deadline = started + self.start_seconds_max
        preparation = service.preparation(ports)
        if preparation is not None:
            self._run_to_end(service, preparation, deadline)
        child = self._spawn(service, service.launch(ports))
        try:
            self._await_listener(service, child, ports, deadline)
            self._await_answer(service, child, ports, deadline)
        except BaseException:
            child.kill()
            child.wait()
            raise
        seconds = time.monotonic() - started
        self.report(f"{service.name} answers at {service.address(ports)} ({seconds:.1f} s)")
        return child

    def _spawn(self, service: Service, launch: Launch) -> Child:
        with self.log_path.open("ab") as log:
            child = self.spawner.spawn(launch, log)
        self.on_spawn(service.name, child)
        return child

    def _run_to_end(self, service: Service, launch: Launch, deadline: float) -> None:
        child = self._spawn(service, launch)
        try:
            while child.poll() is None:
                self._pause(service, deadline, "its preparation did not end")
        finally:
            child.kill()  # does nothing to one that has ended
            end(child, patience_seconds=0)
        if child.returncode != 0:
            raise self._failure(service, f"could not be prepared: exit status {child.returncode}")

    def _await_listener(
        self, service: Service, child: Child, ports: tuple[int, ...], deadline: float
    ) -> None:
        while (listener := find_listener(ports[0], child_pid=child.pid)) is not Listener.OURS:
            if listener is Listener.FOREIGN:
                raise PortTaken(ports[0])
            if child.poll() is not None:
                self._explain_death(service, child, ports)
            self._pause(service, deadline, f"it does not listen on port {ports[0]}")

    def _await_answer(
        self, service: Service, child: Child, ports: tuple[int, ...], deadline: float
    ) -> None:
        while True:
            try:
                service.ask(ports, timeout_seconds=ASK_TIMEOUT_SECONDS)
            except NotAnswering as silence:
                if child.poll() is not None:
                    self._explain_death(service, child, ports)
                self._pause(service, deadline, str(silence))
            else:
                return

    def _explain_death(self, service: Service, child: Child, ports: tuple[int, ...]) -> None:
        for port in ports:
            if find_listener(port, child_pid=child.pid) is Listener.FOREIGN:
                raise PortTaken(port)
        raise self._failure(service, f"ended while starting, with exit status {child.returncode}")

    def _pause(self, service: Service, deadline: float, reason: str) -> None:
        if self.abort.wait(POLL_SECONDS):
            raise Cancelled
        if time.monotonic() > deadline:
            what_failed = f"is not ready after {self.start_seconds_max:.0f} s: {reason}"
            raise self._failure(service, what_failed)

    def _failure(self, service: Service, what_failed: str) -> LocalStackError:
        error = LocalStackError(
            f"The local {service.name} {what_failed}.",
            code=f"local.{service.name}_failed",
            fix=f"read its log at {self.log_path}; its data is in {service.directory}; if you need "
            "nothing of it, delete that directory and start again",
        )
        log_end = "\n".join(last_lines(self.log_path))
        error.add_note(f"The last lines of {self.log_path}:\n{log_end}")
        return error


def last_lines(path: Path, count: int = LOG_LINES_SHOWN) -> list[str]:
    """Return the last lines of a local service's log; an empty list if there is no such file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=count)]
    except FileNotFoundError:
        return []


def _port_error(service: Service, port: int, *, may_move: bool) -> LocalStackError:
    if may_move:
        what_failed = (
            f"found {PORT_ATTEMPTS_MAX} times in a row that another process had taken its "
            f"port, lastly {port}"
        )
        fix = "run the command again; if the error stays, another program takes every free port"
    else:
        what_failed = f"has to listen on port {port} again, and another process listens there"
        fix = f"end the process that listens on port {port}, then start {service.name} again"
    return LocalStackError(
        f"The local {service.name} {what_failed}.", code="local.port_taken", fix=fix
    )
