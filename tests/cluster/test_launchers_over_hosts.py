"""Two hosts, two ranks each, under every launcher bare: each rank finds its place, and trains as on one host.

What a user has to add to the launcher's own words is here, and nothing else:

    deepspeed   nothing: the host that types it needs no slot, and the other hosts' PATH does not matter
    mpirun      -x PATH, or the interpreter's whole path; -x MASTER_ADDR=..., for Open MPI tells no rank the first host
    mpiexec     (MPICH's) MASTER_ADDR and MASTER_PORT; it passes on the whole environment by itself
    torchrun    once a host, with the same --rdzv-endpoint
    srun        nothing
    sbatch      --nodes
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from lab import HOSTS, LOGIN, Lab
from launched import SHORT
from ranks import BRISK, Ended, losses, mini_config

import slurm
from dist_trainer.records import MemoryRecord, memory_file, read_records

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
ECHO = str(ROOT / "tests" / "launch" / "echo_rank.py")


def words(folder: Path, name: str) -> list[str]:
    """`train` and its switches."""
    return ["train", "--config", str(mini_config(folder)), "--run-dir", str(folder / name), *BRISK, *SHORT]


def echo(folder: Path, name: str) -> list[str]:
    """What writes down each rank's place."""
    (folder / name).mkdir()
    return [ECHO, "train", str(folder / name), "end"]


def require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def check_losses(ended: Ended, folder: Path, name: str, expected: list[float], lab: Lab) -> None:
    assert ended.status == 0, ended.output
    assert losses(folder / name) == expected
    records = [folder / name / "records" / memory_file(rank) for rank in range(4)]
    hosts = [next(iter(read_records(path, MemoryRecord))).host for path in records]
    assert hosts == ["node1", "node1", "node2", "node2"]
    lab.wait_until_nothing_runs()


def check_places(ended: Ended, folder: Path, name: str, lab: Lab) -> None:
    assert ended.status == 0, ended.output
    records = [json.loads((folder / name / f"rank-{rank}.json").read_text()) for rank in range(4)]
    places = [(one["host"], one["rank"]["local_rank"], one["rank"]["local_world_size"]) for one in records]
    assert places == [("node1", 0, 2), ("node1", 1, 2), ("node2", 0, 2), ("node2", 1, 2)]
    assert {one["rank"]["world_size"] for one in records} == {4}
    (meeting,) = {(one["rank"]["master_addr"], one["rank"]["master_port"]) for one in records}
    assert meeting[0] == HOSTS[0]
    lab.wait_until_nothing_runs()


def test_deepspeed_with_a_hostfile(lab: Lab, folder: Path, expected: list[float]) -> None:
    require("pdsh")
    command = ["deepspeed", "--hostfile", "hosts", "--module", "dist_trainer", *words(folder, "deepspeed")]
    check_losses(lab.run(LOGIN, command, cwd=folder), folder, "deepspeed", expected, lab)


def test_mpirun(lab: Lab, folder: Path) -> None:
    require("mpirun")
    where = ["--host", ",".join(f"{host}:2" for host in HOSTS), "-x", "PATH", "-x", f"MASTER_ADDR={HOSTS[0]}"]
    ended = lab.run("node1", ["mpirun", *where, "python", *echo(folder, "mpirun")], cwd=folder)
    check_places(ended, folder, "mpirun", lab)


def test_mpiexec_of_mpich(lab: Lab, folder: Path) -> None:
    require("mpiexec.hydra")
    where = ["-n", "4", "-hosts", ",".join(HOSTS), "-ppn", "2", "-genv", "MASTER_ADDR", HOSTS[0]]
    where += ["-genv", "MASTER_PORT", "29511"]
    ended = lab.run("node1", ["mpiexec.hydra", *where, "python", *echo(folder, "hydra")], cwd=folder)
    check_places(ended, folder, "hydra", lab)


def test_torchrun_on_each_host(lab: Lab, folder: Path) -> None:
    where = ["--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=node1:29500", "--rdzv-id=one"]
    command = ["torchrun", *where, *echo(folder, "torchrun")]
    with (folder / "torchrun-node2.log").open("w") as log:
        other = lab.popen("node2", command, cwd=folder, stdout=log, stderr=log)
        first = lab.run("node1", command, cwd=folder)
        status = other.wait(60)
    assert status == 0, (folder / "torchrun-node2.log").read_text()
    check_places(first, folder, "torchrun", lab)


def test_srun(lab: Lab, folder: Path, slurm_lab: dict[str, str]) -> None:
    where = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-task=1", "--kill-on-bad-exit=1"]
    ended = lab.run(LOGIN, ["srun", *where, "python", *echo(folder, "srun")], cwd=folder, environ=slurm_lab)
    check_places(ended, folder, "srun", lab)


def test_sbatch(lab: Lab, folder: Path, expected: list[float], slurm_lab: dict[str, str]) -> None:
    printed = folder / "sbatch.out"
    script = str(ROOT / "slurm" / "many-nodes-srun.sbatch")
    size = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1"]
    command = ["sbatch", "--parsable", *size, f"--output={printed}", script, *words(folder, "sbatch")[1:]]
    submitted = lab.run(LOGIN, command, cwd=ROOT, environ=slurm_lab | {"VIRTUAL_ENV": sys.prefix})
    assert submitted.status == 0, submitted.output
    job = slurm.wait_for_job(slurm_lab, submitted.output.strip(), lab=lab)
    assert job["JobState"] == "COMPLETED", printed.read_text()
    check_losses(submitted, folder, "sbatch", expected, lab)
