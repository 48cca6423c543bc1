from __future__ import annotations

import dataclasses
import re

import pytest

from dist_trainer.cluster.rank import FIRST_PORT, NUM_PORTS, RankInfo, find_rank, port_from
from dist_trainer.errors import UserError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
DEEPSPEED = {name: value for name, value in TORCHRUN.items() if name != "LOCAL_WORLD_SIZE"} | {"LOCAL_SIZE": "2"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "2051801089",
    "PMIX_RANK": "1",
}
HYDRA = {
    "PMI_RANK": "2",
    "PMI_SIZE": "4",
    "MPI_LOCALRANKID": "0",
    "MPI_LOCALNRANKS": "2",
    "PMI_FD": "7",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "1",
}
ALLOCATION = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NODELIST": "h[1-2]",
    "SLURM_NTASKS": "3",
    "SLURM_TASKS_PER_NODE": "2,1",
}
BATCH_SCRIPT = ALLOCATION | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_TASK_PID": "35"}
STEP = BATCH_SCRIPT | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_NODELIST": "h[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.99",
}
SINGLE = RankInfo(0, 1, 0, 1, "127.0.0.1", None, "single")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, SINGLE, id="nothing"),
        pytest.param(TORCHRUN, RankInfo(3, 4, 1, 2, "node1", 29500, "torch"), id="torchrun"),
        pytest.param(DEEPSPEED, RankInfo(3, 4, 1, 2, "node1", 29500, "torch"), id="deepspeed"),
        pytest.param(
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"},
            RankInfo(1, 2, 1, 2, "127.0.0.1", 9, "torch"),
            id="by hand on one host",
        ),
        pytest.param(
            {"RANK": "0", "WORLD_SIZE": "1"}, RankInfo(0, 1, 0, 1, "127.0.0.1", None, "torch"), id="by hand, alone"
        ),
        pytest.param(OPENMPI, RankInfo(1, 2, 1, 2, "127.0.0.1", port_from("2051801089"), "openmpi"), id="mpirun"),
        pytest.param(HYDRA, RankInfo(2, 4, 0, 2, "n1", 1, "pmi"), id="hydra"),
        pytest.param(
            HYDRA | {"PMI_SIZE": "3", "MPI_LOCALNRANKS": "1"}, RankInfo(2, 3, 0, 1, "n1", 1, "pmi"), id="hydra, uneven"
        ),
        pytest.param(
            {"PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1", "HYDI_CONTROL_FD": "7"},
            RankInfo(0, 1, 0, 1, "127.0.0.1", None, "pmi"),
            id="hydra, alone",
        ),
        pytest.param(STEP | HYDRA, RankInfo(2, 4, 0, 2, "n1", 1, "pmi"), id="hydra in an allocation"),
        pytest.param(STEP, RankInfo(1, 3, 1, 2, "h1", port_from("12.0"), "slurm"), id="srun"),
        pytest.param(
            STEP | {"SLURM_NODEID": "1", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"},
            RankInfo(2, 3, 0, 1, "h1", port_from("12.0"), "slurm"),
            id="srun, second node",
        ),
        pytest.param(STEP | TORCHRUN, RankInfo(3, 4, 1, 2, "node1", 29500, "torch"), id="torchrun under srun"),
        pytest.param(
            STEP | OPENMPI,
            RankInfo(1, 2, 1, 2, "127.0.0.1", port_from("2051801089"), "openmpi"),
            id="mpirun in an allocation",
        ),
        pytest.param(
            STEP | {"PMI_RANK": "1", "PMI_SIZE": "3"},
            RankInfo(1, 3, 1, 2, "h1", port_from("12.0"), "slurm"),
            id="srun --mpi=pmi2",
        ),
        pytest.param(BATCH_SCRIPT, SINGLE, id="a batch script itself"),
        pytest.param(ALLOCATION, SINGLE, id="a salloc shell"),
        pytest.param(BATCH_SCRIPT | {"SLURM_STEP_ID": "4294967290"}, SINGLE, id="salloc's interactive step"),
        pytest.param({"RANK": "", "MASTER_ADDR": ""}, SINGLE, id="empty is not set"),
    ],
)
def test_each_launcher_says_the_place_of_a_rank(environ: dict[str, str], expected: RankInfo) -> None:
    before = dict(environ)
    assert find_rank(environ) == expected
    assert environ == before


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        pytest.param({"RANK": "0"}, "RANK is set, but WORLD_SIZE is not", id="no world size"),
        pytest.param({"WORLD_SIZE": "2"}, "WORLD_SIZE says 2, but this is one of 1 rank", id="no rank"),
        pytest.param(TORCHRUN | {"RANK": "4"}, "rank 4 of 4 ranks", id="rank too large"),
        pytest.param(TORCHRUN | {"RANK": "-1"}, "RANK is not a whole number", id="negative"),
        pytest.param(TORCHRUN | {"RANK": "one"}, "RANK is not a whole number", id="no number"),
        pytest.param(TORCHRUN | {"LOCAL_RANK": "2"}, "local rank 2 of 2", id="local rank too large"),
        pytest.param(TORCHRUN | {"LOCAL_WORLD_SIZE": "5"}, "more ranks on this host", id="local world too large"),
        pytest.param(TORCHRUN | {"MASTER_PORT": "70000"}, "not a port", id="no port"),
        pytest.param(TORCHRUN | {"MASTER_ADDR": ""}, "MASTER_ADDR", id="no address"),
        pytest.param(TORCHRUN | {"MASTER_PORT": ""}, "MASTER_PORT", id="nowhere to meet"),
        pytest.param(
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1"}, "but LOCAL_RANK is not", id="no local rank"
        ),
        pytest.param({**OPENMPI, "OMPI_COMM_WORLD_SIZE": ""}, "OMPI_COMM_WORLD_SIZE", id="half of mpirun"),
        pytest.param(OPENMPI | {"WORLD_SIZE": "4"}, "WORLD_SIZE says 4", id="mpirun and a stray world size"),
        pytest.param(STEP | {"SLURM_NODEID": "2"}, "SLURM_NODEID is 2", id="no such node"),
        pytest.param(STEP | {"SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE", id="tasks in words"),
        pytest.param({"PMIX_NAMESPACE": "7"}, "no variable says its rank", id="MPI and nobody to ask"),
        # As mpiexec of MPICH does by itself: it has no job's name from which all could derive a port.
        pytest.param(HYDRA | {"MASTER_PORT": ""}, "on which port the ranks meet", id="hydra and nowhere to meet"),
        # Before 2017 Hydra counted one rank on each host.
        pytest.param(
            HYDRA | {"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "1"}, "local rank 1 of 1 ranks", id="an old hydra"
        ),
    ],
)
def test_values_that_do_not_fit_are_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        find_rank(environ)
    assert re.search(re.escape(message), str(caught.value))


def test_mpi_is_asked_only_where_no_variable_says_the_rank() -> None:
    answer = RankInfo(1, 2, 1, 2, "n1", 5, "mpi4py")
    asked = []

    def ask() -> RankInfo:
        asked.append(True)
        return answer

    assert find_rank({"PMIX_RANK": "1"}, ask) == answer
    assert find_rank({"PMI_FD": "3", "MASTER_PORT": "77"}, ask) == dataclasses.replace(answer, master_port=77)
    assert len(asked) == 2
    for environ in ({}, TORCHRUN, OPENMPI, HYDRA, STEP, BATCH_SCRIPT):
        find_rank(environ, ask)
    assert len(asked) == 2


def test_the_derived_port_is_below_the_ephemeral_range_and_differs_between_jobs() -> None:
    ports = {port_from(f"{job}.0") for job in range(1000)}
    assert FIRST_PORT <= min(ports) <= max(ports) < FIRST_PORT + NUM_PORTS <= 32_768
    assert len(ports) > 900
