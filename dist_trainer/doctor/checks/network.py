"""Whether the ranks can rendezvous, and every host can open connections to its neighbours."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from dist_trainer.doctor.examination import Examination, HostReport
from dist_trainer.doctor.facts import Connection
from dist_trainer.doctor.findings import Finding, grouped, sameness


def check(exam: Examination) -> Iterator[Finding]:
    yield from _port(exam)
    hosts = [host for host in exam.hosts if host.connections is not None]
    if len(hosts) < 2:
        return
    yield from _connections(hosts)
    yield from _names(hosts)
    yield from _interfaces(hosts)


def _port(exam: Examination) -> Iterator[Finding]:
    first, number = exam.hosts[0], exam.port.number
    port = next((port for port in (first.facts.ports if first.facts else ()) if port.number == number), None)
    if port is None:
        return
    who = f" ({exam.port.said_by})" if exam.port.said_by else ""
    if port.is_free:
        yield Finding("ok", "port", f"{number} of {first.name} is free for the ranks to meet at{who}")
        return
    holder = f"taken by {port.holder}" if port.holder else "taken"
    if exam.port.said_by:
        yield Finding(
            "fail", "port", f"{number}{who} is {holder}", (first.name,), "end that process, or say another MASTER_PORT"
        )
    else:
        found = f"{number}, where torchrun and deepspeed meet unless told otherwise, is {holder}"
        yield Finding(
            "warn", "port", found, (first.name,), "start with `launch`, which takes a free one, or set MASTER_PORT"
        )


def _connections(hosts: list[HostReport]) -> Iterator[Finding]:
    blocked = {
        host.name: "; ".join(_blocked_text(way) for way in _ways(host) if way.error)
        for host in hosts
        if any(way.error for way in _ways(host))
    }
    do = "open the network between the hosts for all ports above 1023; see `ip route get` and the firewall"
    yield from grouped("fail", "connections", blocked, do)
    if not blocked:
        yield Finding("ok", "connections", "every host reaches its neighbours and the first host")


def _blocked_text(way: Connection) -> str:
    place = f" at {way.address}" if way.address else ""
    return f"does not reach {way.peer}{place}: {way.error}"


def _names(hosts: list[HostReport]) -> Iterator[Finding]:
    """The address of a host's own name: Debian's installer makes it 127.0.1.1, which other hosts cannot reach."""
    wrong = {
        host.name: f"takes {way.peer} for {way.address}, which is itself"
        for host in hosts
        for way in _ways(host)
        if _is_loopback(way.address)
    }
    yield from grouped("fail", "host names", wrong, "correct /etc/hosts there")
    own = {
        host.name: f"its own name means {host.connections.own_address} on itself: gloo would tell the others so"
        for host in hosts
        if host.connections and _is_loopback(host.connections.own_address)
    }
    do = "give it its address on the network in /etc/hosts; `launch` names the interface instead (GLOO_SOCKET_IFNAME)"
    yield from grouped("warn", "host names", own, do)


def _interfaces(hosts: list[HostReport]) -> Iterator[Finding]:
    named, speeds = {}, {}
    for host in hosts:
        way = next((way for way in _ways(host) if way.interface), None)
        if way is None:
            continue
        named[host.name] = way.interface or ""
        speed = f", {way.speed_mbit_per_s / 1000:g} Gbit/s" if way.speed_mbit_per_s else ""
        speeds[host.name] = f"MTU {way.mtu}{speed}"
    names = sorted(set(named.values()))
    if names:
        yield Finding("ok", "interface", f"{', '.join(names)} leads to the other hosts")
    yield from sameness(
        "interface speed", speeds, level="warn", do="compare `ip link` and `ethtool` of the interfaces on both hosts"
    )


def _ways(host: HostReport) -> tuple[Connection, ...]:
    return host.connections.connections if host.connections else ()


def _is_loopback(address: str | None) -> bool:
    return address is not None and ipaddress.ip_address(address.partition("%")[0]).is_loopback
