from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkpoint_folders import checkpoint
from plans import make_plan
from run_folders import make_gpu_run

import dist_trainer
from dist_trainer.checkpoints.changed import made_by
from dist_trainer.cli import checkpoint as checkpoint_command
from dist_trainer.cli import data, doctor, launch, main, monitor, plan, report, sample, slurm, train
from dist_trainer.cli.main import COMMANDS, without_local_rank
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.launch.plan import LaunchPlan

ROOT = Path(__file__).parents[2]
# What a launcher or a batch system around these tests may have set.
FOREIGN = ("SLURM_", "PMI", "OMPI_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "OMP_NUM_THREADS", "DS_ACCELERATOR")
HEAVY = {"torch", "deepspeed", "transformers"}

# Every option string, in the order of --help. Users have these in their scripts: a change here is a change for them.
SURFACE = {
    "train": (
        *("-h", "--help", "--config", "--ds", "--deepspeed_config", "--phase", "--seed", "--set"),
        *(
            "--max-steps",
            "--run-dir",
            "--resume",
            "--init-from",
            "--micro-batch",
            "--accumulation",
            "--precision",
            "--checkpointing",
            "--no-checkpointing",
        ),
        *(
            "--fused",
            "--no-fused",
            "--compile",
            "--no-compile",
            "--learning-rate",
            "--lr",
            "--matmul",
            "--no-optimize",
            "--measure-allocator",
            "--strict",
            "--baseline",
            "--force",
        ),
        *("--debug", "--deepspeed", "--local_rank", "--local-rank"),
    ),
    "launch": (
        *("-h", "--help", "--launcher", "--nproc-per-node", "--nproc_per_node", "--hostfile"),
        *("--include", "--exclude", "--nnodes", "--rdzv-endpoint", "--rdzv-id", "--ssh"),
        *("--env", "--start-limit", "--dry-run"),
    ),
    "plan": (
        *("-h", "--help", "--config", "--ds", "--deepspeed_config", "--phase", "--seed", "--set", "--micro-batch"),
        *("--accumulation", "--precision", "--checkpointing", "--no-checkpointing", "--fused", "--no-fused"),
        *("--compile", "--no-compile", "--learning-rate", "--lr", "--matmul", "--no-optimize"),
        *("--nproc-per-node", "--nproc_per_node", "--nnodes"),
        *("--hostfile", "--include", "--exclude", "--gpu", "--gpu-memory", "--host-memory", "--device", "--rank"),
        *("--fit", "--global-batch", "--write", "--json", "--debug"),
    ),
    "doctor": (
        *("-h", "--help", "--config", "--ds", "--deepspeed_config", "--phase", "--seed", "--set", "--micro-batch"),
        *("--accumulation", "--precision", "--checkpointing", "--no-checkpointing", "--fused", "--no-fused"),
        *("--compile", "--no-compile", "--learning-rate", "--lr", "--matmul", "--no-optimize"),
        *("--hostfile", "--include", "--exclude"),
        *("--nproc-per-node", "--nproc_per_node", "--run-dir", "--json", "--debug"),
    ),
    "report": ("-h", "--help", "--compare", "--baseline", "--strict", "--debug"),
    "sample": (
        *("-h", "--help", "--prompt", "--prompts", "--tokens", "--tokenizer", "--max-tokens", "--temperature"),
        *("--top-k", "--seed", "--precision", "--device", "--json", "--debug"),
    ),
    "monitor": ("-h", "--help", "--interval", "--output", "--debug"),
    "slurm submit": (
        *("-h", "--help", "--nodes", "--gpus-per-node", "--gres", "--gpus-per-task", "--ntasks-per-node", "--ntasks"),
        *("--cpus-per-task", "--mem", "--time", "--partition", "--account", "--nodelist", "--sbatch", "--launcher"),
        *("--array", "--signal", "--max-requeues", "--no-requeue", "--env", "--run-dir", "--dry-run"),
    ),
    "slurm status": ("-h", "--help", "--json", "--debug"),
    "slurm lint": ("-h", "--help", "--debug"),
    "data prepare": ("-h", "--help", "--input", "--output", "--tokenizer", "--vocab-size", "--debug"),
    "checkpoint list": ("-h", "--help", "--json", "--debug"),
    "checkpoint inspect": (
        *("-h", "--help", "--config", "--ds", "--deepspeed_config", "--phase", "--seed", "--set", "--micro-batch"),
        *("--accumulation", "--precision", "--checkpointing", "--no-checkpointing", "--fused", "--no-fused"),
        *("--compile", "--no-compile", "--learning-rate", "--lr", "--matmul", "--no-optimize"),
        *("--nproc-per-node", "--nproc_per_node", "--nnodes", "--hostfile", "--include", "--exclude"),
        *("--json", "--debug"),
    ),
    "checkpoint verify": ("-h", "--help", "--debug"),
    "checkpoint diff": ("-h", "--help", "--debug"),
    "checkpoint export": ("-h", "--help", "--to", "--tokenizer", "--debug"),
}

# Runs `python -m dist_trainer` and says on stderr which modules it imported, and what it started, made or wrote.
PROBE = """
import json, os, runpy, sys
acts = []
def note(event, details):
    if event == "open":
        path, _, flags = details
        # A number is a stream that is open already.
        is_path = not isinstance(path, int) and isinstance(flags, int)
        if is_path and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            acts.append(f"open {path}")
    elif event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "os.mkdir",
                   "os.rename", "os.remove", "socket.bind", "socket.connect"):
        acts.append(event)
sys.addaudithook(note)
status = None
try:
    runpy.run_module("dist_trainer", run_name="__main__")
except SystemExit as ended:
    status = ended.code
print("\\n" + json.dumps({"status": status, "modules": sorted(sys.modules), "acts": acts}), file=sys.stderr)
"""


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Probed:
    """`packages` are the top-level names of all imported modules; `acts` what was started, made or written."""

    status: int
    out: str
    packages: frozenset[str]
    acts: tuple[str, ...]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


def python(*words: str, cwd: Path, **variables: str) -> Answer:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=environment(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def probe(*arguments: str, cwd: Path, **variables: str) -> Probed:
    answer = python("-c", PROBE, *arguments, cwd=cwd, **variables)
    assert answer.status == 0, answer.err
    said = json.loads(answer.err.splitlines()[-1])
    packages = frozenset(name.partition(".")[0] for name in said["modules"])
    return Probed(said["status"], answer.out, packages, tuple(said["acts"]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder on a host without GPU, launcher or batch system around."""
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MASTER_PORT", "23456")
    path = tmp_path / "work"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def one_message(answer: Answer) -> str:
    """The one message of a user's mistake, which is all that was printed."""
    assert answer.status == 2, answer
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert answer.err.count("dist_trainer: error: ") == 1
    assert answer.err.startswith("dist_trainer: error: ")
    return answer.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    status = main(list(arguments))
    captured = capsys.readouterr()
    return one_message(Answer(status, captured.out, captured.err))


def write_ds(path: Path, **keys: object) -> Path:
    path.write_text(json.dumps({"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2, **keys}))
    return path


# The surface.


@pytest.mark.parametrize(
    ("name", "parser"),
    [
        ("train", train.build_parser()),
        ("launch", launch.build_parser()),
        ("plan", plan.build_parser()),
        ("doctor", doctor.build_parser()),
        ("report", report.build_parser()),
        ("sample", sample.build_parser()),
        ("monitor", monitor.build_parser()),
        ("slurm submit", slurm.build_submit_parser()),
        ("slurm status", slurm.build_status_parser()),
        ("slurm lint", slurm.build_lint_parser()),
        ("data prepare", data.build_parser()),
        ("checkpoint list", checkpoint_command.build_list_parser()),
        ("checkpoint inspect", checkpoint_command.build_inspect_parser()),
        ("checkpoint verify", checkpoint_command.build_verify_parser()),
        ("checkpoint diff", checkpoint_command.build_diff_parser()),
        ("checkpoint export", checkpoint_command.build_export_parser()),
    ],
    ids=list(SURFACE),
)
def test_the_switches_are_those_that_users_know(name: str, parser: argparse.ArgumentParser) -> None:
    assert tuple(option for action in parser._actions for option in action.option_strings) == SURFACE[name]
    named = [action.dest for action in parser._actions if not action.option_strings]
    expected = {
        "report": ["run_dir"],
        "sample": ["path"],
        "slurm status": ["run_dir"],
        "slurm lint": ["files"],
        "checkpoint list": ["path"],
        "checkpoint inspect": ["path"],
        "checkpoint verify": ["path"],
        "checkpoint diff": ["a", "b"],
        "checkpoint export": ["path", "output"],
    }
    assert named == expected.get(name, [])


def test_the_commands_are_those_that_users_know() -> None:
    assert tuple(COMMANDS) == (
        "train",
        "launch",
        "slurm",
        "plan",
        "doctor",
        "data",
        "benchmark",
        "report",
        "checkpoint",
        "sample",
        "monitor",
    )


def test_launch_and_train_share_no_switch_but_help() -> None:
    assert set(SURFACE["launch"]) & set(SURFACE["train"]) == {"-h", "--help"}


def test_slurm_submit_names_the_runs_folder_itself() -> None:
    assert set(SURFACE["slurm submit"]) & set(SURFACE["train"]) == {"-h", "--help", "--run-dir"}


def test_a_switch_may_not_be_shortened(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean --accumulation?" in refused(capsys, "launch", "--dry-run", "--accum", "2")


# What is imported, started and made.


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("train", "--help"),
        ("launch", "--help"),
        ("plan", "--help"),
        ("doctor", "--help"),
        ("report", "--help"),
        ("sample", "--help"),
        ("monitor", "--help"),
        ("benchmark", "--help"),
        ("benchmark", "memory", "--help"),
        ("benchmark", "plan-error", "--help"),
        ("launch", "--dry-run"),
        ("launch", "--dry-run", "--launcher", "deepspeed", "--config", "small", "--ds", "zero3"),
        ("slurm", "--help"),
        ("slurm", "submit", "--help"),
        ("slurm", "status", "--help"),
        ("slurm", "lint", "--help"),
        ("data", "--help"),
        ("data", "prepare", "--help"),
        ("checkpoint", "--help"),
        ("checkpoint", "list", "--help"),
        ("checkpoint", "inspect", "--help"),
        ("checkpoint", "verify", "--help"),
        ("checkpoint", "diff", "--help"),
        ("checkpoint", "export", "--help"),
        ("--version",),
    ],
    ids=" ".join,
)
def test_what_answers_at_once_imports_nothing_heavy_and_starts_and_makes_nothing(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    answer = probe(*arguments, cwd=tmp_path)
    assert answer.status == 0
    assert answer.out
    assert not answer.packages & HEAVY
    assert "dist_trainer" in answer.packages
    assert answer.acts == ()
    assert list(tmp_path.iterdir()) == []


def test_a_report_imports_nothing_heavy_and_writes_in_the_runs_folder_alone(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path / "run", (2_600_000_000,), plan=make_plan(allocated=1, used=2_600_000_000))
    answer = probe("report", "run", "--baseline", "run", "--compare", "run", cwd=tmp_path)
    assert answer.status == 0
    assert not answer.packages & HEAVY
    assert set(answer.acts) <= {"os.rename", "os.mkdir", *(act for act in answer.acts if act.startswith("open "))}
    written = {act.removeprefix("open ") for act in answer.acts if act.startswith("open ")}
    assert {Path(path).parent.name for path in written if not path.startswith("/dev")} == {"run"}
    assert (run_dir / "report.html").exists()


@pytest.mark.parametrize("verb", ["list", "inspect", "verify"])
def test_what_looks_at_checkpoints_imports_nothing_heavy_and_starts_and_writes_nothing(
    tmp_path: Path, verb: str
) -> None:
    checkpoint(tmp_path / "run" / "checkpoints", 8)
    answer = probe("checkpoint", verb, "run", cwd=tmp_path)
    assert answer.status == 0
    assert not answer.packages & HEAVY
    assert answer.acts == ()


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)], ids=" ".join)
def test_help_needs_no_package_at_all(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert not probe(*arguments, cwd=tmp_path).packages & {"pydantic", "yaml", "rich", "numpy", "psutil", "argparse"}


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")][: len(COMMANDS)] == list(COMMANDS)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{dist_trainer.__version__}\n"


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("launch", "--dry-run")], ids=" ".join)
def test_a_reader_that_has_gone_is_no_failure(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    environ = {name: value for name, value in environment({}).items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "dist_trainer", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


# launch --dry-run.


def test_a_dry_run_prints_the_same_text_each_time(tmp_path: Path) -> None:
    arguments = ("-m", "dist_trainer", "launch", "--dry-run", "--config", "small", "--set", "seed=3")
    first, second = (python(*arguments, cwd=tmp_path, PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert first == second
    assert (first.status, first.err) == (0, "")


def test_a_dry_run_prints_a_command_that_a_shell_reads_back_word_for_word(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    awkward = ['data.source=a b\'s "$HOME"; `id`', "name=*", "name=ünï\\n"]
    settings = [word for text in awkward for word in ("--set", text)]
    assert main(["launch", "--dry-run", "--nproc-per-node", "4", "--run-dir", "my runs/1", *settings]) == 0
    text = capsys.readouterr().out
    expected = [
        *("env", "OMP_NUM_THREADS=3", "DS_ACCELERATOR=cpu"),
        *(sys.executable, "-m", "dist_trainer.launch.launchers.elastic", "--nnodes=1", "--nproc-per-node=4"),
        *("--master-addr=127.0.0.1", "--master-port=23456", "-m", "--", "dist_trainer", "train"),
        *("--run-dir", "my runs/1", *settings),
    ]
    assert shlex.split(text.replace(" \\\n", " ")) == expected
    read_by_sh = subprocess.run(["sh", "-c", f"printf '%s\\0' {text}"], capture_output=True, check=True).stdout
    assert read_by_sh.decode().split("\0")[:-1] == expected


def test_a_dry_run_is_the_golden_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "--dry-run", "--config", "small", "--ds", "zero3", "--set", "data.source=a b"]) == 0
    assert capsys.readouterr().out == (
        "env OMP_NUM_THREADS=3 DS_ACCELERATOR=cpu \\\n"
        f"    {shlex.quote(sys.executable)} -m dist_trainer.launch.launchers.elastic \\\n"
        "    --nnodes=1 --nproc-per-node=2 \\\n"
        "    --master-addr=127.0.0.1 --master-port=23456 \\\n"
        "    -m -- dist_trainer train \\\n"
        "    --config small \\\n"
        "    --ds zero3 \\\n"
        "    --set 'data.source=a b' \\\n"
        "    --run-dir runs/small-zero3-001\n"
    )


def test_a_dry_run_says_beside_the_command_what_was_filled_and_what_does_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 2, "stage3_prefetch_bucket_size": 1000},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    }
    Path("auto.json").write_text(json.dumps(config))
    assert main(["launch", "--dry-run", "--ds", "auto.json", "--nproc-per-node", "2"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("--run-dir runs/tiny-auto-001\n")
    assert said.err.splitlines() == [
        "filled     train_batch_size = 4 (micro batch x accumulation x world size)",
        "notice     zero_optimization.stage3_prefetch_bucket_size does nothing: zero_optimization.stage is 2, "
        "and it is for stage 3",
    ]


def test_a_launch_runs_its_plan_and_ends_with_its_status(folder: Path, started: list[LaunchPlan]) -> None:
    assert main(["launch", "--ds", "zero1", "--seed", "3"]) == 7
    (plan,) = started
    assert plan.num_ranks == 2
    assert plan.argv[-5:] == ("zero1", "--seed", "3", "--run-dir", "runs/tiny-zero1-001")
    assert (folder / "runs" / "tiny-zero1-001").is_dir()


# launch checks everything before it starts anything.


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)], ids=["started", "dry run"])
@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"gradient_cliping": 1.0}, "gradient_cliping"),
        ({"steps_per_print": "auto"}, "steps_per_print"),
        ({"train_batch_size": 7}, "train_batch_size"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "bf16.enabled"),
    ],
    ids=["unknown key", "unfilled auto", "batch triple", "contradiction"],
)
def test_a_wrong_json_stops_a_launch_before_anything_is_made(
    folder: Path,
    started: list[LaunchPlan],
    capsys: pytest.CaptureFixture[str],
    keys: dict[str, object],
    key: str,
    dry_run: tuple[str, ...],
) -> None:
    path = write_ds(folder / "ds.json", **keys)
    message = refused(capsys, "launch", "--ds", str(path), *dry_run)
    assert f"{path}: {key}" in message
    assert started == []
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--phase", "9"), "--phase"),
        (("--set", "model.num_heads=3"), "hidden_size 128 is not a multiple of num_heads 3"),
        (("--set", "seed=first"), "seed"),
        (("--no-optimize", "--ds", "zero2"), "--no-optimize"),
        (("--set", "phases=[]"), "phases"),
        (("--ds", "broken.json"), "broken.json: line 1, column 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_request_stops_a_launch_before_anything_is_made(
    folder: Path,
    started: list[LaunchPlan],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    broken = folder / "broken.json"
    broken.write_text("{")
    assert said in refused(capsys, "launch", *arguments)
    assert started == []
    assert list(folder.iterdir()) == [broken]


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)], ids=["started", "dry run"])
@pytest.mark.parametrize(
    ("damaged", "arguments", "said"),
    [
        ((4, 8), ("--run-dir", "run"), "index.json is missing"),
        ((4, 8), ("--run-dir", "run"), "no other checkpoint beside it is whole"),
        ((4, 8), ("--run-dir", "other", "--resume", "run"), "index.json is missing"),
        ((8,), ("--run-dir", "other", "--resume", "run/checkpoints/step-8"), "step-4 beside it is whole"),
        ((), ("--run-dir", "other", "--resume", "run", "--set", "model.num_layers=3"), "model.num_layers"),
        ((), ("--run-dir", "run", "--set", "model.num_layers=3"), "model.num_layers"),
        ((), ("--run-dir", "other", "--resume", "runn"), "no checkpoint to resume from"),
    ],
)
def test_a_checkpoint_that_cannot_be_resumed_from_stops_a_launch_before_anything_is_made(
    folder: Path,
    started: list[LaunchPlan],
    capsys: pytest.CaptureFixture[str],
    damaged: tuple[int, ...],
    arguments: tuple[str, ...],
    said: str,
    dry_run: tuple[str, ...],
) -> None:
    make_checkpoints(folder)
    for step in damaged:
        (folder / "run" / "checkpoints" / f"step-{step}" / "index.json").unlink()
    before = sorted(folder.rglob("*"))
    assert said in refused(capsys, "launch", *arguments, *dry_run)
    assert started == []
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--accumulation", "2"),
        ("--nproc-per-node", "3"),
        ("--ds", "zero3"),
        ("--precision", "fp16"),
        ("--set", "model.pad_vocab=true"),
    ],
    ids=" ".join,
)
def test_a_launch_goes_on_from_a_checkpoint_of_other_ranks_and_settings(
    folder: Path, started: list[LaunchPlan], arguments: tuple[str, ...]
) -> None:
    make_checkpoints(folder)
    assert main(["launch", "--run-dir", "run", *arguments]) == 7
    assert len(started) == 1


@pytest.mark.parametrize("latest", [None, "", "step-99", "step-8"])
def test_a_launch_goes_on_from_the_newest_whole_checkpoint_whatever_latest_says(
    folder: Path, started: list[LaunchPlan], latest: str | None
) -> None:
    make_checkpoints(folder)
    (folder / "run" / "checkpoints" / "step-8" / "rank-00001.safetensors").write_bytes(b"")
    file = folder / "run" / "checkpoints" / "latest"
    file.unlink() if latest is None else file.write_text(latest)
    assert main(["launch", "--run-dir", "run"]) == 7
    assert len(started) == 1


def make_checkpoints(folder: Path) -> None:
    resolved = resolve(Request(config="tiny"), world_size=2, device=ANY_DEVICE)
    for step in (4, 8):
        checkpoint(folder / "run" / "checkpoints", step, made_by=made_by(resolved, world_size=2, data={}))


@pytest.mark.parametrize("hosts", ["hostfile", "switch"])
def test_a_launch_checks_the_batch_for_the_ranks_that_it_will_start(
    folder: Path, capsys: pytest.CaptureFixture[str], hosts: str
) -> None:
    path = write_ds(folder / "ds.json", train_batch_size=6)

    def arguments(num_ranks: int) -> tuple[str, ...]:
        if hosts == "switch":
            return ("--nproc-per-node", str(num_ranks))
        (folder / "hosts").write_text(f"localhost slots={num_ranks}\n")
        return ("--launcher", "torchrun", "--hostfile", "hosts")

    assert main(["launch", "--dry-run", "--ds", str(path), *arguments(3)]) == 0
    assert "--nproc-per-node=3" in capsys.readouterr().out
    message = refused(capsys, "launch", "--dry-run", "--ds", str(path), *arguments(2))
    assert "1 x 2 x 2, which is 4" in message


# One message and status 2.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trian",), "did you mean 'train'?"),
        (("lunch", "--dry-run"), "did you mean 'launch'?"),
        (("qqqq",), "train, launch, slurm, plan, doctor, data, benchmark, report, checkpoint, sample, monitor"),
        (("",), "say what dist_trainer is to do"),
        (("slurm", ""), "say what slurm is to do"),
        (("launch", "--dry-run", "--micro-bach", "2"), "did you mean --micro-batch?"),
        (("launch", "--dry-run", "--nproc-per-nod=2"), "did you mean --nproc-per-node?"),
        (("launch", "--hostfil", "hosts"), "did you mean --hostfile?"),
        (("launch", "--dry-run", "--qqqq"), "see dist_trainer train --help"),
        (("launch", "--dry-run", "stray"), "found:    'stray'"),
        (("launch", "--dry-run", "--config", "tinny"), "did you mean 'tiny'?"),
        (("launch", "--dry-run", "--ds", "zreo2"), "did you mean 'zero2'?"),
        (("launch", "--dry-run", "--config", "nowhere/a.yaml"), "found:    'nowhere/a.yaml'"),
        (("launch", "--dry-run", "--set", "seed"), "expected: dotted.path=value"),
        (("launch", "--dry-run", "--micro-batch", "two"), "'two' is not a whole number above 0"),
        (("launch", "--dry-run", "--seed", "-1"), "'-1' is not a whole number"),
        (("launch", "--dry-run", "--precision", "fp8"), "invalid choice: 'fp8'"),
        (("launch", "--dry-run", "--seed"), "--seed: expected one argument"),
        (("launch", "--launcher", "slurm"), "invalid choice: 'slurm'"),
        (("launch", "--dry-run", "--nproc-per-node", "0"), "--nproc-per-node"),
        (("launch", "--dry-run", "--start-limit", "nan"), "--start-limit: 'nan' is not a number above 0"),
        (("launch", "--dry-run", "--start-limit", "inf"), "--start-limit: 'inf' is not a number above 0"),
        (("launch", "--dry-run", "--start-limit=-1"), "--start-limit: '-1' is not a number above 0"),
        (("data", "prepare", "--input", "x"), "--output"),
        (
            ("data", "prepare", "--input", "x", "--outptu", "y", "--output", "z", "--vocab-size", "300"),
            "did you mean --output?",
        ),
        (("data", "prepare", "--input", "nowhere", "--output", "z", "--vocab-size", "300"), "nowhere"),
        (
            ("data", "prepare", "--input", "x", "--output", "z", "--tokenizer", "t", "--vocab-size", "9"),
            "not allowed with argument",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in refused(capsys, *arguments)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--micro-bach", "2"), "did you mean --micro-batch?"),
        (("train", "--config", "tinny"), "did you mean 'tiny'?"),
        (("train", "--deepspeed_config", "zreo2"), "did you mean 'zero2'?"),
        (("train", "--phase", "two"), "'two' is not a whole number above 0"),
        (("--local_rank=0", "train", "--phase", "9"), "found:    9"),
        (("--local_rank=0", "--deepspeed", "--deepspeed_config", "no.json"), "found:    'no.json'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_in_train_is_one_message(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in one_message(python("-m", "dist_trainer", *arguments, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "launch"])
def test_debug_shows_the_traceback_and_then_the_message(tmp_path: Path, command: str) -> None:
    answer = python("-m", "dist_trainer", command, "--debug", "--config", "tinny", cwd=tmp_path)
    assert answer.status == 2
    assert answer.err.startswith("Traceback (most recent call last):")
    assert "\ndist_trainer: error: " in answer.err


# What DeepSpeed's launcher adds.


def test_the_rank_that_deepspeed_adds_in_front_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert without_local_rank(["--local_rank=0", "train", "--seed", "1"]) == ["train", "--seed", "1"]
    assert without_local_rank(["--local-rank=12", "--deepspeed"]) == ["--deepspeed"]
    assert without_local_rank(["train", "--local_rank_file=x"]) == ["train", "--local_rank_file=x"]
    watched = ["monitor", "--", "x.py", "--local_rank=1"]
    assert without_local_rank(["--local_rank=0", *watched]) == watched
    assert main(["--local_rank=3", "launch", "--dry-run"]) == 0
    assert "local_rank" not in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--local_rank", "3"), ("--local_rank=3",), ("--local-rank", "3")], ids=" ".join)
def test_the_rank_is_understood_among_the_switches_too(words: tuple[str, ...]) -> None:
    args = train.build_parser().parse(["--seed", "1", *words])
    assert (args.seed, args.local_rank) == (1, 3)


def test_deepspeeds_own_spelling_asks_for_the_same() -> None:
    ours = train.build_parser().parse(["--ds", "ds_configs/zero3.json"])
    theirs = train.build_parser().parse(["--deepspeed", "--deepspeed_config", "ds_configs/zero3.json"])
    assert train.request_from(theirs) == train.request_from(ours)


def test_every_switch_reaches_the_request() -> None:
    args = train.build_parser().parse(
        [
            *("--config", "small", "--phase", "2", "--seed", "0", "--set", "a=1", "--set", "b=2", "--micro-batch", "2"),
            *("--accumulation", "16", "--precision", "fp16", "--checkpointing", "--no-fused", "--no-optimize"),
        ]
    )
    request = train.request_from(args)
    assert (request.config, request.ds, request.phase, request.seed) == ("small", None, 2, 0)
    assert (request.settings, request.no_optimize) == (("a=1", "b=2"), True)
    switches = request.switches
    assert (switches.micro_batch, switches.accumulation, switches.precision) == (2, 16, "fp16")
    assert (switches.checkpointing, switches.fused, switches.compile) == (True, False, None)


def test_a_fault_of_the_program_is_one_line_and_a_traceback_only_with_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise ZeroDivisionError("of a planner")

    monkeypatch.setattr("dist_trainer.cli.plan.main", fail)
    assert main(["plan"]) == 1
    assert capsys.readouterr().err == (
        "dist_trainer: error: ZeroDivisionError: of a planner\n  do:       run again with --debug for the traceback\n"
    )
    with pytest.raises(ZeroDivisionError):
        main(["plan", "--debug"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), "ConnectionResetError: [Errno 104] Connection reset"),
        (OSError(95, "Operation not supported"), "OSError: [Errno 95] Operation not supported"),
    ],
    ids=["of a connection", "of no file"],
)
def test_an_error_of_the_system_that_is_no_disks_is_one_line_too(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("dist_trainer.cli.plan.main", fail)
    assert main(["plan"]) == 1
    assert capsys.readouterr().err.startswith(f"dist_trainer: error: {said}")
    with pytest.raises(type(error)):
        main(["plan", "--debug"])


def test_debug_asked_of_a_watched_program_is_not_asked_of_us(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such command" in refused(capsys, "monitor", "--", "no-such-program", "--debug")
