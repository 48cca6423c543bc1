"""Addresses and interfaces, found from the route to other hosts, never by a fixed name."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
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
    own = own_address(host) if is_own_address(host) else address_towards(host)
    return None if own is None else interface_of(own, own_addresses())


def own_address(host: str) -> str | None:
    """The address that a name of this host has on itself; None where it has none."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def own_addresses() -> dict[str, list[str]]:
    """This host's addresses by interface."""
    import psutil

    return {name: [known.address.partition("%")[0] for known in found] for name, found in psutil.net_if_addrs().items()}


def interface_of(address: str, addresses: Mapping[str, Sequence[str]]) -> str | None:
    """The interface that has the address, of a host with these addresses."""
    plain = address.removeprefix("::ffff:").partition("%")[0]
    return next((name for name, own in addresses.items() if plain in own), None)


def is_own_address(host: str) -> bool:
    """Whether `host` is a name or an address of this host."""
    with suppress(OSError):
        for family, _, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family) as probe, suppress(OSError):
                probe.bind(address)
                return True
    return False
