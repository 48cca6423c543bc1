"""What of a job each rank's guard is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from dist_trainer.launch.guards.job import Job

JOB = Job(
    argv=("python", "-m", "dist_trainer", "été\udcff"),
    cwd="/work",
    env=(("A", "1"), ("CUDA_VISIBLE_DEVICES", "0,1")),
    master_addr="node1",
    master_port=29500,
    is_port_fixed=False,
    logs_dir="logs",
    is_local=False,
    grace_s=20.0,
    local_ranks=((0, 2), (1, 2), (0, 1)),
    host_env=(("node2", (("CUDA_VISIBLE_DEVICES", "3"),)),),
)


def told(job: Job, rank: int, host: str, port: int | None = None) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(job.message(rank, host, port))
    return message


def test_words_arrive_literally() -> None:
    assert told(JOB, 0, "node1")["argv"] == list(JOB.argv)


def test_a_hosts_own_variables_count_there_alone() -> None:
    assert told(JOB, 0, "node1")["env"] == {"A": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert told(JOB, 2, "node2")["env"] == {"A": "1", "CUDA_VISIBLE_DEVICES": "3"}


def test_the_place_on_a_host_is_told_where_launch_knows_it() -> None:
    job = told(JOB, 2, "node2")
    assert (job["local_rank"], job["local_world_size"]) == (0, 1)
    job = told(replace(JOB, local_ranks=()), 2, "node2")
    assert (job["local_rank"], job["local_world_size"]) == (None, None)


def test_rank_0_finds_the_port_until_it_is_known() -> None:
    assert [told(JOB, rank, "node1")["finds_port"] for rank in (0, 1)] == [True, False]
    job = told(JOB, 0, "node1", port=29503)
    assert (job["finds_port"], job["master_port"]) == (False, 29503)


def test_where_the_launcher_has_a_meeting_place_nobody_looks_for_one() -> None:
    job = told(replace(JOB, master_port=None), 0, "node1")
    assert (job["finds_port"], job["master_port"]) == (False, None)
