"""The end of a command's process, with the status that the command returned and no other."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn

_EXIT_NOT_WRITTEN = 120
"""What Python itself exits with where the last of the output could not be written."""


def leave(end: SystemExit) -> NoReturn:
    """End a command's process with its exit status; if Arrow was used, skip C++ destructors.

    The status is that of `end`. Arrow's threads may just be starting or ending then. Now and then
    this aborts a process that has done all its work (status -6), or keeps it running for ever:
    apache/arrow#34314, apache/arrow#50482. The status is the answer of many commands. So everything
    that Python does at its end is done here, and nothing after it.
    """
    if "pyarrow" not in sys.modules or not (end.code is None or isinstance(end.code, int)):
        raise end
    threading._shutdown()  # type: ignore[attr-defined]  # as Python does first: waits for all threads but daemons
    atexit._run_exitfuncs()
    status = end.code or 0
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or _EXIT_NOT_WRITTEN
    os._exit(status)
