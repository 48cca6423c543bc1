"""Addresses and network interfaces, found from the route to other hosts and never by a fixed name."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

_ANY_PORT = 9


def address_towards(host: str) -> str | None:
    """This host's address on the route to `host`; sends nothing. None if the name does not resolve or has no route."""
    with suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe, suppress(OSError):
                probe.connect(address)
                return str(probe.getsockname()[0])
    return None


def interface_towards(host: str) -> str | None:
    """The network interface by which packets to `host` leave; for a name of this host the one with its address.

    None if that cannot be found.
    """
    own = own_address(host) if is_own_address(host) else address_towards(host)
    return None if own is None else interface_of(own, own_addresses())


def own_address(host: str) -> str | None:
    """The address that a name of this host resolves to on this host; None if it does not resolve."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def own_addresses() -> dict[str, list[str]]:
    """This host's addresses, by interface."""
    import psutil

    return {name: [known.address.partition("%")[0] for known in found] for name, found in psutil.net_if_addrs().items()}


def interface_of(address: str, addresses: Mapping[str, Sequence[str]]) -> str | None:
    """The interface that has the address, out of `addresses` by interface."""
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
