"""The state of a local stack as other processes see it, in a file.

It is in `<dir>/local/state.json`; what a killed stack left there is cleared by the next one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from consentry.local.errors import LocalStackError

STATE_FORMAT = 1
# A process is identified by its pid and its start time. The operating system knows the start to
# about a second, and setting the clock moves it a little; the same pid is not given twice so fast.
START_TOLERANCE_SECONDS = 2.0
END_PATIENCE_SECONDS = 5.0
POLL_SECONDS = 0.05

STARTING = "starting"
RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of the local stack's Kafka, Redis and schema registry, all on loopback.

    They are a bootstrap address and two URLs.
    """

    kafka: str
    redis_url: str
    registry_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process of the local stack; the same pid may later be given to another process.

    It stands for one life of a process.
    """

    pid: int
    started: float
    """Seconds since 1970, by the operating system."""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Return the identity of the local stack's process that has this pid now.

        Raises psutil.NoSuchProcess.
        """
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """Return this very process of the local stack if it is still alive, else None."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.started) <= START_TOLERANCE_SECONDS
            if is_same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except psutil.NoSuchProcess:
            pass
        return None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this very process of the local stack, if it has not ended."""
        process = self.process()
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def await_end(self, *, patience_seconds: float) -> bool:
        """Wait until the process has ended; return False if the time is over before that.

        A process that nobody reaps counts as ended.
        """
        deadline = time.monotonic() + patience_seconds
        while self.process() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class StackState:
    """The local stack's state as its supervisor wrote it; no `addresses` while it starts."""

    phase: str
    supervisor: ProcessIdentity
    ephemeral: bool
    data_directory: str
    services: dict[str, ProcessIdentity] = field(default_factory=dict)
    addresses: Addresses | None = None


def state_directory(directory: Path) -> Path:
    """Return the directory of the local stack inside a project's `.consentry`."""
    return directory / "local"


def state_path(directory: Path) -> Path:
    """Return the path of the state file of the local stack in `directory`."""
    return state_directory(directory) / "state.json"


def log_path(directory: Path, service: str) -> Path:
    """Return the path of the log of a service of the local stack, or of its `supervisor`."""
    return state_directory(directory) / "logs" / f"{service}.log"


def read_state(directory: Path) -> StackState | None:
    """Return the state of the local stack that runs; None if none runs, or it was killed.

    A killed stack may have left a file. Raises LocalStackError if the file cannot be read, because
    then nothing is known.
    """
    state = load_state(directory)
    if state is None or state.supervisor.process() is None:
        return None
    return state


def load_state(directory: Path) -> StackState | None:
    """Return the state in the local stack's file, if it still runs or not; None without a file.

    Raises LocalStackError.
    """
    path = state_path(directory)
    try:
        return parse_state(json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LocalStackError(
            f"The state file {path} cannot be read: {type(error).__name__}: {error}.",
            code="local.state_unreadable",
            fix=f"make sure that no local stack runs in {directory}, then delete {path}",
        ) from error


def parse_state(document: dict[str, Any]) -> StackState:
    """Return the local stack's state in a parsed document.

    Raises ValueError, KeyError or TypeError.
    """
    if document["format"] != STATE_FORMAT:
        raise ValueError(f"format {document['format']}, this version reads {STATE_FORMAT}")
    addresses = document["addresses"]
    return StackState(
        phase=str(document["phase"]),
        supervisor=ProcessIdentity(**document["supervisor"]),
        ephemeral=bool(document["ephemeral"]),
        data_directory=str(document["data_directory"]),
        services={
            name: ProcessIdentity(**identity) for name, identity in document["services"].items()
        },
        addresses=None if addresses is None else Addresses(**addresses),
    )


def write_state(directory: Path, state: StackState) -> None:
    """Write the local stack's state file atomically, readable by its owner only."""
    path = state_path(directory)
    # mkstemp makes the file with mode 0600.
    descriptor, temporary = tempfile.mkstemp(prefix="state-", suffix=".tmp", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"format": STATE_FORMAT, **asdict(state)}, file, indent=2)
    Path(temporary).replace(path)


def clear_stale_state(directory: Path, report: Callable[[str], None]) -> None:
    """End the services that a killed run of the local stack left, and delete its files.

    Reports that in one line. The caller holds the lock of the stack, so no supervisor is alive
    that these belong to.
    """
    local = state_directory(directory)
    try:
        state = load_state(directory)
    except LocalStackError:
        report(f"the state of an earlier run in {directory} cannot be read: cleared")
        state_path(directory).unlink()
        state = None
    if state is not None:
        ended = end_processes(state.services)
        consequence = "none of its services was left running"
        if ended:
            consequence = f"ended its {', '.join(ended)}"
        report(
            f"an earlier run in {directory} (process {state.supervisor.pid}) did not end cleanly: "
            f"{consequence}"
        )
        state_path(directory).unlink()
    for leftover in (*local.glob("ephemeral-*"), *local.glob("state-*.tmp")):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def end_processes(services: dict[str, ProcessIdentity]) -> list[str]:
    """End the local stack's processes that are still alive, and return their names."""
    alive = {name: process for name, process in services.items() if process.process() is not None}
    for process in alive.values():
        process.send(signal.SIGTERM)
    for process in alive.values():
        if not process.await_end(patience_seconds=END_PATIENCE_SECONDS):
            process.send(signal.SIGKILL)
            process.await_end(patience_seconds=END_PATIENCE_SECONDS)
    return list(alive)
