"""srun and sbatch on a real SLURM of one node."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from literal import any_words

import slurm
from dist_trainer.cluster.nodelist import expand_nodelist
from dist_trainer.cluster.rank import port_from

pytestmark = [pytest.mark.cluster, pytest.mark.integration]

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
LIMIT_S = 120
# What a user of the script would adapt.
NO_GPUS = ("--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")

# `train` echoes; everything else of the shipped script is as users have it.
FAKE_PACKAGE = "import sys, echo_rank; sys.exit(echo_rank.main([sys.argv[1], '.', 'end', *sys.argv[2:]]))\n"


def ranks_environ(slurm_environ: dict[str, str]) -> dict[str, str]:
    return os.environ | slurm_environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}


def test_the_shipped_script_starts_one_task_a_rank(slurm_environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    package = tmp_path / "stand_in" / "dist_trainer"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(FAKE_PACKAGE)
    # `-m dist_trainer` finds the stand-in's __main__, its other modules are the real ones.
    (package / "__init__.py").write_text(f"__path__.append({str(ROOT / 'dist_trainer')!r})\n")
    python.write_text(f'#!/bin/sh\nPYTHONPATH={package.parent}:{HERE} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    environ = {name: value for name, value in ranks_environ(slurm_environ).items() if name != "VIRTUAL_ENV"}
    words = ("--config", "tiny", "a b", "$HOME", ";")
    job_id = subprocess.run(
        ["sbatch", "--parsable", *NO_GPUS, str(ROOT / "slurm" / "one-node.sbatch"), *words],
        cwd=tmp_path,
        env=environ,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    facts = slurm.wait_for_job(slurm_environ, job_id)
    output = (tmp_path / f"slurm-{job_id}.out").read_text()
    assert facts["JobState"] == "COMPLETED", output
    records = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    for rank, record in enumerate(records):
        assert record["rank"] == {
            "rank": rank,
            "world_size": 2,
            "local_rank": rank,
            "local_world_size": 2,
            "master_addr": "127.0.0.1",
            "master_port": port_from(f"{job_id}.0"),
            "source": "slurm",
        }
        assert record["argv"][3:] == ["--run-dir", f"runs/slurm-{job_id}", "--resume", "auto", *words]


@pytest.mark.parametrize("inner", ["python", "launch"])
def test_inside_an_allocation(inner: str, slurm_environ: dict[str, str], tmp_path: Path) -> None:
    """A shell in an allocation is one process; `launch` there starts the ranks with srun."""
    (tmp_path / "out").mkdir()
    module = {"python": ("echo_rank", "train"), "launch": ("launch_echo", "--")}[inner]
    subprocess.run(
        ["salloc", "--quiet", "--ntasks=2", sys.executable, "-m", *module, str(tmp_path / "out"), "end", "it's $HOME"],
        env=ranks_environ(slurm_environ),
        check=True,
        timeout=LIMIT_S,
    )
    records = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("rank-*.json")}
    places = {name: (record["rank"]["source"], record["rank"]["world_size"]) for name, record in records.items()}
    if inner == "python":
        assert places == {"rank-0.json": ("single", 1)}
    else:
        assert places == {"rank-0.json": ("torch", 2), "rank-1.json": ("torch", 2)}
        assert records["rank-1.json"]["argv"] == ["train", str(tmp_path / "out"), "end", "it's $HOME"]


@any_words(num_drawn=5)
def test_arguments_arrive_literally(
    slurm_environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    out_dir = tmp_path_factory.mktemp("literal")
    command = ["salloc", "--quiet", "--ntasks=2", sys.executable, "-m", "launch_echo", "--", str(out_dir), "end"]
    subprocess.run([*command, *words], env=ranks_environ(slurm_environ), check=True, timeout=LIMIT_S)
    for rank in (0, 1):
        assert json.loads((out_dir / f"rank-{rank}.json").read_text())["argv"][3:] == words


@pytest.mark.parametrize("behaviour", ["exit:3", "kill:9"])
def test_a_failed_rank_ends_the_step(behaviour: str, slurm_environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    process = subprocess.run(
        [
            "salloc",
            "--quiet",
            "--ntasks=2",
            sys.executable,
            "-m",
            "launch_echo",
            "--",
            str(tmp_path / "out"),
            behaviour,
        ],
        env=ranks_environ(slurm_environ),
        capture_output=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert process.returncode == {"exit:3": 3, "kill:9": 137}[behaviour]


def test_node_lists_are_read_as_slurm_reads_them(slurm_environ: dict[str, str]) -> None:
    scontrol = shutil.which("scontrol", path=slurm_environ["PATH"])
    assert scontrol is not None
    source = random.Random(0)
    for _ in range(30):
        parts = []
        for _ in range(source.randint(1, 4)):
            first, width = source.randint(0, 20), source.randint(1, 4)
            ranges = f"{first:0{width}d}-{first + source.randint(0, 12):0{width}d},{source.randint(30, 99)}"
            parts.append(source.choice(["gpu7", f"n[{ranges}]", f"r[1-2]n[{ranges}]"]))
        text = ",".join(parts)
        answer = subprocess.run(
            [scontrol, "show", "hostnames", text],
            env=os.environ | slurm_environ,
            capture_output=True,
            text=True,
            check=True,
        )
        assert list(expand_nodelist(text)) == answer.stdout.split(), text


def test_a_mistake_leaves_no_step_in_the_allocation(slurm_environ: dict[str, str], tmp_path: Path) -> None:
    """It is found while srun comes up."""
    wrong = [sys.executable, "-m", "dist_trainer", "launch", "--set", "model.nope=1", "--run-dir", "run"]
    ask = 'id=$SLURM_JOB_ID; "$@"; echo "status $?"; squeue --noheader --steps --jobs=$id --format=%i | grep -v batch'
    process = subprocess.run(
        ["salloc", "--quiet", "--ntasks=2", "sh", "-c", ask, "sh", *wrong],
        cwd=tmp_path,
        env=ranks_environ(slurm_environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    said = process.stderr.splitlines()
    assert said[0] == "dist_trainer: error: unknown key in the run file"
    assert [line for line in said if "srun" in line] == []
    status, *steps = process.stdout.splitlines()
    assert status == "status 2"
    assert [step for step in steps if not step.endswith((".extern", ".batch", ".interactive"))] == []
    assert not (tmp_path / "run").exists()
