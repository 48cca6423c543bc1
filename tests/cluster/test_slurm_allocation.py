from __future__ import annotations

import pytest

from dist_trainer.cluster.slurm import allocated_topology, cpus_per_rank
from dist_trainer.cluster.topology import render_include
from dist_trainer.errors import UserError

ALLOCATION = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NODELIST": "h[1-2]",
    "SLURM_NTASKS": "3",
    "SLURM_TASKS_PER_NODE": "2,1",
    "SLURM_JOB_CPUS_PER_NODE": "8,4",
}


@pytest.mark.parametrize(
    ("environ", "asked", "slots"),
    [
        (ALLOCATION, None, "h1:0,1@h2:0"),
        (ALLOCATION, 1, "h1:0@h2:0"),
        ({**ALLOCATION, "SLURM_NTASKS": "", "SLURM_GPUS_ON_NODE": "4"}, None, "h1:0,1,2,3@h2:0,1,2,3"),
        ({**ALLOCATION, "SLURM_NTASKS": "", "SLURM_TASKS_PER_NODE": ""}, None, "h1:0@h2:0"),
    ],
)
def test_the_allocation_says_where_the_ranks_go(environ: dict[str, str], asked: int | None, slots: str) -> None:
    assert render_include(allocated_topology(environ, asked)) == slots


def test_outside_an_allocation_the_way_is_to_submit() -> None:
    with pytest.raises(UserError) as caught:
        allocated_topology({})
    assert "dist_trainer slurm submit" in str(caught.value)


def test_more_ranks_than_cpus_are_refused() -> None:
    with pytest.raises(UserError, match="more than the allocation has on h2"):
        allocated_topology(ALLOCATION, 5)
    with pytest.raises(UserError, match="more than the allocation has on h1"):
        allocated_topology(ALLOCATION | {"SLURM_CPUS_PER_TASK": "5"})


def test_cpus_a_rank() -> None:
    assert cpus_per_rank(ALLOCATION, allocated_topology(ALLOCATION)) == 4
    assert cpus_per_rank(ALLOCATION | {"SLURM_CPUS_PER_TASK": "3"}, allocated_topology(ALLOCATION)) == 3
    unknown = {**ALLOCATION, "SLURM_JOB_CPUS_PER_NODE": ""}
    assert cpus_per_rank(unknown, allocated_topology(unknown)) is None
