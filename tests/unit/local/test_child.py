"""Children end with the process that started them, even by kill -9, and not before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from consentry.local.child import Launch, Spawner, end
from consentry.local.state import ProcessIdentity

SUPERVISOR = """
import sys, time
from pathlib import Path
from consentry.local.child import Launch, Spawner
spawner = Spawner()
with open(sys.argv[1], "ab") as log:
    command = (sys.executable, "-c", "import time; time.sleep(60)")
    child = spawner.spawn(Launch(command=command, directory=Path(".")), log)
print(child.pid, flush=True)
time.sleep(60)
"""
SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="only Linux ends children with their parent; elsewhere `up` does",
)
def test_children_of_a_process_that_was_killed_are_gone(tmp_path: Path) -> None:
    """After a crash of the editor or of CI, a Java process would go on eating half a gigabyte."""
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        child = ProcessIdentity.of(int(supervisor.stdout.readline()))
        assert child.process() is not None
        supervisor.kill()
        assert child.await_end(patience_seconds=10)


def test_a_child_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    """Linux ends a child with the *thread* that forked it: a broker would die with the thread of
    one test.
    """
    spawner = Spawner()
    started: list[subprocess.Popen[bytes]] = []
    with (tmp_path / "log").open("ab") as log:
        launch = Launch(command=SLEEPER, directory=tmp_path)
        asking = threading.Thread(target=lambda: started.append(spawner.spawn(launch, log)))
        asking.start()
        asking.join()
    (child,) = started
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.terminate()
    end(child, patience_seconds=5)
    spawner.close()


def test_a_child_gets_no_setting_of_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A JAVA_TOOL_OPTIONS or QUARKUS_HTTP_HOST of the shell would make the stack another one on
    that computer.
    """
    monkeypatch.setenv("QUARKUS_HTTP_HOST", "0.0.0.0")  # noqa: S104 - the very mistake that must not get through
    spawner = Spawner()
    program = "import json, os; print(json.dumps(sorted(os.environ)))"
    launch = Launch(
        command=(sys.executable, "-c", program), directory=tmp_path, environment={"GIVEN": "1"}
    )
    with (tmp_path / "log").open("ab") as log:
        assert spawner.spawn(launch, log).wait(10) == 0
    spawner.close()
    seen = set(json.loads((tmp_path / "log").read_text("utf-8")))
    assert seen - {"LC_CTYPE"} == {
        "GIVEN",
        "HOME",
        "LC_ALL",
        "PATH",
    }  # Python sets LC_CTYPE by itself


def test_a_child_is_in_a_session_of_its_own(tmp_path: Path) -> None:
    """Ctrl-C would reach Kafka before the supervisor could end it gently."""
    spawner = Spawner()
    with (tmp_path / "log").open("ab") as log:
        child = spawner.spawn(Launch(command=SLEEPER, directory=tmp_path), log)
    assert os.getsid(child.pid) == child.pid
    child.kill()
    end(child, patience_seconds=5)
    spawner.close()
