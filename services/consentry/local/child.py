"""The local stack's child processes, which end when this process ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from consentry.local import parent_death


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A program of the local stack to start: its path and arguments, directory, environment.

    The path is absolute. The child gets nothing else of our environment: a stray JAVA_TOOL_OPTIONS
    or QUARKUS_* of the shell must not change the stack.
    """

    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)


class Spawner:
    """Starts the local stack's child processes; the kernel kills them when this process dies.

    That holds even for kill -9, on Linux. The kernel ties that to the *thread* that forked, so all
    children come from one thread of our own. It ends with `close`, and not with the caller's
    thread.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="consentry-local-spawner"
        )

    def spawn(self, launch: Launch, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a program of the local stack; its output goes to `log`.

        It has a session of its own, so that Ctrl-C reaches us and not the child.
        """
        return self._thread.submit(self._spawn, launch, log).result()

    def close(self) -> None:
        """End the thread that starts child processes; this kills those that still run.

        So stop them first.
        """
        self._thread.shutdown(wait=True)

    @staticmethod
    def _spawn(launch: Launch, log: IO[bytes]) -> subprocess.Popen[bytes]:
        wrapper = [sys.executable, "-I", "-S", str(Path(parent_death.__file__)), str(os.getpid())]
        environment = {
            "PATH": os.defpath,
            "LC_ALL": "C.UTF-8",
            "HOME": str(launch.directory),
            **launch.environment,
        }
        return subprocess.Popen(  # noqa: S603 - our own command line, no shell
            [*wrapper, *launch.command],
            cwd=launch.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(child: subprocess.Popen[bytes], *, patience_seconds: float) -> None:
    """Wait for a child process that was told to end, and kill it when the time is over."""
    try:
        child.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
