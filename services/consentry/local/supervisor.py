"""The supervisor of a local stack: in the foreground, or detached as a process of its own.

`consentry local up --detach` starts `python -m consentry.local.supervisor DIRECTORY --cache CACHE`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from consentry.local.bringup import last_lines
from consentry.local.errors import Cancelled, LocalStackError
from consentry.local.exclusive import try_lock
from consentry.local.stack import LocalStack, already_running
from consentry.local.state import (
    RUNNING,
    StackState,
    clear_stale_state,
    log_path,
    read_state,
    state_directory,
)

POLL_SECONDS = 0.25
END_SECONDS_MAX = 30.0
EXIT_FAILED = 2
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_by_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C, SIGTERM or a closed terminal sets, to end the local stack.

    They do so while the block runs.
    """
    asked_to_end = threading.Event()

    def set_event(*_: object) -> None:
        asked_to_end.set()

    handlers_before = {number: signal.signal(number, set_event) for number in ENDING_SIGNALS}
    try:
        yield asked_to_end
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)


def supervise(
    stack: LocalStack,
    *,
    asked_to_end: threading.Event,
    parent_pid: int | None,
    on_ready: Callable[[], None],
) -> str:
    """Start the local stack, keep it up, end it, and return the reason for the end.

    The reason is a few words. The stack ends when the event is set, or when the process is no
    longer a child of `parent_pid`. Raises LocalStackError when it does not start, or when a service
    dies: a stack without one of its services is of no use. Raises Cancelled when the event was set
    before it was up.
    """
    try:
        stack.start()
        on_ready()
        while not asked_to_end.wait(POLL_SECONDS):
            for report in stack.failed_services().values():
                title, _, log = report.partition("\n")
                raise _service_died(title, log)
            if parent_pid is not None and os.getppid() != parent_pid:
                return f"its parent, process {parent_pid}, has ended"
    finally:
        stack.stop()
    return "as asked"


def start_detached(
    arguments: Sequence[str], *, directory: Path, asked_to_end: threading.Event
) -> StackState:
    """Start the local stack under a supervisor that outlives this process; return its state.

    The stack is up by then. `arguments` are those of this module. Raises LocalStackError with the
    supervisor's output, and Cancelled.
    """
    log = log_path(directory, "supervisor")
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("wb") as output:
        supervisor = subprocess.Popen(  # noqa: S603 - this module, by this Python
            [sys.executable, "-P", "-m", "consentry.local.supervisor", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while not asked_to_end.wait(POLL_SECONDS):
        if supervisor.poll() is not None:
            error = LocalStackError(
                f"The detached supervisor ended with exit status {supervisor.returncode} before "
                "the stack was up.",
                code="local.detached_failed",
                fix=f"read its output below and in {log}, or run without --detach",
            )
            error.add_note("\n".join(last_lines(log)))
            raise error
        state = read_state(directory)
        if state is not None and state.supervisor.pid == supervisor.pid and state.phase == RUNNING:
            return state
    supervisor.terminate()
    supervisor.wait()
    raise Cancelled


def end_stack(directory: Path, *, report: Callable[[str], None]) -> bool:
    """End the local stack in `directory`, wait until it is gone; return False if none ran.

    Also clears what a killed run left behind. Raises LocalStackError if a stack is neither up nor
    gone.
    """
    if not state_directory(directory).is_dir():
        return False
    state = read_state(directory)
    if state is not None:
        state.supervisor.send(signal.SIGTERM)
        if not state.supervisor.await_end(patience_seconds=END_SECONDS_MAX):
            report(
                f"process {state.supervisor.pid} did not end within {END_SECONDS_MAX:.0f} s: killed"
            )
            state.supervisor.send(signal.SIGKILL)
            state.supervisor.await_end(patience_seconds=END_SECONDS_MAX)
    lock_file = try_lock(state_directory(directory) / "lock")
    if lock_file is None:
        raise already_running(directory)
    try:
        clear_stale_state(directory, report)
    finally:
        os.close(lock_file)
    return state is not None


def _service_died(title: str, log: str) -> LocalStackError:
    cause = title.partition(";")[0]
    error = LocalStackError(
        f"A service of the local stack died: {cause}. The others were ended.",
        code="local.service_died",
        fix="read the end of its log below, then start the stack again: consentry local up",
    )
    error.add_note(log)
    return error


def main(arguments: Sequence[str]) -> int:
    """Run a local stack until a signal ends it; errors go to standard error."""
    parser = argparse.ArgumentParser(prog="python -m consentry.local.supervisor")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--repository")
    parser.add_argument("--ephemeral", action="store_true")
    options = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(line, flush=True)

    with ended_by_signals() as asked_to_end:
        stack = LocalStack(
            options.directory,
            cache=options.cache,
            ephemeral=options.ephemeral,
            repository=options.repository,
            report=say,
            cancelled=asked_to_end,
        )
        try:
            reason = supervise(
                stack, asked_to_end=asked_to_end, parent_pid=None, on_ready=lambda: say("up")
            )
        except LocalStackError as error:
            print(error, *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
            return EXIT_FAILED
    say(f"ended: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
