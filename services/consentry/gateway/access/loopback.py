"""Whether an address can only be reached from this machine."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host is `localhost`, or an address of 127.0.0.0/8 or ::1; any other name could lead
    anywhere.
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    # ::ffff:127.0.0.1 is loopback by some libraries and not by others: we take the stricter view.
    return address in ipaddress.ip_network("127.0.0.0/8" if address.version == 4 else "::1/128")
