"""Ports from the operating system, and the proof that it is our child who listens on them."""

from __future__ import annotations

import enum
import socket
from contextlib import ExitStack

import psutil

LOOPBACK = "127.0.0.1"
LOOPBACK_NAMES = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})
CONNECT_TIMEOUT_SECONDS = 1.0


class Listener(enum.Enum):
    """Who listens on a port."""

    OURS = "ours"
    NOBODY = "nobody"
    FOREIGN = "foreign"


def free_ports(count: int) -> tuple[int, ...]:
    """Return `count` different loopback ports that are free now; another process may take one
    before we do.
    """
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return tuple(each.getsockname()[1] for each in sockets)


def is_free(port: int) -> bool:
    """Say whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        # As servers do: connections of a server that has just ended do not keep the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def who_listens(port: int, *, child_pid: int) -> Listener:
    """Say who listens on a loopback port: the child, nobody, or another process.

    A port that answers proves nothing: it may be the server of somebody else, and a test would pass
    against that.
    """
    if port in listening_ports(child_pid):
        return Listener.OURS
    with socket.socket() as probe:
        probe.settimeout(CONNECT_TIMEOUT_SECONDS)
        if probe.connect_ex((LOOPBACK, port)) != 0:
            return Listener.NOBODY
    # The child may have started to listen between the two looks.
    return Listener.OURS if port in listening_ports(child_pid) else Listener.FOREIGN


def listening_ports(pid: int) -> set[int]:
    """Return the loopback TCP ports that the process itself listens on; empty when it is gone."""
    return {port for host, port in listening_addresses(pid) if host in LOOPBACK_NAMES}


def listening_addresses(pid: int) -> set[tuple[str, int]]:
    """Return every (host, port) that the process itself listens on; empty when it is gone."""
    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return set()
    return {
        (each.laddr.ip, each.laddr.port)
        for each in connections
        if each.status == psutil.CONN_LISTEN
    }
