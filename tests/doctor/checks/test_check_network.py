from __future__ import annotations

from dataclasses import replace

from examinations import exam, host, lines, two_hosts

from dist_trainer.doctor.checks import network
from dist_trainer.doctor.examination import MeetingPort
from dist_trainer.doctor.facts import Connection, Connections, Port

TAKEN = Port(29500, False, "python (process 7)")


def test_a_network_in_good_order() -> None:
    assert lines(network.check(two_hosts())) == [
        ("ok", (), "29500 of node1 is free for the ranks to meet at"),
        ("ok", (), "every host reaches its neighbours and the first host"),
        ("ok", (), "eth0 leads to the other hosts"),
        ("ok", (), "MTU 9000, 100 Gbit/s"),
    ]


def test_a_port_that_was_said_and_is_taken_is_a_failure() -> None:
    first = host("node1", facts={"ports": (TAKEN,)})
    assert lines(network.check(exam(first, port=MeetingPort(29500, "MASTER_PORT"))), "port") == [
        ("fail", ("node1",), "29500 (MASTER_PORT) is taken by python (process 7)")
    ]


def test_a_port_that_nobody_said_can_be_another() -> None:
    assert lines(network.check(exam(host("node1", facts={"ports": (TAKEN,)}))), "port") == [
        (
            "warn",
            ("node1",),
            "29500, where torchrun and deepspeed meet unless told otherwise, is taken by python (process 7)",
        )
    ]


def test_the_ranks_meet_on_the_first_host_alone() -> None:
    assert lines(network.check(two_hosts(facts={"ports": (TAKEN,)})), "port")[0][0] == "ok"


def test_a_way_that_is_blocked_is_named() -> None:
    blocked = Connections((Connection("node1", "10.0.0.1", error="No route to host"),), "10.0.0.2")
    assert lines(network.check(two_hosts(connections=blocked)), "connections") == [
        ("fail", ("node2",), "does not reach node1 at 10.0.0.1: No route to host")
    ]


def test_many_hosts_that_cannot_reach_one_are_one_line() -> None:
    blocked = Connections((Connection("node0", "10.0.0.1", error="Connection refused"),), "10.0.0.2")
    hosts = [host(f"node{number}", connections=blocked) for number in range(1, 100)]
    (finding,) = lines(network.check(exam(host("node0", neighbours=["node1"]), *hosts)), "connections")
    assert len(finding[1]) == 99


def test_a_name_that_means_the_host_itself() -> None:
    wrong = Connections((Connection("node1", "127.0.1.1", error="Connection refused"),), "10.0.0.2")
    assert lines(network.check(two_hosts(connections=wrong)), "host names") == [
        ("fail", ("node2",), "takes node1 for 127.0.1.1, which is itself")
    ]


def test_an_own_name_that_means_the_loopback() -> None:
    debian = Connections((Connection("node1", "10.0.0.1", "eth0", 9000, 100_000),), "127.0.1.1")
    assert lines(network.check(two_hosts(connections=debian)), "host names") == [
        ("warn", ("node2",), "its own name means 127.0.1.1 on itself: gloo would tell the others so")
    ]


def test_interfaces_that_differ() -> None:
    slow = Connections((Connection("node1", "10.0.0.1", "eno1", 1500, 1000),), "10.0.0.2")
    found = list(network.check(two_hosts(connections=slow)))
    assert lines(found, "interface") == [("ok", (), "eno1, eth0 leads to the other hosts")]
    assert lines(found, "interface speed") == [
        ("warn", ("node2",), "MTU 1500, 1 Gbit/s, where node1 has MTU 9000, 100 Gbit/s")
    ]


def test_addresses_of_ipv6_are_understood() -> None:
    ways = Connections((Connection("node1", "fe80::1%eth0", "eth0", 9000, 100_000),), "fe80::2%eth0")
    assert lines(network.check(two_hosts(connections=ways)), "host names") == []


def test_one_host_alone_has_no_network_to_look_at() -> None:
    alone = replace(host("node1"), connections=Connections((), "127.0.0.1"))
    assert {finding.check for finding in network.check(exam(alone))} == {"port"}
