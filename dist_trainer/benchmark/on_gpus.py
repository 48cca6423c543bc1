"""The memory that NVML shows of a short real training run on this machine's GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.errors import RunError
from dist_trainer.records import MemoryRecord, memory_file, read_records

NUM_STEPS = 3


@dataclass(frozen=True)
class DevicePeaks:
    """The highest figures of all ranks. `used_bytes`: NVML's, for the whole device; None if NVML gave none."""

    used_bytes: int | None
    allocated_bytes: int | None
    reserved_bytes: int | None


def train_on_gpus(request: Request, num_gpus: int, sequence_length: int) -> DevicePeaks:
    """Launches the run on this host and reads its records. Raises RunError with the end of the run's output."""
    resolved = resolve(request, world_size=num_gpus, device=ANY_DEVICE)
    phase = next(phase.number for phase in resolved.phases if phase.sequence_length == sequence_length)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [
            *(sys.executable, "-m", "dist_trainer", "launch", "--launcher", "torchrun"),
            *("--nproc-per-node", str(num_gpus), "--run-dir", str(run_dir)),
            *("--config", request.config, "--ds", request.ds or resolved.run.deepspeed),
            *("--phase", str(phase), "--max-steps", str(NUM_STEPS)),
            *("--micro-batch", str(resolved.micro_batch), "--accumulation", str(resolved.accumulation)),
            *(f"--set={setting}" for setting in request.settings),
            *("--set", "checkpoints.at_end=false", "--set", "evaluation.num_batches=0"),
        ]
        environ = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
        done = subprocess.run(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", check=False
        )
        if done.returncode:
            raise RunError(
                "a training run of the benchmark failed",
                found=" ".join(command),
                hint="\n".join(done.stdout.splitlines()[-12:]),
            )
        records = [
            record
            for rank in range(num_gpus)
            for record in read_records(run_dir / "records" / memory_file(rank), MemoryRecord)
        ]
    return DevicePeaks(
        used_bytes=_highest(record.device_used_bytes for record in records),
        allocated_bytes=_highest(record.allocated_peak_bytes for record in records),
        reserved_bytes=_highest(record.reserved_peak_bytes for record in records),
    )


def _highest(figures: Iterable[int | None]) -> int | None:
    return max((figure for figure in figures if figure is not None), default=None)


def num_gpus() -> int:
    """The number of GPUs that this process could train on."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
