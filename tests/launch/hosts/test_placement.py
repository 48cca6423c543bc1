from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.cluster.hostfile import parse_hostfile
from dist_trainer.cluster.topology import Host, render_include
from dist_trainer.errors import UserError
from dist_trainer.launch.hosts.facts import count_visible_gpus, mpirun_by_version
from dist_trainer.launch.hosts.placement import (
    HostChoice,
    check_ssh,
    find_topology,
    gpu_trouble,
    parse_ranks_per_host,
    read_rendezvous,
)
from dist_trainer.launch.plan import HostFacts, Rendezvous

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


def test_hosts_started_by_hand_say_how_many_and_where() -> None:
    assert read_rendezvous(2, "node1:29500", "x", launcher="torchrun") == Rendezvous(2, "node1", 29500, "x")
    assert read_rendezvous(None, None, "x", launcher="mpirun") is None


@pytest.mark.parametrize(
    ("num_hosts", "endpoint", "launcher", "message"),
    [
        (2, "node1:29500", "mpirun", "Only torchrun"),
        (2, None, "torchrun", "needs their number and where they meet"),
        (None, "node1:29500", "torchrun", "needs their number and where they meet"),
        (0, "node1:29500", "torchrun", "needs their number and where they meet"),
        (2, "node1", "torchrun", "not a place to meet at"),
        (2, ":29500", "torchrun", "not a place to meet at"),
        (2, "node1:65535", "torchrun", "not a place to meet at"),
    ],
)
def test_a_meeting_place_that_is_none(num_hosts: int | None, endpoint: str | None, launcher: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_rendezvous(num_hosts, endpoint, "x", launcher=launcher)


def test_other_hosts_are_started_by_ssh_only_when_that_is_said() -> None:
    two = parse_hostfile("node1 slots=2\nnode2 slots=2", where="hf")
    with pytest.raises(UserError, match="has to be started on every host"):
        check_ssh(False, two, NO_GPU, None)
    check_ssh(True, two, NO_GPU, None)


def test_with_ssh_the_meeting_place_is_that_of_the_hostfile() -> None:
    two = parse_hostfile("node1 slots=2\nnode2 slots=2", where="hf")
    check_ssh(True, two, NO_GPU, Rendezvous(2, "node1", 29500, "x"))
    with pytest.raises(UserError, match="not the same number") as caught:
        check_ssh(True, two, NO_GPU, Rendezvous(3, "node1", 29500, "x"))
    assert caught.value.expected == "2: node1, node2"
    with pytest.raises(UserError, match="Rank 0 is on the first host") as caught:
        check_ssh(True, two, NO_GPU, Rendezvous(2, "node2", 29500, "x"))
    assert caught.value.expected == "node1:29500"


@pytest.mark.parametrize(
    ("num_gpus", "is_chosen", "trouble"),
    [
        (0, False, None),
        (2, False, None),
        (1, False, "it has 1 GPU, and slot 1 needs 2"),
        (1, True, "it has 1 GPU, and slot 1 needs 2"),
        (8, False, "it has 8 GPUs, and slots=2"),
        (8, True, None),
    ],
)
def test_slots_are_the_gpus_of_a_host(num_gpus: int, is_chosen: bool, trouble: str | None) -> None:
    assert gpu_trouble(Host("node1", (0, 1)), num_gpus, is_chosen=is_chosen) == trouble


def test_a_hostfile_that_says_other_gpus_than_this_host_has_is_an_error_with_its_line(tmp_path: Path) -> None:
    for num_slots, num_gpus in ((2, "4 GPUs, and slots=2"), (6, "4 GPUs, and slot 5 needs 6")):
        path = tmp_path / "hf"
        path.write_text(f"# one host\nbox slots={num_slots}\n")
        with pytest.raises(UserError, match="The slots of box are not its GPUs") as caught:
            find_topology("torchrun", HostChoice(str(path)), FOUR_GPUS)
        assert (caught.value.where, caught.value.found) == (f"{path}:2", f"it has {num_gpus}")
        find_topology("torchrun", HostChoice(str(path)), NO_GPU)
    path.write_text("box slots=2\n")
    find_topology("torchrun", HostChoice(str(path), include="box:0,1"), FOUR_GPUS)


@pytest.mark.parametrize(
    ("said", "whose"),
    [
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n", "openmpi"),
        ("HYDRA build details:\n    Version:                                 4.0.2\n", "hydra"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.13 Build 20240701\nCopyright 2003-2024\n", "hydra"),
        ("", "openmpi"),
    ],
)
def test_mpirun_says_whose_it_is(said: str, whose: str) -> None:
    assert mpirun_by_version(said) == whose
