"""`slurm submit` and `slurm status` on a real SLURM over two hosts: each stage of a job, and what it goes on from."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lab import LOGIN, Lab
from ranks import BRISK, Ended, losses, mini_config

pytestmark = [pytest.mark.cluster, pytest.mark.integration]

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "slurm"
LIMIT_S = 120.0


class Queue:
    """The lab's SLURM, and the command under test on the login node."""

    def __init__(self, lab: Lab, environ: dict[str, str], folder: Path) -> None:
        self.lab, self.environ, self.folder = lab, environ, folder
        self.config = ("--config", str(mini_config(folder)))

    def __call__(self, *words: str, environ: Mapping[str, str] | None = None) -> Ended:
        command = [sys.executable, "-m", "dist_trainer", "slurm", *words]
        return self.lab.run(LOGIN, command, cwd=self.folder, environ=self.environ | dict(environ or {}))

    def submit(self, name: str, *words: str, environ: Mapping[str, str] | None = None) -> str:
        """The job's number. The run's folder is folder/name."""
        ended = self("submit", "--run-dir", name, "--time", "10", *self.config, *words, environ=environ)
        assert ended.status == 0, ended.output
        return ended.output.split()[1]

    def sbatch(self, *words: str, environ: Mapping[str, str]) -> str:
        environ = {**self.environ, "VIRTUAL_ENV": sys.prefix, **environ}
        return self.lab.check(LOGIN, ["sbatch", "--parsable", *words], cwd=self.folder, environ=environ).strip()

    def slurm(self, *command: str) -> str:
        return self.lab.check(LOGIN, command, environ=self.environ)

    def status(self, name: str, *, exit_status: int = 0) -> list[dict[str, Any]]:
        ended = self("status", name, "--json")
        assert ended.status == exit_status, ended.output
        found: list[dict[str, Any]] = json.loads(ended.output)
        return found

    def restarts(self, job_id: str) -> int:
        fields = self.slurm("scontrol", "show", "job", "--oneliner", job_id).split()
        return next(int(field.partition("=")[2]) for field in fields if field.startswith("Restarts="))

    def is_requeued(self, job_id: str) -> bool:
        return self.restarts(job_id) > 0

    def wait(self, job_id: str) -> str:
        """The state in which the job has ended."""
        wait_until(lambda: not {"PENDING", "RUNNING", "SIGNALING", "COMPLETING"} & self.states(job_id))
        return self.states(job_id).pop()

    def states(self, job_id: str) -> set[str]:
        fields = self.slurm("scontrol", "show", "job", "--oneliner", job_id).split()
        return {field.partition("=")[2] for field in fields if field.startswith("JobState=")}

    def output(self, name: str, job_id: str) -> str:
        paths = (self.folder / name / "logs" / f"slurm-{job_id}.out", self.folder / f"slurm-{job_id}.out")
        return "\n".join(path.read_text() for path in paths if path.exists())


# `train` says where it is and ends; every other command is as users have it.
STAND_IN = """
import dataclasses, json, os, socket, sys
from pathlib import Path
if sys.argv[1] != "train":
    from dist_trainer.cli import main
    sys.exit(main(sys.argv[1:]))
from dist_trainer.cluster.rank import find_rank
rank = find_rank(os.environ)
run_dir = Path(sys.argv[sys.argv.index("--run-dir") + 1])
run_dir.mkdir(parents=True, exist_ok=True)
said = {"host": socket.gethostname(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "argv": sys.argv}
(run_dir / f"rank-{rank.rank}.json").write_text(json.dumps(said | {"rank": dataclasses.asdict(rank)}))
"""


@pytest.fixture
def stand_in(queue: Queue) -> dict[str, str]:
    package = queue.folder / "stand_in" / "dist_trainer"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(STAND_IN)
    # `-m dist_trainer` finds the stand-in's __main__, its other modules are the real ones.
    (package / "__init__.py").write_text(f"__path__.append({str(ROOT / 'dist_trainer')!r})\n__version__ = '0'\n")
    return {"PYTHONPATH": str(package.parent)}


@pytest.fixture(scope="module")
def queue(lab: Lab, slurm_lab: dict[str, str]) -> Queue:
    folder = lab.folder / "queue"
    folder.mkdir()
    return Queue(lab, slurm_lab, folder)


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not is_true():
        assert time.monotonic() < deadline_s, "it has not come true"
        # Each look at SLURM starts four programs.
        time.sleep(0.3)


def newest(run_dir: Path) -> int:
    latest = run_dir / "checkpoints" / "latest"
    return int(latest.read_text().removeprefix("step-")) if latest.exists() else 0


def has_steps(run_dir: Path) -> bool:
    return (run_dir / "records" / "steps.jsonl").exists() and len(losses(run_dir)) > 2


def test_a_job_is_requeued_at_its_time_when_preempted_and_when_it_loses_a_node_and_comes_to_its_end(
    queue: Queue, lab: Lab
) -> None:
    run_dir = queue.folder / "long"
    # So slow that the run is not over before its time is: its gradients cross the link in every step.
    lab.slow_link("node2", "2mbit")
    try:
        job_id = queue.submit(
            "long",
            *("--nodes", "2", "--gpus-per-node", "1", "--time", "10", "--signal", "40", "--sbatch", "hold"),
            *("--cpus-per-task", "1", "--accumulation", "1", "--set", "checkpoints.every_steps=2", *BRISK),
            *("--set", "phases.0.steps=60", "--set", "phases.1.steps=20", "--set", "evaluation.num_batches=0"),
        )
        (held,) = queue.status("long")
        assert (held["stage"], held["state"], held["job_id"]) == ("queued", "PENDING", job_id)
        assert "held" in held["why"]
        again = queue("submit", "--run-dir", "long", "--ntasks-per-node", "1", *queue.config)
        assert again.status == 2
        assert "A job for this folder is queued or runs" in again.output

        queue.slurm("scontrol", "release", job_id)
        wait_until(lambda: newest(run_dir) > 0)
        (running,) = queue.status("long")
        assert (running["stage"], running["nodes"], running["requeued"]) == ("running", "node[1-2]", 0)
        assert running["newest"]["step"] >= 2
        assert running["memory"]["judgement"] == "not judged"

        # SLURM's own signal, soon: 40 s before the end of a time that begins to run out only now, however busy this
        # machine was until here.
        needed_s = time.time() - running["start_s"] + 45
        queue.slurm("scontrol", "update", f"jobid={job_id}", f"timelimit={math.ceil(needed_s / 60)}")
        wait_until(lambda: queue.restarts(job_id) > 0)
        at_signal = newest(run_dir)
        wait_until(lambda: newest(run_dir) > at_signal)
        output = queue.output("long", job_id)
        assert "told to stop: the run saves and ends" in output
        assert f"resumed from long/checkpoints/step-{at_signal}" in output

        before = queue.restarts(job_id)
        queue.slurm("srun", "--partition=high", "--nodes=2", "--exclusive", "true")
        at_preemption = newest(run_dir)
        (waiting,) = queue.status("long")
        assert waiting["requeued"] == before + 1, (waiting, queue.output("long", job_id))
        # Time enough for the rest, however busy this machine is.
        queue.slurm("scontrol", "update", f"jobid={job_id}", "timelimit=10")
        assert waiting["stage"] in ("queued", "running")

        wait_until(lambda: newest(run_dir) > at_preemption)
        # `launch` notices it, and the script is over, before SLURM does.
        lab.power_off("node2")
        wait_until(lambda: queue.restarts(job_id) > before + 1)
        at_loss = newest(run_dir)
        # Gone, where the end of its connections came through; else silent.
        assert "node2 (rank 1)" in queue.output("long", job_id)
    finally:
        if not lab.is_on("node2"):
            lab.power_on("node2")
        lab.slow_link("node2", None)
    assert queue.wait(job_id) == "COMPLETED", queue.output("long", job_id)
    for step in (at_preemption, at_loss):
        assert f"resumed from long/checkpoints/step-{step}" in queue.output("long", job_id)
    (ended,) = queue.status("long")
    assert (ended["stage"], ended["state"], ended["newest"]["step"]) == ("ended", "COMPLETED", 80)
    assert len(losses(run_dir)) == 80


def test_the_scripts_that_users_copy_save_at_their_signal_and_go_on(queue: Queue, lab: Lab) -> None:
    """The only checkpoint that the second start can go on from is that of the signal."""
    scripts = {"srun": "--ntasks-per-node=1", "torchrun": "--gpus-per-node=1"}
    jobs = {}
    lab.slow_link("node2", "2mbit")
    try:
        for name, ranks in scripts.items():
            words = (*queue.config, "--accumulation", "1", *BRISK, "--set", "evaluation.num_batches=0")
            words += ("--set", "phases.0.steps=60", "--set", "phases.1.steps=20")
            words += ("--set", "checkpoints.every_steps=1000")
            script = str(SCRIPTS / f"many-nodes-{name}.sbatch")
            placed = ("--nodes=2", ranks, "--gpus-per-node=1", "--cpus-per-task=1", "--mem=0", "--time=10")
            jobs[name] = queue.sbatch(*placed, script, *words, environ={})
            run_dir = queue.folder / f"runs/slurm-{jobs[name]}"
            wait_until(partial(has_steps, run_dir))
            assert newest(run_dir) == 0
            queue.slurm("scancel", "--batch", "--signal=USR1", jobs[name])
            wait_until(partial(queue.is_requeued, jobs[name]))
    finally:
        lab.slow_link("node2", None)
    for name, job_id in jobs.items():
        assert queue.wait(job_id) == "COMPLETED", queue.output(name, job_id)
        run_dir = queue.folder / f"runs/slurm-{job_id}"
        assert "resumed from" in queue.output(name, job_id)
        assert (queue.restarts(job_id), len(losses(run_dir))) == (1, 80)


def test_ranks_find_their_places_and_words_arrive_literally(queue: Queue, stand_in: dict[str, str]) -> None:
    """Spread unevenly, one agent a node, and by the scripts that users copy."""
    words = ("--config", "tiny", "--set", 'data.source=a b\'s "$HOME"; `id`')
    two_nodes = ("--nodes=2", "--gpus-per-node=2", "--cpus-per-task=2")
    submit = partial(queue.submit, environ=stand_in)
    jobs = {
        "uneven": submit("uneven", "--ntasks", "3", "--gpus-per-task", "1", *words),
        "agents": submit("agents", "--nodes", "2", "--gres", "gpu:2", "--launcher", "torchrun", *words),
        "srun": queue.sbatch(
            *two_nodes, "--ntasks-per-node=2", str(SCRIPTS / "many-nodes-srun.sbatch"), *words, environ=stand_in
        ),
        "torchrun": queue.sbatch(*two_nodes, str(SCRIPTS / "many-nodes-torchrun.sbatch"), *words, environ=stand_in),
    }
    found = {}
    for name, job_id in jobs.items():
        assert queue.wait(job_id) == "COMPLETED", queue.output(name, job_id)
        folder = queue.folder / (name if (queue.folder / name).exists() else f"runs/slurm-{job_id}")
        ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
        assert all(rank["argv"][-4:] == list(words) for rank in ranks)
        assert {rank["rank"]["master_addr"] for rank in ranks} == {"node1"}
        found[name] = [(rank["host"], rank["rank"]["rank"], rank["rank"]["local_rank"], rank["gpus"]) for rank in ranks]
    even = [("node1", 0, 0, "0,1"), ("node1", 1, 1, "0,1"), ("node2", 2, 0, "0,1"), ("node2", 3, 1, "0,1")]
    assert found == {
        "uneven": [("node1", 0, 0, "0"), ("node1", 1, 1, "1"), ("node2", 2, 0, "0")],
        "agents": even,
        "srun": even,
        "torchrun": even,
    }


def test_a_run_that_fails_is_not_requeued(queue: Queue) -> None:
    """Each task of an array is a run of its own; %a is its number."""
    array = queue.submit("array", "--ntasks-per-node", "1", "--array", "3-4", "--set", "data.source=nowhere-%a")
    assert [queue.wait(f"{array}_{task}") for task in (3, 4)] == ["FAILED", "FAILED"]
    found = queue.status("array", exit_status=1)
    assert [(one["job_id"], one["state"], one["requeued"]) for one in found] == [
        (f"{array}_3", "FAILED", 0),
        (f"{array}_4", "FAILED", 0),
    ]
    for task in (3, 4):
        assert f"nowhere-{task}" in (queue.folder / "array" / "logs" / f"slurm-{array}_{task}.out").read_text()
    ended = queue("status", "array/task-3")
    assert ended.status == 1
    assert "exit status 2" in ended.output
    cancelled = queue.submit("cancelled", "--ntasks-per-node", "1", "--sbatch", "hold")
    queue.slurm("scancel", cancelled)
    (one,) = queue.status("cancelled", exit_status=1)
    assert (one["state"], one["why"]) == ("CANCELLED", "it was cancelled")


def test_what_the_cluster_does_not_have_is_not_submitted(queue: Queue) -> None:
    before = queue.slurm("squeue", "--noheader")
    for words, said in (
        (("--nodes", "3", "--gpus-per-node", "2"), "The job is for 3 nodes, and 2 fit"),
        (("--gpus-per-node", "h100:2"), "2 with 2 x a100, 4 CPUs"),
        (("--gpus-per-node", "2", "--sbatch", "constraint=x"), "Invalid feature specification"),
    ):
        ended = queue("submit", "--run-dir", "nothing", *words, *queue.config)
        assert ended.status == 2
        assert said in ended.output
    assert not (queue.folder / "nothing").exists()
    assert queue.slurm("squeue", "--noheader") == before
    out = queue("submit", "--dry-run", "--nodes", "2", "--gpus-per-node", "2", *queue.config).output
    assert "\n#SBATCH --cpus-per-task=2\n#SBATCH --mem=0\n" in out
