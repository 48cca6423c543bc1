from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.cluster.topology import render_include
from dist_trainer.errors import UserError
from dist_trainer.launch.facts import count_visible_gpus
from dist_trainer.launch.hosts import HostChoice, find_topology, parse_ranks_per_host
from dist_trainer.launch.plan import HostFacts

NO_GPU = HostFacts("box", "python", num_cores=8, num_gpus=0, is_root=False, environ={})
FOUR_GPUS = HostFacts("box", "python", num_cores=8, num_gpus=4, is_root=False, environ={})
ALLOCATION = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2"}


@pytest.fixture
def hostfile(tmp_path: Path) -> str:
    path = tmp_path / "hf"
    path.write_text("h1 slots=4\nh2 slots=4\n")
    return str(path)


@pytest.mark.parametrize(
    ("choice", "facts", "slots", "is_filtered"),
    [
        (HostChoice(), NO_GPU, "localhost:0,1", False),
        (HostChoice(num_ranks_per_host=3), NO_GPU, "localhost:0,1,2", False),
        (HostChoice(), FOUR_GPUS, "localhost:0,1,2,3", False),
        (HostChoice(num_ranks_per_host=2), FOUR_GPUS, "localhost:0,1", True),
        (HostChoice(include="localhost:1,3"), FOUR_GPUS, "localhost:1,3", True),
    ],
)
def test_this_host(choice: HostChoice, facts: HostFacts, slots: str, is_filtered: bool) -> None:
    topology, filtered = find_topology("torchrun", choice, facts)
    assert (render_include(topology), filtered) == (slots, is_filtered)


@pytest.mark.parametrize(
    ("include", "exclude", "num_ranks_per_host", "slots", "is_filtered"),
    [
        ("", "", None, "h1:0,1,2,3@h2:0,1,2,3", False),
        ("", "", 2, "h1:0,1@h2:0,1", True),
        ("h2:2,3", "", 1, "h2:2", True),
        ("", "h1", None, "h2:0,1,2,3", True),
    ],
)
def test_a_hostfile(
    hostfile: str, include: str, exclude: str, num_ranks_per_host: int | None, slots: str, is_filtered: bool
) -> None:
    choice = HostChoice(hostfile, include, exclude, num_ranks_per_host)
    topology, filtered = find_topology("deepspeed", choice, NO_GPU)
    assert (render_include(topology), filtered) == (slots, is_filtered)


def test_more_ranks_than_there_is_room_for(hostfile: str) -> None:
    with pytest.raises(UserError, match="more than the slots of h1"):
        find_topology("deepspeed", HostChoice(hostfile, num_ranks_per_host=5), NO_GPU)
    with pytest.raises(UserError, match="5 ranks need 5 GPUs"):
        find_topology("torchrun", HostChoice(num_ranks_per_host=5), FOUR_GPUS)


@pytest.mark.parametrize(
    ("choice", "switch"),
    [
        (HostChoice(hostfile="hf"), "--hostfile"),
        (HostChoice(include="h1"), "--include"),
        (HostChoice(exclude="h1"), "--exclude"),
    ],
)
def test_under_srun_the_allocation_says_the_hosts(choice: HostChoice, switch: str) -> None:
    facts = HostFacts("box", "python", 8, 0, False, ALLOCATION)
    with pytest.raises(UserError, match="the allocation says") as caught:
        find_topology("srun", choice, facts)
    assert caught.value.where == switch


def test_ranks_per_host_as_text() -> None:
    assert (parse_ranks_per_host("auto"), parse_ranks_per_host("4")) == (None, 4)
    for text in ("0", "-1", "many", "", "1.5"):
        with pytest.raises(UserError, match="not a number of ranks"):
            parse_ranks_per_host(text)


@pytest.mark.parametrize(
    ("num_gpus", "visible", "count"),
    [
        (4, None, 4),
        (4, "", 0),
        (4, "-1", 0),
        (4, "2,3", 2),
        (4, "0,9,1", 1),
        (4, "GPU-1,GPU-2", 2),
        (0, "0,1", 0),
    ],
)
def test_visible_gpus(num_gpus: int, visible: str | None, count: int) -> None:
    assert count_visible_gpus(num_gpus, visible) == count
