"""Starts real ranks for tests, and reads what they left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.records import read_steps

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
# The first run of a kind compiles DeepSpeed's operators, beside other tests that do so too.
TIME_LIMIT_S = 480
# A warm-up short enough for the weights to move in a mini run.
BRISK = ("--set", "scheduler.params.warmup_num_steps=4", "--learning-rate", "0.002")

MINI = """\
name: mini
deepspeed: zero2
seed: 7
model: {num_layers: 2, hidden_size: 32, num_heads: 2, vocab_size: 2048, context_length: 64, dropout: 0.0}
phases:
  - {name: short, sequence_length: 32, steps: 10}
  - {name: long, sequence_length: 64, steps: 10}
evaluation: {num_batches: 2}
checkpoints: {at_end: false}
"""


@dataclass(frozen=True)
class Ended:
    """A command that ended. `output` is what it printed, both streams together."""

    status: int
    output: str


def bin_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with the tests' interpreter first on the PATH and no rank's variables in it."""
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return environ | dict(extra or {})


def run(command: Sequence[str], *, cwd: Path, environ: Mapping[str, str] | None = None) -> Ended:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=bin_environment(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        errors="backslashreplace",
        timeout=TIME_LIMIT_S,
        check=False,
    )
    return Ended(done.returncode, done.stdout)


def run_ranks(arguments: Sequence[str], *, cwd: Path, world_size: int, num_ranks_a_host: int | None = None) -> Ended:
    """Runs `python ARGUMENTS` as that many ranks, with nothing in between; the status is the highest of theirs. They
    are told that they are on one host, or, with `num_ranks_a_host`, on several.
    """
    on_host = num_ranks_a_host or world_size
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": on_host,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    with tempfile.TemporaryFile("w+") as printed:
        ranks = []
        for rank in range(world_size):
            environ = bin_environment({name: str(value) for name, value in meeting.items()})
            environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank % on_host)}
            command = [sys.executable, *arguments]
            ranks.append(subprocess.Popen(command, cwd=cwd, env=environ, stdout=printed, stderr=subprocess.STDOUT))
        statuses = [rank.wait(TIME_LIMIT_S) for rank in ranks]
        printed.seek(0)
        return Ended(max(statuses, key=abs), printed.read())


def mini_config(folder: Path) -> Path:
    path = folder / "mini.yaml"
    path.write_text(MINI)
    return path


def train(folder: Path, name: str, *switches: str, world_size: int = 2, brisk: bool = True) -> Path:
    """Trains the mini run in `folder`/`name` and returns its run folder; fails the test when the command fails.

    `brisk` is for a file whose schedule warms up.
    """
    run_dir = folder / name
    arguments = ["-m", "dist_trainer", "train", "--config", str(mini_config(folder)), "--run-dir", str(run_dir)]
    ended = run_ranks([*arguments, *(BRISK if brisk else ()), *switches], cwd=folder, world_size=world_size)
    assert ended.status == 0, ended.output
    return run_dir


def losses(run_dir: Path) -> list[float]:
    return [step.loss for step in read_steps(run_dir / "records")]
