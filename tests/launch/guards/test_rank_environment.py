"""The variables that a guard gives its rank."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from dist_trainer.cluster.environments import Place
from dist_trainer.launch.guards import rank_environment
from dist_trainer.launch.guards.job import Job
from dist_trainer.launch.guards.rank_environment import rank_environ

PLACE = Place(source="srun", rank=3, world_size=4, local_rank=1, local_world_size=2)
JOB = Job(
    argv=(),
    cwd="/",
    env=(("A", "job's"),),
    master_addr="node1",
    master_port=29500,
    is_port_fixed=True,
    logs_dir=None,
    is_local=False,
    grace_s=20.0,
)


def message(job: Job, **other: object) -> dict[str, Any]:
    return json.loads(job.message(3, "", 29500)) | other


def test_what_the_job_says_wins_over_the_guards_own() -> None:
    environ = rank_environ({"A": "guard's", "B": "guard's", "RANK": "9"}, PLACE, message(JOB))
    assert (environ["A"], environ["B"], environ["RANK"]) == ("job's", "guard's", "3")


def test_the_launchers_place_on_the_host_counts_where_launch_knows_no_other() -> None:
    environ = rank_environ({}, PLACE, message(JOB))
    assert (environ["LOCAL_RANK"], environ["LOCAL_WORLD_SIZE"], environ["WORLD_SIZE"]) == ("1", "2", "4")
    environ = rank_environ({}, PLACE, message(JOB, local_rank=0, local_world_size=1))
    assert (environ["LOCAL_RANK"], environ["LOCAL_WORLD_SIZE"]) == ("0", "1")


def test_the_meeting_place_is_the_jobs_or_is_left_to_the_launcher() -> None:
    environ = rank_environ({"MASTER_ADDR": "other"}, PLACE, message(JOB))
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("node1", "29500")
    environ = rank_environ({"MASTER_ADDR": "other"}, PLACE, message(JOB, master_port=None))
    assert environ["MASTER_ADDR"] == "other"
    assert "MASTER_PORT" not in environ


def test_a_port_in_use_is_passed_over_by_who_finds_it() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        environ = rank_environ({}, PLACE, message(JOB, finds_port=True, master_port=port))
        assert int(environ["MASTER_PORT"]) != port


def test_threads_are_those_the_user_named_for_all_or_follow_from_the_host() -> None:
    assert rank_environ({}, PLACE, message(JOB, env={"OMP_NUM_THREADS": "7"}))["OMP_NUM_THREADS"] == "7"
    assert int(rank_environ({}, PLACE, message(JOB))["OMP_NUM_THREADS"]) >= 1


def test_gloo_and_nccl_use_the_interface_towards_the_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def interface_towards(host: str) -> str:
        asked.append(host)
        return "eth7"

    monkeypatch.setattr(rank_environment, "interface_towards", interface_towards)
    peers = [socket.gethostname(), "node2"]
    environ = rank_environ({}, PLACE, message(JOB, peers=peers))
    assert (environ["GLOO_SOCKET_IFNAME"], environ["NCCL_SOCKET_IFNAME"]) == ("eth7", "eth7")
    assert asked == ["node2"]
    environ = rank_environ({"GLOO_SOCKET_IFNAME": "ib0"}, PLACE, message(JOB, peers=peers))
    assert environ["GLOO_SOCKET_IFNAME"] == "ib0"
    assert "NCCL_SOCKET_IFNAME" not in environ
    monkeypatch.setattr(rank_environment, "interface_towards", lambda _: "lo")
    assert "GLOO_SOCKET_IFNAME" not in rank_environ({}, PLACE, message(JOB, peers=peers))
