"""A lock file of the local stack, which the operating system releases when its holder ends.

The holder may end in whatever way.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.1


def try_lock(path: Path) -> int | None:
    """Take the local stack's lock file at `path`, and return what holds it until it is closed.

    That is a file descriptor. Returns None if another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def exclusive_file(
    path: Path, *, wait_seconds_max: float, on_wait: Callable[[], None], cancelled: threading.Event
) -> Iterator[bool]:
    """Hold the local stack's lock file at `path` for the block, and yield True.

    Yields False if the lock was not free in time, or `cancelled` was set. `on_wait` is called once
    if another process holds the lock.
    """
    deadline = time.monotonic() + wait_seconds_max
    descriptor = try_lock(path)
    if descriptor is None:
        on_wait()
    while descriptor is None and time.monotonic() < deadline and not cancelled.wait(POLL_SECONDS):
        descriptor = try_lock(path)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)
