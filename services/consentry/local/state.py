"""What is known of a stack from outside its process:

`<dir>/local/state.json`, and how stale state is cleared.
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
# A process is named by its pid and its start. The operating system tells the start to about a
# second, and a clock that is set moves it a little; the same pid is not given twice so fast.
START_TOLERANCE_SECONDS = 2.0
END_PATIENCE_SECONDS = 5.0
POLL_SECONDS = 0.05

STARTING = "starting"
RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the services listen: a bootstrap address and two URLs, all on loopback."""

    kafka: str
    redis_url: str
    registry_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One life of a process: a pid alone may since have been given to another."""

    pid: int
    started: float
    """Seconds since 1970, as the operating system tells."""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Name the process that has this pid now; raises psutil.NoSuchProcess."""
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """Return this very process if it is still alive, else None."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) <= START_TOLERANCE_SECONDS
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this very process; does nothing if it has ended."""
        process = self.process()
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def await_end(self, *, patience_seconds: float) -> bool:
        """Wait until the process has ended, and say whether it has; one that nobody reaps counts as
        ended.
        """
        deadline = time.monotonic() + patience_seconds
        while self.process() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class StackState:
    """A stack as its supervisor last wrote it; `addresses` is None while it starts."""

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
    """Return where the state of the stack in `directory` is written."""
    return state_directory(directory) / "state.json"


def log_path(directory: Path, service: str) -> Path:
    """Return where the output of a service, or of `supervisor`, is kept."""
    return state_directory(directory) / "logs" / f"{service}.log"


def read_state(directory: Path) -> StackState | None:
    """Return the state of a live stack; None where none runs, whatever a killed one left behind.

    Raises LocalStackError if the file cannot be read, because then nothing can be told.
    """
    state = load_state(directory)
    return state if state is not None and state.supervisor.process() is not None else None


def load_state(directory: Path) -> StackState | None:
    """Return what the state file says, alive or not; None without a file. Raises
    LocalStackError.
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
    """Return the state in a parsed document; raises ValueError, KeyError or TypeError."""
    if document["format"] != STATE_FORMAT:
        raise ValueError(f"format {document['format']}, this version reads {STATE_FORMAT}")
    addresses = document["addresses"]
    return StackState(
        phase=str(document["phase"]),
        supervisor=ProcessIdentity(**document["supervisor"]),
        ephemeral=bool(document["ephemeral"]),
        data_directory=str(document["data_directory"]),
        services={name: ProcessIdentity(**each) for name, each in document["services"].items()},
        addresses=None if addresses is None else Addresses(**addresses),
    )


def write_state(directory: Path, state: StackState) -> None:
    """Write the state atomically, readable by its owner only."""
    path = state_path(directory)
    # mkstemp makes the file with mode 0600.
    descriptor, temporary = tempfile.mkstemp(prefix="state-", suffix=".tmp", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"format": STATE_FORMAT, **asdict(state)}, file, indent=2)
    Path(temporary).replace(path)


def clear_stale_state(directory: Path, report: Callable[[str], None]) -> None:
    """End what a killed run left behind and forget it, saying so in one line.

    The caller holds the lock of the stack, so no supervisor is alive to whom any of it belongs.
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
        leftovers = (
            f"ended its {', '.join(ended)}" if ended else "none of its services was left running"
        )
        report(
            f"an earlier run in {directory} (process {state.supervisor.pid}) did not end cleanly: "
            f"{leftovers}"
        )
        state_path(directory).unlink()
    for leftover in (*local.glob("ephemeral-*"), *local.glob("state-*.tmp")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def end_processes(services: dict[str, ProcessIdentity]) -> list[str]:
    """End those of the named processes that are still the same ones, and return the names of
    these.
    """
    alive = {name: each for name, each in services.items() if each.process() is not None}
    for each in alive.values():
        each.send(signal.SIGTERM)
    for each in alive.values():
        if not each.await_end(patience_seconds=END_PATIENCE_SECONDS):
            each.send(signal.SIGKILL)
            each.await_end(patience_seconds=END_PATIENCE_SECONDS)
    return list(alive)
