"""Ports of this host, and its connections to the other hosts."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Sequence

from dist_trainer.doctor.facts import Connection, Port
from dist_trainer.launch.hosts.network import interface_of, own_addresses

# The listen backlog. Connections are never accepted (the kernel completes them), and all hosts may connect at once.
_QUEUE = 4096


def look_at_port(number: int) -> Port:
    """Tries the port as torch's store will: one on which old connections are in TIME_WAIT counts as free."""
    try:
        listen(number).close()
    except OSError:
        return Port(number, is_free=False, holder=_holder(number))
    return Port(number, is_free=True)


def listen(number: int = 0) -> socket.socket:
    """A listening socket that other hosts can reach, on this port or (0) on any free one. Raises OSError."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", number), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_QUEUE)
        except OSError as error:
            # The kernel supports IPv6, but the host has it turned off.
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    return socket.create_server(("", number), backlog=_QUEUE)


def peers_of(host: str, hosts: Sequence[str]) -> tuple[str, ...]:
    """The hosts before and after this one in the ring, and the first host, where the ranks rendezvous: at most three.

    A host that is not in the ring connects to the first one only.
    """
    if host not in hosts:
        return tuple(hosts[:1])
    place = hosts.index(host)
    near = (hosts[0], hosts[place - 1], hosts[(place + 1) % len(hosts)])
    return tuple(dict.fromkeys(peer for peer in near if peer != host))


def connect(peer: str, port: int, limit_s: float) -> Connection:
    """Opens a connection to the peer's port and closes it again."""
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
        # psutil reports 0 when the speed is unknown.
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
