from __future__ import annotations

import os
import socket

import pytest

from dist_trainer.doctor.probes import network


def test_a_port_that_is_taken_is_told_with_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = network.look_at_port(listener.getsockname()[1])
        assert not port.is_free
        assert port.holder is not None and str(os.getpid()) in port.holder
    assert network.look_at_port(port.number).is_free


@pytest.mark.parametrize(
    ("host", "hosts", "peers"),
    [
        ("a", "abcd", "db"),
        ("c", "abcd", "abd"),
        ("b", "ab", "a"),
        ("a", "a", ""),
        ("x", "abc", "a"),
    ],
    ids=["the first", "in the middle", "of two", "alone", "not one of them"],
)
def test_a_host_looks_at_few_others(host: str, hosts: str, peers: str) -> None:
    assert network.peers_of(host, list(hosts)) == tuple(peers)


def test_a_connection_says_over_which_interface_it_went() -> None:
    with network.listen() as listener:
        way = network.connect("127.0.0.1", listener.getsockname()[1], 5.0)
    assert (way.error, way.address, way.interface) == (None, "127.0.0.1", "lo")
    assert way.mtu and way.mtu > 1000


@pytest.mark.parametrize(
    ("peer", "error"),
    [("127.0.0.1", "Connection refused"), ("no-such-host.invalid", "no address is known for this name")],
)
def test_a_connection_that_fails_says_why(peer: str, error: str) -> None:
    with network.listen() as listener:
        closed = listener.getsockname()[1]
    assert network.connect(peer, closed, 5.0).error == error


@pytest.mark.parametrize(
    ("address", "interface"),
    [("10.0.0.5", "eth0"), ("::ffff:10.0.0.5", "eth0"), ("fe80::1%eth0", "eth0"), ("10.0.0.6", None)],
)
def test_which_interface_has_an_address(address: str, interface: str | None) -> None:
    assert network.interface_of(address, {"lo": ["127.0.0.1"], "eth0": ["10.0.0.5", "fe80::1"]}) == interface
