"""The address that any HTTP service listens on: its socket, and if others can reach it."""

from __future__ import annotations

import ipaddress
import socket

from consentry.domain.errors import Refused


def is_loopback(host: str) -> bool:
    """Return if an HTTP service's host is this machine alone: `localhost`, 127.0.0.0/8 or ::1.

    Any other name could lead anywhere.
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    # ::ffff:127.0.0.1 is loopback by some libraries and not by others: we take the stricter view.
    return address in ipaddress.ip_network("127.0.0.0/8" if address.version == 4 else "::1/128")


def bind(host: str, port: int, *, backlog: int, code: str, fix: str) -> socket.socket:
    """Open the socket on which an HTTP service listens; port 0 takes a free one.

    At most `backlog` callers wait to be accepted. Raises Refused, with `code` and `fix`, where the
    address cannot be opened.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise cannot_open(f"{host}:{port}", error, code=code, fix=fix) from error
    # From here on callers wait in the queue instead of being turned away.
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


def cannot_open(address: str, error: OSError, *, code: str, fix: str) -> Refused:
    """Return the error for an address on which an HTTP service cannot listen."""
    return Refused(
        f"The address {address} cannot be opened: {error.strerror or error}.", code=code, fix=fix
    )
