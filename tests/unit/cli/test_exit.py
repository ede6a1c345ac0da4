"""A command ends with the status that it came to, whatever libraries do at the end of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import pytest

_PROGRAM: Final = """
import atexit, ctypes, sys, threading, time
libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)  # as a library's destructors
import pyarrow
from consentry.cli import app, main

def command():
    atexit.register(lambda: print("registered"))
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    sys.stdout.write("told ")
    raise SystemExit({status})

app_module = sys.modules["consentry.cli.app"]
app_module.app = command
main()
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="registers a destructor as glibc does"
)
@pytest.mark.parametrize(("status", "expected"), [("0", 0), ("None", 0), ("1", 1), ("2", 2)])
def test_what_a_library_does_at_the_end_does_not_change_the_status(
    status: str, expected: int
) -> None:
    """Arrow aborts a process now and then after all is done: "clean" would then exit with -6, which
    is no answer.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.replace("{status}", status)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        expected,
        "told thread\nregistered\n",
        "",
    )


def test_output_that_could_not_be_written_is_no_success() -> None:
    """Into a full disk, "clean" was never said."""
    with open("/dev/full", "w") as full:
        program = _PROGRAM.replace("{status}", "0").replace(
            'atexit.register(lambda: print("registered"))', "pass"
        )
        program = program.replace('print("thread")', "None")
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, env=buffered, timeout=60, check=False
        )
    assert done.returncode == 120


def test_a_text_as_status_is_told_as_python_tells_it() -> None:
    """It goes to stderr and exits with 1."""
    program = "from consentry.cli import exit; import pyarrow; exit.leave(SystemExit('why'))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (1, "why\n")
