"""The end of a command's process, with the status that it came to and no other."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn

_EXIT_NOT_WRITTEN = 120
"""What Python itself exits with where the last of the output could not be written."""


def leave(end: SystemExit) -> NoReturn:
    """End the process as `end` says; where Arrow was used, without the destructors of C++
    libraries.

    Arrow's threads may just be beginning or ending then, which now and then aborts a process that
    had done all it was asked for (status -6), or keeps it for ever: apache/arrow#34314,
    apache/arrow#50482. The status is what our commands are asked for, so all that Python does at
    its end is done here, and nothing after that.
    """
    if "pyarrow" not in sys.modules or not (end.code is None or isinstance(end.code, int)):
        raise end
    threading._shutdown()  # type: ignore[attr-defined]  # as Python does first: waits for the threads that are no daemons
    atexit._run_exitfuncs()
    status = end.code or 0
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or _EXIT_NOT_WRITTEN
    os._exit(status)
