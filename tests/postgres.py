"""A real PostgreSQL of our own for a test, where one is installed: reached by a socket in a
directory of its own.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.stack import wait_for

USER = "consentry"
DATABASE = "postgres"
_PLACES = [
    Path("/usr/lib/postgresql") / version / "bin"
    for version in ("18", "17", "16", "15", "14", "13")
]


@contextmanager
def postgres_server() -> Iterator[Path]:
    """A running server; the directory of its socket.

    Skips the test where PostgreSQL is not installed.
    """
    programs = _programs()
    if programs is None:
        pytest.skip(
            "PostgreSQL is not installed here: no initdb in /usr/lib/postgresql or on the PATH"
        )  # no server
    who = _unprivileged()
    # Not below pytest's directory: that is closed to other users, and a socket's path has to be
    # short.
    directory = Path(f"/tmp/outbox-{uuid.uuid4().hex[:8]}")  # noqa: S108 - a name of its own, made here
    directory.mkdir(mode=0o700)
    if who:
        os.chown(directory, who["user"], who["group"])
    try:
        with _running(programs, directory, who):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def address_of(directory: Path) -> str:
    """What to connect to."""
    return f"host={directory} user={USER} dbname={DATABASE}"


@contextmanager
def _running(programs: Path, directory: Path, who: dict[str, Any]) -> Iterator[None]:
    data = directory / "data"
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(directory)}
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"],
        env=environment,
        cwd=directory,
        check=True,
        capture_output=True,
        timeout=60,
        **who,
    )
    server = subprocess.Popen(
        [
            programs / "postgres",
            "-D",
            data,
            "-k",
            directory,
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
        ],
        env=environment,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **who,
    )
    try:
        wait_for(lambda: _answers(server, directory), "PostgreSQL", seconds=30)
        yield
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(10)


def _answers(server: subprocess.Popen[bytes], directory: Path) -> bool:
    assert server.poll() is None, f"postgres ended with {server.returncode}"
    try:
        psycopg.connect(address_of(directory), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _programs() -> Path | None:
    """Where initdb and postgres lie: of the newest version that is installed, else on the PATH."""
    found = next((place for place in _PLACES if (place / "initdb").exists()), None)
    on_path = shutil.which("initdb")
    return found or (Path(on_path).parent if on_path and shutil.which("postgres") else None)


def _unprivileged() -> dict[str, Any]:
    """How to become who runs the server: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip(
        "we are root, and there is neither a user postgres nor nobody to run PostgreSQL as"
    )  # it refuses root
