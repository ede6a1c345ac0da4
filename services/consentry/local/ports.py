"""Ports for the local stack, and the proof that our own child listens on them."""

from __future__ import annotations

import enum
import socket
from contextlib import ExitStack

import psutil

LOOPBACK = "127.0.0.1"
LOOPBACK_NAMES = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})
CONNECT_TIMEOUT_SECONDS = 1.0


class Listener(enum.Enum):
    """The process that listens on a port of the local stack: our child, none, or another one."""

    OURS = "ours"
    NOBODY = "nobody"
    FOREIGN = "foreign"


def free_ports(count: int) -> tuple[int, ...]:
    """Return `count` different free ports on this machine, for services of the local stack.

    They are loopback ports. Another process may take one before we do.
    """
    with ExitStack() as open_sockets:
        ports: list[int] = []
        for _ in range(count):
            listener = open_sockets.enter_context(socket.socket())
            listener.bind((LOOPBACK, 0))
            ports.append(listener.getsockname()[1])
        return tuple(ports)


def is_free(port: int) -> bool:
    """Return True if a service of the local stack could listen on this loopback port now."""
    with socket.socket() as probe:
        # As servers do: connections of a server that has just ended do not keep the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def find_listener(port: int, *, child_pid: int) -> Listener:
    """Find out if a local service's child process listens on its port, nobody, or another one.

    It is a loopback port. A port that answers proves nothing: it may be another program's server,
    and a test would pass against that.
    """
    if port in listening_ports(child_pid):
        return Listener.OURS
    with socket.socket() as probe:
        probe.settimeout(CONNECT_TIMEOUT_SECONDS)
        if probe.connect_ex((LOOPBACK, port)) != 0:
            return Listener.NOBODY
    # The child may have started to listen between the two checks.
    return Listener.OURS if port in listening_ports(child_pid) else Listener.FOREIGN


def listening_ports(pid: int) -> set[int]:
    """Return the loopback ports that a child process of the local stack itself listens on.

    They are TCP ports; there are none if the process is gone.
    """
    return {port for host, port in listening_addresses(pid) if host in LOOPBACK_NAMES}


def listening_addresses(pid: int) -> set[tuple[str, int]]:
    """Return every (host, port) that a child process of the local stack itself listens on.

    There are none if it is gone.
    """
    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return set()
    addresses: set[tuple[str, int]] = set()
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN:
            addresses.add((connection.laddr.ip, connection.laddr.port))
    return addresses
