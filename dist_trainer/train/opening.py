"""What rank 0 prints and records before the first step."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.cluster.slurm import slurm_facts
from dist_trainer.config import run as run_file
from dist_trainer.config.adapt import DeviceFacts
from dist_trainer.config.optimisations import describe
from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.disk import write_text
from dist_trainer.model.size import num_parameters
from dist_trainer.redact import redacted_argv, redacted_config
from dist_trainer.train import op_builds, planning
from dist_trainer.train.before_meeting import Prepared
from dist_trainer.train.display import Display
from dist_trainer.train.loop import Recorder
from dist_trainer.train.matmul import Matmul
from dist_trainer.units import counted, format_count
from dist_trainer.versions import versions


def open_run(prepared: Prepared, rank: RankInfo, run_dir: Path, *, recorder: Recorder, display: Display) -> None:
    """Writes both resolved files and the plan into the run's folder, prints the first lines, records the start."""
    resolved, device = prepared.resolved, prepared.device
    _write_resolved(resolved, run_dir)
    for line in opening_lines(resolved, rank, run_dir, device, prepared.num_threads, prepared.matmul):
        display.note(line)
    if prepared.planned is not None:
        for line in planning.keep(prepared.planned, run_dir):
            display.note(line)
    recorder.start(
        f"{resolved.run.name} on {counted(rank.world_size, 'rank')}",
        device=device.name,
        world_size=rank.world_size,
        argv=redacted_argv([sys.executable, "-m", "dist_trainer", *sys.argv[1:]]),
        versions=versions(),
        unigram_entropy_nats=prepared.data[-1].train.unigram_entropy_nats,
        **slurm_facts(os.environ),
    )
    for notice in (*resolved.notices, *op_builds.notices()):
        display.note(f"notice     {notice}")
        recorder.event("notice", notice)


def opening_lines(
    resolved: ResolvedRun, rank: RankInfo, run_dir: Path, device: DeviceFacts, num_threads: int, matmul: Matmul
) -> list[str]:
    model = resolved.run.model
    ranks = counted(rank.world_size, "rank")
    threads = f", {counted(num_threads, 'thread')} each" if device.kind == "cpu" else ""
    products = "" if matmul == "fp32" else f", fp32 matrices multiplied in {matmul}"
    return [
        f"model      {resolved.run.name}: {format_count(num_parameters(model))} parameters, "
        f"{counted(model.num_layers, 'layer')} x {model.hidden_size}, vocabulary {model.vocab_size}, "
        f"context {model.context_length}",
        f"world      {ranks} on {device.name} ({rank.source}){threads}{products}",
        f"batch      {counted(resolved.train_batch_size, 'sequence')} = {resolved.micro_batch} micro batch x "
        f"{resolved.accumulation} accumulation x {ranks}",
        f"deepspeed  {resolved.deepspeed_source}: "
        + ", ".join(f"{key} {value}" for key, value in describe(resolved.deepspeed).items()),
        *(f"filled     {one}" for one in resolved.filled),
        f"run        {run_dir}",
    ]


def _write_resolved(resolved: ResolvedRun, run_dir: Path) -> None:
    folder = run_dir / "resolved"
    write_text(folder / "run.yaml", run_file.dump(resolved.run))
    write_text(
        folder / "ds_config.json",
        json.dumps(resolved.deepspeed, indent=2) + "\n",
        private=redacted_config(resolved.deepspeed) != resolved.deepspeed,
    )
