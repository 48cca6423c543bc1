"""Two hosts, two ranks each, under every launcher bare: to the bit the losses of four ranks on one host.

What a user has to add to the launcher's own words is here, and nothing else:

    deepspeed   nothing: the host that types it needs no slot, and the other hosts' PATH does not matter
    mpirun      -x PATH, or the interpreter's whole path; -x MASTER_ADDR=..., for Open MPI tells no rank the first host
    mpiexec     (MPICH's) MASTER_ADDR and MASTER_PORT; it passes on the whole environment by itself
    torchrun    once a host, with the same --rdzv-endpoint
    srun        nothing
    sbatch      --nodes
"""

from __future__ import annotations

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
MODULE = ("-m", "dist_trainer")


def words(folder: Path, name: str) -> list[str]:
    """`train` and its switches."""
    return ["train", "--config", str(mini_config(folder)), "--run-dir", str(folder / name), *BRISK, *SHORT]


def require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def check(ended: Ended, folder: Path, name: str, expected: list[float], lab: Lab) -> None:
    assert ended.status == 0, ended.output
    assert losses(folder / name) == expected
    assert [host_of(folder / name, rank) for rank in range(4)] == ["node1", "node1", "node2", "node2"]
    lab.wait_until_nothing_runs()


def host_of(run_dir: Path, rank: int) -> str:
    return next(iter(read_records(run_dir / "records" / memory_file(rank), MemoryRecord))).host


def test_deepspeed_with_a_hostfile(lab: Lab, folder: Path, expected: list[float]) -> None:
    require("pdsh")
    command = ["deepspeed", "--hostfile", "hosts", "--module", "dist_trainer", *words(folder, "deepspeed")]
    check(lab.run(LOGIN, command, cwd=folder), folder, "deepspeed", expected, lab)


def test_mpirun(lab: Lab, folder: Path, expected: list[float]) -> None:
    require("mpirun")
    where = ["--host", ",".join(f"{host}:2" for host in HOSTS), "-x", "PATH", "-x", f"MASTER_ADDR={HOSTS[0]}"]
    command = ["mpirun", *where, "python", *MODULE, *words(folder, "mpirun")]
    check(lab.run("node1", command, cwd=folder), folder, "mpirun", expected, lab)


def test_mpiexec_of_mpich(lab: Lab, folder: Path, expected: list[float]) -> None:
    require("mpiexec.hydra")
    where = ["-n", "4", "-hosts", ",".join(HOSTS), "-ppn", "2", "-genv", "MASTER_ADDR", HOSTS[0]]
    where += ["-genv", "MASTER_PORT", "29511"]
    command = ["mpiexec.hydra", *where, "python", *MODULE, *words(folder, "hydra")]
    check(lab.run("node1", command, cwd=folder), folder, "hydra", expected, lab)


def test_torchrun_on_each_host(lab: Lab, folder: Path, expected: list[float]) -> None:
    where = ["--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=node1:29500", "--rdzv-id=one"]
    command = ["torchrun", *where, *MODULE, *words(folder, "torchrun")]
    with (folder / "torchrun-node2.log").open("w") as log:
        other = lab.popen("node2", command, cwd=folder, stdout=log, stderr=log)
        first = lab.run("node1", command, cwd=folder)
        status = other.wait(60)
    assert status == 0, (folder / "torchrun-node2.log").read_text()
    check(first, folder, "torchrun", expected, lab)


def test_srun(lab: Lab, folder: Path, expected: list[float], slurm_lab: dict[str, str]) -> None:
    where = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-task=1", "--kill-on-bad-exit=1"]
    command = ["srun", *where, "python", *MODULE, *words(folder, "srun")]
    check(lab.run(LOGIN, command, cwd=folder, environ=slurm_lab), folder, "srun", expected, lab)


def test_sbatch(lab: Lab, folder: Path, expected: list[float], slurm_lab: dict[str, str]) -> None:
    printed = folder / "sbatch.out"
    script = str(ROOT / "slurm" / "many-nodes-srun.sbatch")
    size = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1"]
    command = ["sbatch", "--parsable", *size, f"--output={printed}", script, *words(folder, "sbatch")[1:]]
    submitted = lab.run(LOGIN, command, cwd=ROOT, environ=slurm_lab | {"VIRTUAL_ENV": sys.prefix})
    assert submitted.status == 0, submitted.output
    job = slurm.wait_for_job(slurm_lab, submitted.output.strip(), lab=lab)
    assert job["JobState"] == "COMPLETED", printed.read_text()
    check(submitted, folder, "sbatch", expected, lab)
