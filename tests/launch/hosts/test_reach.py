"""What keeps ranks from starting on a host, told from what the hosts answered."""

from __future__ import annotations

import dataclasses
import socket
import sys
from pathlib import Path

import pytest

from dist_trainer.cluster.topology import Host, Topology
from dist_trainer.errors import UserError
from dist_trainer.launch.hosts import reach
from dist_trainer.launch.hosts.reach import check_hosts, find_misfits, find_problems
from dist_trainer.launch.hosts.remote import RemoteResult
from dist_trainer.launch.hosts.run_secret import new_secret, take_secret
from dist_trainer.launch.hosts.ssh import Problem
from dist_trainer.launch.plan import HostFacts, LaunchRequest

TWO_SLOTS = Host("node1", (0, 1))


def answer(status: int | None, stdout: str = "", stderr: str = "", problem: Problem | None = None) -> RemoteResult:
    return RemoteResult("node1", status, stdout, stderr, 0.1, problem)


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (answer(0, "2\n"), None),
        (answer(127, "", "sh: 1: exec: /x/python: not found\n"), "sh: 1: exec: /x/python: not found"),
        (answer(3), "the Python there ended with status 3"),
        (answer(None, problem=Problem("refused", "refuses the connection")), "refuses the connection"),
    ],
)
def test_what_is_wrong_with_a_host(result: RemoteResult, problem: str | None) -> None:
    expected = {} if problem is None else {"node1": problem}
    assert find_problems((TWO_SLOTS,), {"node1": result}) == expected


def test_a_host_is_asked_as_the_user_that_the_hostfile_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run_on_hosts(hosts: list[str], argv: list[str], **named: object) -> dict[str, RemoteResult]:
        asked.extend(hosts)
        return {host: answer(0, "2\n") for host in hosts}

    monkeypatch.setattr(reach, "run_on_hosts", run_on_hosts)
    hosts = (Host("node1", (0, 1), user="me"), Host("node2", (0, 1)))
    check_hosts(dataclasses.replace(request_here(), topology=Topology(hosts)), new_secret(in_file=False))
    assert asked == ["me@node1", "node2"]


def test_hosts_whose_gpus_are_not_their_slots_are_found() -> None:
    hosts = (Host("node1", (0, 1)), Host("node2", (0, 1)), Host("node3", (0, 1)))
    answers = {"node1": answer(0, "motd\n8\n"), "node2": answer(0, "1\n"), "node3": answer(0, "0\n")}
    few = (hosts[1], "it has 1 GPU, and slot 1 needs 2")
    assert find_misfits(hosts, answers, is_chosen=False) == [(hosts[0], "it has 8 GPUs, and slots=2"), few]
    assert find_misfits(hosts, answers, is_chosen=True) == [few]


def request_here() -> LaunchRequest:
    here = Topology((Host(socket.gethostname(), (0,)),))
    facts = HostFacts("elsewhere", sys.executable, num_cores=1, num_gpus=0, is_root=False, environ={})
    return LaunchRequest(("train",), here, 20000, facts, hostfile="hf")


def test_a_host_that_can_run_the_ranks_is_no_problem() -> None:
    secret = new_secret(in_file=True)
    file = Path(secret.source)
    try:
        check_hosts(request_here(), secret)
        assert file.stat().st_mode & 0o777 == 0o600
        assert take_secret(secret.source, {}) == secret
    finally:
        file.unlink()


def test_what_ranks_are_given_stands_on_no_command_line_of_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, object]] = []

    def run_on_hosts(hosts: list[str], argv: list[str], **named: object) -> dict[str, RemoteResult]:
        told.append((argv, named["env"]))
        return {host: answer(0, "0\n") for host in hosts}

    monkeypatch.setattr(reach, "run_on_hosts", run_on_hosts)
    asked = dataclasses.replace(request_here(), env=(("HF_TOKEN", "of-the-user"),))
    secret = new_secret(in_file=True)
    check_hosts(asked, secret)
    assert "of-the-user" not in str(told)
    assert secret.value.hex() not in str(told)


def test_a_host_without_the_python_is_named() -> None:
    asked = request_here()
    asked = dataclasses.replace(asked, facts=dataclasses.replace(asked.facts, interpreter="/no/python"))
    with pytest.raises(UserError, match="1 of 1 hosts") as caught:
        check_hosts(asked, new_secret(in_file=True))
    assert socket.gethostname() in str(caught.value)
    assert "/no/python" in str(caught.value)
