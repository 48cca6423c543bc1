"""`slurm submit` up to where SLURM is asked: what is checked, and what a dry run shows."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from dist_trainer.cli import main

FOREIGN = ("SLURM_", "PMI", "OMPI_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder on a host without SLURM."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))
    path = tmp_path / "work"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    assert main(["slurm", "submit", "--dry-run", *arguments]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["slurm", "submit", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("dist_trainer: error: ") == 1
    return captured.err


def test_the_issues_own_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "--nodes 4 --gpus-per-node 8 --time 12:00:00 --config large --ds zero2"
    out, err = shown(capsys, *command.split())
    options = [line.removeprefix("#SBATCH ") for line in out.splitlines() if line.startswith("#SBATCH")]
    assert options == [
        "--job-name=large-zero2",
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--time=12:00:00",
        "--signal=B:USR1@150",
        "--requeue",
        "--open-mode=append",
        f"--chdir={folder}",
        "--output=runs/large-zero2-001/logs/slurm-%j.out",
    ]
    assert f"\npython={shlex.quote(sys.executable)}\n" in out
    assert "    --resume auto \\\n    --config large \\\n    --ds zero2 &\n" in out
    assert err == "notice     there is no SLURM on this host: the script is not checked against a cluster\n"
    assert list(folder.iterdir()) == []
    assert shown(capsys, *command.split()) == (out, err)


def test_a_folder_of_ones_own_and_a_checkpoint_to_begin_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(capsys, "--ntasks-per-node", "2", "--run-dir", "my runs/1", "--resume", "runs/old", "--seed", "3")
    assert "\nrun_dir='my runs/1'\n" in out
    assert "    --resume runs/old \\\n    --seed 3 \\\n    ${at_start:+--resume auto} &\n" in out


def test_a_learning_rate_for_each_task_of_an_array(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--gpus-per-node", "8", "--time", "4:00:00", "--array", "1-8%2", "--config", "small")
    out, _ = shown(capsys, *words, "--learning-rate", "%ae-4")
    _, err = shown(capsys, *words, "--ds", "one_cycle", "--set", "optimizer.params.lr=%ae-4")
    assert "notice     optimizer.params.lr does nothing: scheduler.params.cycle_max_lr says the rate, 0.0006" in err
    assert '--learning-rate "$SLURM_ARRAY_TASK_ID"e-4' in out
    assert "not a number above 0" in refused(capsys, *words[:-3], "0-8", "--learning-rate", "%ae-4")


def test_what_the_end_of_the_time_costs_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = shown(capsys, "--gpus-per-node", "2", "--time", "20", "--config", "small", "--signal", "60")
    assert "notice     USR1 comes 1 min before the end, and the run may take 2 min to save" in err
    _, err = shown(capsys, "--gpus-per-node", "2", "--time", "20", "--config", "small", "--no-requeue")
    assert "the job has 20 min until its end" in err
    _, err = shown(
        capsys, "--gpus-per-node", "2", "--time", "20", "--config", "small", "--set", "checkpoints.every_minutes=5"
    )
    assert "checkpoint" not in err


def test_how_often_a_job_requeues_itself_is_the_users_choice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(capsys, "--gpus-per-node", "2", "--time", "20", "--config", "small", "--max-requeues", "3")
    assert '[ "${SLURM_RESTART_COUNT:-0}" -ge 3 ]' in out


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)], ids=["submitted", "dry run"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Nothing says how many ranks a node has"),
        (("--gpus-per-node", "2", "--gres", "gpu:2"), "GPUs are asked for twice"),
        (("--gpus-per-node", "2", "--config", "smal"), "did you mean 'small'?"),
        (("--gpus-per-node", "2", "--gpus-per-nod", "2"), "did you mean --gpus-per-node?"),
        (("--gpus-per-node", "2", "--nproc-per-node", "2"), "unknown switch"),
        (("--gpus-per-node", "2", "--set", "model.num_heads=3"), "hidden_size 128 is not a multiple of num_heads 3"),
        (("--gpus-per-node", "2", "--nodes", "3", "--ds", "six.json"), "six.json: train_batch_size"),
        (("--gpus-per-node", "2", "--seed", "%a"), "--seed"),
        (("--gpus-per-node", "2", "--seed", "%ab", "--array", "0-3"), "--seed"),
        (("--gpus-per-node", "2", "--array", "3-0"), "is not an array"),
        (("--gpus-per-node", "2", "--resume", "never"), "add --no-requeue"),
        (("--gpus-per-node", "2", "--time", "10", "--signal", "600"), "at most 599 seconds"),
        (("--gpus-per-node", "2", "--no-requeue", "--signal", "60"), "is sent no signal"),
        (("--gpus-per-node", "2", "--sbatch", "nodes=3"), "use --nodes"),
        (("--gpus-per-node", "2", "--sbatch", "wrap=true"), "follows from the other switches"),
        (("--gpus-per-node", "2", "--sbatch=--qos=long"), "like qos=long"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_said_before_anything_is_made(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
    dry_run: tuple[str, ...],
) -> None:
    (folder / "six.json").write_text(json.dumps({"train_batch_size": 6, "train_micro_batch_size_per_gpu": 2}))
    assert said in refused(capsys, *dry_run, *arguments)
    assert [path.name for path in folder.iterdir()] == ["six.json"]


def test_a_rank_left_in_the_environment_is_said_before_the_queue(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert "unset RANK" in refused(capsys, "--gpus-per-node", "2", "--dry-run")


def test_without_slurm_nothing_is_submitted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "--gpus-per-node", "2")
    assert "scontrol is not installed" in message
    assert "--dry-run" in message
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("arguments", [(), ("cancel",)])
def test_slurm_alone_asks_what_to_do(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", *arguments]) == 2
    assert "submit, status, lint" in capsys.readouterr().err
