"""Addresses and interfaces, from the routes that this host has."""

from __future__ import annotations

from dist_trainer.launch.hosts.network import address_towards, interface_of, interface_towards, is_own_address


def test_the_way_to_this_host_itself_is_the_loopback() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_towards("127.0.0.1") == "lo"
    assert is_own_address("127.0.0.1")


def test_a_name_that_nobody_knows_leads_nowhere() -> None:
    assert address_towards("no-such-host.invalid") is None
    assert interface_towards("no-such-host.invalid") is None
    assert not is_own_address("no-such-host.invalid")


def test_an_address_of_another_host_is_not_ones_own() -> None:
    assert not is_own_address("192.0.2.7")


def test_an_interface_is_known_by_its_addresses_of_both_versions() -> None:
    addresses = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.5", "fd00::1"]}
    assert [interface_of(one, addresses) for one in ("10.0.0.5", "fd00::1", "10.0.0.6")] == ["eth0", "eth0", None]
