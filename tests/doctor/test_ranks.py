"""The ranks of the trial on one host: real ones, over gloo."""

from __future__ import annotations

import os
import threading
import time

import psutil
import pytest

from dist_trainer.cluster.rank import FIRST_PORT, NUM_PORTS
from dist_trainer.doctor.bandwidth import RankSpec
from dist_trainer.doctor.ranks import rank_environ, rank_specs, run_ranks
from dist_trainer.launch.hosts.ports import first_free_port

LIMIT_S = 60


@pytest.fixture
def port() -> int:
    return first_free_port(FIRST_PORT + os.getpid() % NUM_PORTS)


def test_each_host_starts_its_own_ranks() -> None:
    hosts = {"a": [0, 1], "b": [2, 5]}
    specs = rank_specs("b", hosts, port=1, device="cuda", limit_s=9)
    ranks_by_host = ((0, 1), (2, 3))
    assert specs == (
        RankSpec(2, 2, ranks_by_host, "a", 1, "cuda", 9),
        RankSpec(3, 5, ranks_by_host, "a", 1, "cuda", 9),
    )


def test_on_one_host_its_name_need_not_be_known() -> None:
    (spec,) = rank_specs("a", {"a": [0]}, port=1, device="cpu", limit_s=9)
    assert spec.address == "127.0.0.1"


def test_the_interface_is_named_unless_the_user_has() -> None:
    made = rank_environ({"NCCL_SOCKET_IFNAME": "ib0", "HOME": "/"}, "eth0")
    assert (made["GLOO_SOCKET_IFNAME"], made["NCCL_SOCKET_IFNAME"], made["HOME"]) == ("eth0", "ib0", "/")


@pytest.mark.integration
def test_ranks_reduce_and_say_how_long_it_took(port: int) -> None:
    stop_fd, keep_open = os.pipe()
    try:
        reports = run_ranks(
            "here", None, hosts={"here": [0, 1]}, port=port, device="cpu", limit_s=LIMIT_S, stop_fd=stop_fd
        )
    finally:
        os.close(keep_open)
        os.close(stop_fd)
    for rank, report in enumerate(reports.ranks):
        assert (report.rank, report.stage, report.error) == (rank, "end", None)
        assert report.all_reduce_bytes and report.all_reduce_s and report.all_reduce_s > 0
    # All ranks went by the same time.
    assert len({(report.all_reduce_bytes, report.all_reduce_s) for report in reports.ranks}) == 1


@pytest.mark.integration
def test_ranks_end_when_nobody_wants_to_know_any_more(port: int) -> None:
    """The second rank is on a host that never comes: alone the first would wait for the whole limit."""
    stop_fd, keep_open = os.pipe()
    started = {}
    # Such as the server that earlier tests fork from.
    others = {child.pid for child in psutil.Process().children()}

    def leave_when_it_waits() -> None:
        while not (children := [one for one in psutil.Process().children() if one.pid not in others]):
            time.sleep(0.01)
        started["pid"] = children[0].pid
        os.close(keep_open)

    leaving = threading.Thread(target=leave_when_it_waits)
    leaving.start()
    reports = run_ranks(
        "here", None, hosts={"here": [0], "never": [0]}, port=port, device="cpu", limit_s=3600, stop_fd=stop_fd
    )
    leaving.join()
    os.close(stop_fd)
    assert not psutil.pid_exists(started["pid"])
    assert reports.ranks[0].error is not None


@pytest.mark.integration
def test_a_rank_that_cannot_start_says_why(port: int) -> None:
    stop_fd, keep_open = os.pipe()
    try:
        (report,) = run_ranks(
            "here", None, hosts={"here": [0]}, port=port, device="no such device", limit_s=LIMIT_S, stop_fd=stop_fd
        ).ranks
    finally:
        os.close(keep_open)
        os.close(stop_fd)
    assert report.error is not None
