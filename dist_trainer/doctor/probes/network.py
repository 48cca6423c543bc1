"""Ports of this host, and the ways from it to the others."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Sequence

from dist_trainer.doctor.facts import Connection, Port
from dist_trainer.launch.hosts.network import interface_of, own_addresses

# Nobody takes these connections off the queue: the kernel answers for the host, and all hosts may come at once.
_QUEUE = 4096


def look_at_port(number: int) -> Port:
    """As the ranks' store will try it: a port on which old connections fade out counts as free."""
    try:
        listen(number).close()
    except OSError:
        return Port(number, is_free=False, holder=_holder(number))
    return Port(number, is_free=True)


def listen(number: int = 0) -> socket.socket:
    """A socket at that port, or at one of the kernel's choice, to which other hosts can connect. Raises OSError."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", number), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_QUEUE)
        except OSError as error:
            # A kernel that knows IPv6 on a host that has it turned off.
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    return socket.create_server(("", number), backlog=_QUEUE)


def peers_of(host: str, hosts: Sequence[str]) -> tuple[str, ...]:
    """The hosts before and after it in the ring, and the first, where the ranks meet: few, however many there are.

    For one that is not in the ring, the first alone.
    """
    if host not in hosts:
        return tuple(hosts[:1])
    place = hosts.index(host)
    near = (hosts[0], hosts[place - 1], hosts[(place + 1) % len(hosts)])
    return tuple(dict.fromkeys(peer for peer in near if peer != host))


def connect(peer: str, port: int, limit_s: float) -> Connection:
    """Opens a connection to the port of that host and closes it."""
    try:
        found = socket.getaddrinfo(peer, port, type=socket.SOCK_STREAM)
    except OSError:
        return Connection(peer, error="no address is known for this name")
    address, error = str(found[0][4][0]), "no answer"
    deadline_s = time.monotonic() + limit_s
    for family, kind, protocol, _, place in found:
        with socket.socket(family, kind, protocol) as way:
            way.settimeout(max(0.1, deadline_s - time.monotonic()))
            try:
                way.connect(place)
            except TimeoutError:
                error = f"no answer within {limit_s:g} s"
            except OSError as failure:
                error = failure.strerror or str(failure)
            else:
                return _described(peer, str(place[0]), str(way.getsockname()[0]))
    return Connection(peer, address, error=error)


def _described(peer: str, address: str, source: str) -> Connection:
    import psutil

    name = interface_of(source, own_addresses())
    stats = psutil.net_if_stats().get(name) if name else None
    return Connection(
        peer,
        address,
        name,
        mtu=stats.mtu if stats else None,
        # The kernel says 0 where it does not know.
        speed_mbit_per_s=(stats.speed or None) if stats else None,
    )


def _holder(number: int) -> str | None:
    import psutil

    try:
        connections = psutil.net_connections(kind="tcp")
        pid = next(
            (
                one.pid
                for one in connections
                if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == number
            ),
            None,
        )
        return None if pid is None else f"{psutil.Process(pid).name()} (process {pid})"
    except psutil.Error:
        return None
