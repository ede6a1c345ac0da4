"""A script that becomes a program of the local stack, which then dies with its parent.

Run `python parent_death.py PARENT_PID PROGRAM ARGUMENT...`. On Linux it asks the kernel to kill
this process when the thread that started it ends; this request survives exec. It is a program of
its own, because code between fork and exec of a process with threads may deadlock. It imports
nothing of the package, so that it starts in a few hundredths of a second.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> None:
    """Become `command`, a program of the local stack that the kernel kills with its parent.

    Ends at once if the parent is gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the kernel was asked
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - becoming the given program is the whole purpose


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
