"""Addresses and interfaces, found from the route to other hosts, never by a fixed name."""

from __future__ import annotations

import socket
from contextlib import suppress

_ANY_PORT = 9


def address_towards(host: str) -> str | None:
    """This host's address on the route to `host`; sends nothing. None where the name or the route is not known."""
    with suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe, suppress(OSError):
                probe.connect(address)
                return str(probe.getsockname()[0])
    return None


def interface_towards(host: str) -> str | None:
    """The network interface that the route to `host` leaves by, or that has the address of `host` if that is this one.

    None where that is not known.
    """
    own = host if is_own_address(host) else address_towards(host)
    if own is None:
        return None
    import psutil

    own = socket.gethostbyname(own)

    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            return name
    return None


def is_own_address(host: str) -> bool:
    """Whether `host` is a name or an address of this host."""
    with suppress(OSError):
        for family, _, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family) as probe, suppress(OSError):
                probe.bind(address)
                return True
    return False
