"""The same run under every launcher: the same losses to the bit, and one message when it cannot be."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sshd
from broken_starts import START, messages, start, with_a_rate_too_high
from ranks import BRISK, bin_environment, losses, mini_config, run, train

import slurm
from dist_trainer.endings import cause_among
from dist_trainer.records import EVENTS_FILE, Event, MemoryRecord, memory_file, read_records
from dist_trainer.report.reading.starts import read_starts

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable


def require(program: str) -> None:
    if shutil.which(program, path=bin_environment()["PATH"]) is None:
        pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launchers")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[float]:
    return losses(train(folder, "expected"))


STAGES = ["spawn", "files", "imports", "plan", "data", "rendezvous", "opening", "engine", "first step"]


def stages_of_each_rank(run_dir: Path) -> list[list[str]]:
    """Each once; fails the test where a rank's first step has not ended."""
    starts = read_starts(run_dir / "records")
    assert None not in [start.end_s for start in starts]
    return [list(dict.fromkeys(stage.name for stage in start.stages)) for start in starts]


def switches(folder: Path, name: str) -> list[str]:
    return ["train", "--config", str(mini_config(folder)), "--run-dir", str(folder / name), *BRISK]


@pytest.mark.parametrize("launcher", START)
def test_the_losses_are_the_same_to_the_bit(launcher: str, folder: Path, expected: list[float]) -> None:
    require(launcher)
    ended = run([*START[launcher], *switches(folder, launcher)], cwd=folder)
    assert ended.status == 0, ended.output
    assert losses(folder / launcher) == expected
    assert stages_of_each_rank(folder / launcher) == [STAGES, STAGES]


def test_mpiexec_of_mpich_gives_them_too(folder: Path, expected: list[float]) -> None:
    """Its variables say the rank; where the ranks meet has to be said."""
    require("mpiexec.hydra")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = ("-n", "2", "-genv", "MASTER_PORT", str(probe.getsockname()[1]))
    command = ["mpiexec.hydra", *where, "python", "-m", "dist_trainer", *switches(folder, "hydra")]
    ended = run(command, cwd=folder)
    assert ended.status == 0, ended.output
    assert losses(folder / "hydra") == expected
    assert "2 ranks on CPU (pmi)" in ended.output


@pytest.mark.parametrize("launcher", START)
def test_launch_gives_them_too_and_leaves_what_it_started(launcher: str, folder: Path, expected: list[float]) -> None:
    require(launcher)
    name = f"launch-{launcher}"
    command = [PYTHON, "-m", "dist_trainer", "launch", "--launcher", launcher, "--nproc-per-node", "2"]
    ended = run([*command, *switches(folder, name)[1:]], cwd=folder)
    assert ended.status == 0, ended.output
    assert losses(folder / name) == expected
    assert (folder / name / "resolved" / "launch.json").exists()
    assert stages_of_each_rank(folder / name) == 2 * [["launch", "guard", *STAGES]]


@pytest.mark.cluster
@pytest.mark.parametrize("how", ["srun", "sbatch"])
def test_slurm_gives_them_too(how: str, folder: Path, expected: list[float], slurm_environ: dict[str, str]) -> None:
    environ = bin_environment(slurm_environ) | {"VIRTUAL_ENV": sys.prefix}
    words = switches(folder, how)
    if how == "srun":
        command = ["srun", "--ntasks=2", "--kill-on-bad-exit=1", PYTHON, "-m", "dist_trainer", *words]
    else:
        script = ROOT / "slurm" / "one-node.sbatch"
        options = ["--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1", f"--output={folder}/sbatch.out"]
        command = ["sbatch", "--parsable", *options, str(script), *words[1:]]
    ended = run(command, cwd=ROOT, environ=environ)
    assert ended.status == 0, ended.output
    if how == "sbatch":
        job = slurm.wait_for_job(slurm_environ, ended.output.strip())
        assert job["JobState"] == "COMPLETED", (folder / "sbatch.out").read_text()
    assert losses(folder / how) == expected


@pytest.mark.cluster
def test_srun_passes_on_that_strict_is_not_met(folder: Path, slurm_environ: dict[str, str]) -> None:
    """On a CPU the target is not known to be met."""
    start = ("srun", "--ntasks=2", "--kill-on-bad-exit=1", PYTHON, "-m", "dist_trainer")
    ended = run(
        [*start, *switches(folder, "strict"), "--max-steps", "1", "--strict"],
        cwd=ROOT,
        environ=bin_environment(slurm_environ),
    )
    assert ended.status == 3, ended.output


@pytest.fixture(scope="module")
def ssh_environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    reason = sshd.why_no_sshd()
    if reason is not None:
        pytest.skip(reason)
    with sshd.local_sshd(tmp_path_factory.mktemp("ssh") / "state") as environ:
        yield environ


@pytest.mark.cluster
def test_deepspeed_with_the_localhost_hostfile_gives_them_too(
    folder: Path, expected: list[float], ssh_environ: dict[str, str]
) -> None:
    path = f"{ssh_environ['PATH'].split(os.pathsep)[0]}{os.pathsep}{bin_environment()['PATH']}"
    command = ["deepspeed", "--hostfile", "hostfiles/localhost", "--module", "dist_trainer", *switches(folder, "ssh")]
    ended = run(command, cwd=ROOT, environ={"PATH": path})
    assert ended.status == 0, ended.output
    assert losses(folder / "ssh") == expected


def test_deepspeeds_own_switches_are_understood(folder: Path) -> None:
    command = [*START["deepspeed"], "--deepspeed", "--deepspeed_config", str(ROOT / "ds_configs" / "zero3.json")]
    words = ["--config", str(mini_config(folder)), "--run-dir", str(folder / "ds"), "--max-steps", "2"]
    ended = run([*command, *words], cwd=folder)
    assert ended.status == 0, ended.output
    assert '"stage": 3' in (folder / "ds" / "resolved" / "ds_config.json").read_text()


def test_the_run_folder_holds_what_was_asked_and_measured(folder: Path, expected: list[float]) -> None:
    run_dir = folder / "expected"
    kinds = [event.kind for event in read_records(run_dir / "records" / EVENTS_FILE, Event)]
    assert kinds == ["start", "phase", "evaluation", "phase", "evaluation", "end"]
    for rank in range(2):
        memory = list(read_records(run_dir / "records" / memory_file(rank), MemoryRecord))
        assert [record.step for record in memory] == list(range(1, 21))
        assert all(record.rss_bytes > 0 for record in memory)
        assert (run_dir / "logs" / f"rank-{rank}.log").exists()
    for name in ("summary.json", "resolved/run.yaml", "resolved/ds_config.json"):
        assert (run_dir / name).is_file()


def test_what_was_resolved_runs_again_to_the_same_losses(folder: Path, expected: list[float]) -> None:
    resolved = folder / "expected" / "resolved"
    words = ["--config", str(resolved / "run.yaml"), "--ds", str(resolved / "ds_config.json")]
    again = folder / "again"
    ended = run([*START["torchrun"], *words, "--run-dir", str(again)], cwd=folder)
    assert ended.status == 0, ended.output
    assert losses(again) == expected


@pytest.mark.parametrize(("launcher", "status"), [("torchrun", 1), ("deepspeed", 2), ("mpirun", 2)])
def test_a_mistake_in_a_file_is_said_once(launcher: str, status: int, folder: Path) -> None:
    """torchrun itself ends with 1 whatever its ranks end with."""
    require(launcher)
    wrong = folder / "wrong.json"
    wrong.write_text('{"train_micro_batch_size_per_gpu": 1, "zero_optimisation": {"stage": 2}}')
    ended = run([*START[launcher], *switches(folder, "wrong"), "--ds", str(wrong)], cwd=folder)
    assert ended.status == status
    assert ended.output.count("dist_trainer: error:") == 1
    assert "zero_optimization" in ended.output and str(wrong) in ended.output
    assert 'File "' not in ended.output.partition("ChildFailedError")[0].partition("Traceback")[0]


@pytest.mark.parametrize("launcher", START)
def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update(launcher: str, folder: Path) -> None:
    require(launcher)
    name = f"nan-{launcher}"
    huge = ["--set", "scheduler.params.warmup_max_lr=1e30", "--set", "checkpoints.every_steps=1"]
    ended = run([*START[launcher], *switches(folder, name), *huge], cwd=folder)
    assert ended.status == 1
    assert ended.output.count("dist_trainer: error:") == 1
    assert "is not finite" in ended.output
    errors = [event for event in read_records(folder / name / "records" / EVENTS_FILE, Event) if event.kind == "error"]
    assert {event.facts["type"] for event in errors} == {"RunError"}
    last_step = len(losses(folder / name))
    assert (folder / name / "checkpoints" / "latest").read_text() == f"step-{last_step}"


@pytest.mark.parametrize("launcher", START)
def test_launch_ends_with_the_ranks_status_and_without_a_traceback(launcher: str, folder: Path) -> None:
    """A data file that is missing is found by the ranks, not by the launch command."""
    require(launcher)
    command = [PYTHON, "-m", "dist_trainer", "launch", "--launcher", launcher, "--nproc-per-node", "2"]
    words = [*switches(folder, f"missing-{launcher}")[1:], "--set", "data.source=nowhere/tokens"]
    ended = run([*command, *words], cwd=folder)
    assert ended.status == 2
    assert ended.output.count("dist_trainer: error:") == 1
    assert "nowhere/tokens" in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("launcher", "is_bare"),
    [
        *((launcher, False) for launcher in START),
        pytest.param("srun", False, marks=pytest.mark.cluster),
        ("torchrun", True),
    ],
)
def test_what_stops_all_ranks_at_once_is_said_by_one(
    launcher: str, is_bare: bool, folder: Path, request: pytest.FixtureRequest
) -> None:
    """The short form of broken_starts.py."""
    require(launcher)
    environ = bin_environment(request.getfixturevalue("slurm_environ")) if launcher == "srun" else None
    run_dir = folder / f"broken-{launcher}-{is_bare}"
    ended = start(folder, run_dir, launcher, *with_a_rate_too_high(run_dir), is_bare=is_bare, environ=environ)
    assert ended.status == 1
    (message,) = messages(ended.output)
    cause = cause_among(list(read_records(run_dir / "records" / EVENTS_FILE, Event)))
    assert cause is not None
    assert cause.message.splitlines()[0] in message
