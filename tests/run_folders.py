"""Run folders for tests of the report, as training and `monitor` leave them, from a few figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dist_trainer.memory.plan import Plan, write_plan
from dist_trainer.records import EVENTS_FILE, STEPS_FILE, host_memory_file, memory_file, samples_file, start_file

START_S = 1_790_000_000.0
START_STAGES = (
    ("spawn", 1.0),
    ("imports", 1.5),
    ("rendezvous", 4.0),
    ("engine", 5.0),
    ("first step", 6.0),
    ("ended", 8.0),
)
GPU_BYTES = 24 * 2**30
RUN_FILE = """\
name: {name}
deepspeed: zero2
model: {{num_layers: 2, hidden_size: {hidden_size}, num_heads: 2, vocab_size: 2048, context_length: 64}}
phases:
  - {{name: short context, sequence_length: 32, steps: 6}}
  - {{name: full context, sequence_length: 64, steps: 6}}
"""
TARGETS = "targets: {baseline_bytes: 4 GB, target_bytes: 2.5 GB}\n"


def write_lines(path: Path, objects: Iterable[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(item, separators=(",", ":")) + "\n" for item in objects)


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def ended(samples: Iterable[Mapping[str, object]]) -> Iterable[Mapping[str, object]]:
    """As a sampler leaves them that came to its end."""
    held: Mapping[str, object] | None = None
    for one in samples:
        if held is not None:
            yield held
        held = one
    if held is not None:
        yield {**held, "is_last": True}


def event(kind: str, message: str, after_s: float, *, rank: int | None = 0, **facts: object) -> dict[str, object]:
    return {
        "kind": kind,
        "message": message,
        "rank": rank,
        "time_s": START_S + after_s,
        "facts": {"monotonic_s": after_s, **facts},
    }


def step(number: int, *, num_steps: int = 12, after_s: float | None = None, **others: object) -> dict[str, object]:
    fields: dict[str, object] = {
        "step": number,
        "phase": "short context" if number <= num_steps // 2 else "full context",
        "loss": 12.0 - 8.0 * number / num_steps,
        "grad_norm": 1.0 + 0.5 * math.sin(number),
        "learning_rate": 1e-3,
        "loss_scale": None,
        "num_tokens": 1000,
        "tokens_per_s": 2000.0 + 100 * (number % 5),
        "data_wait_s": 0.1,
        "step_s": 0.5,
        "time_s": START_S + (10.0 + number if after_s is None else after_s),
    }
    return {**fields, **others}


def sample(after_s: float, used_bytes: int | None, *, device: str = "GPU-0", **others: object) -> dict[str, object]:
    fields: dict[str, object] = {
        "host": "h1",
        "device": device,
        "monotonic_s": after_s,
        "time_s": START_S + after_s,
        "used_bytes": used_bytes,
        "used_version": None if used_bytes is None else 2,
        "total_bytes": None if used_bytes is None else GPU_BYTES,
        "process_bytes": used_bytes,
        "rss_bytes": 900_000_000,
        "utilization_percent": None,
        "power_w": None,
        "temperature_c": None,
        "sm_clock_mhz": None,
        "memory_clock_mhz": None,
        "throttle_reasons": None,
        "ecc_errors": None,
        "xid_errors": None,
    }
    return {**fields, **others}


def memory(number: int, rank: int, used_bytes: int | None, *, device: str = "GPU-0", **others: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "step": number,
        "rank": rank,
        "host": "h1",
        "device": device,
        "allocated_peak_bytes": None if used_bytes is None else used_bytes - 700_000_000,
        "reserved_peak_bytes": None if used_bytes is None else used_bytes - 500_000_000,
        "device_used_bytes": used_bytes,
        "rss_bytes": 900_000_000 + 1_000_000 * number,
        "time_s": START_S + 10.0 + number,
        "monotonic_s": 10.0 + number,
    }
    return {**fields, **others}


def curve(peak_bytes: int, *, num_samples: int, seconds: float) -> Callable[[], Iterable[tuple[float, int]]]:
    """(seconds, bytes): up while the model is built, then a wave with its highest point at the peak."""

    def points() -> Iterable[tuple[float, int]]:
        for index in range(num_samples):
            at = index / max(1, num_samples - 1)
            level = min(1.0, at / 0.2) * (0.9 + 0.1 * math.sin(40 * at) ** 2)
            yield at * seconds, peak_bytes if index == num_samples // 2 else round(0.999 * level * peak_bytes)

    return points


def make_gpu_run(
    folder: Path,
    peaks_bytes: Iterable[int] = (2_310_000_000, 2_200_000_000),
    *,
    name: str = "tiny",
    hidden_size: int = 32,
    targets: bool = True,
    num_steps: int = 12,
    num_samples: int = 60,
    plan: Plan | None = None,
    ends: bool = True,
    events: Iterable[Mapping[str, object]] = (),
    deepspeed: Mapping[str, object] | None = None,
    num_gpus_a_host: int | None = None,
    start_facts: Mapping[str, object] | None = None,
) -> Path:
    """A training run with one rank for each peak; with `num_gpus_a_host`, one so large that each host has a monitor."""
    peaks = list(peaks_bytes)
    seconds = 12.0 + num_steps
    records, resolved = folder / "records", folder / "resolved"
    write_lines(records / STEPS_FILE, (step(number, num_steps=num_steps) for number in range(1, num_steps + 1)))
    start = {
        "device": "NVIDIA Stand-in",
        "world_size": len(peaks),
        "argv": ["python", "-m", "dist_trainer", "--ds", "zero2"],
        "versions": {"dist_trainer": "0.1.0", "torch": "2.13.0", "deepspeed": "0.19.8"},
        "unigram_entropy_nats": 6.125,
        **(start_facts or {}),
    }
    found = [
        event("start", f"{name} on {len(peaks)} ranks", 0.0, **start),
        event("notice", "compile: no C++ compiler; the model runs uncompiled", 0.1),
        event("phase", "phase 1: short context", 10.0, step=0),
        event("evaluation", "validation loss 5.5000", 10.5 + num_steps / 2, loss=5.5, phase="short context"),
        event("phase", "phase 2: full context", 10.6 + num_steps / 2, step=num_steps // 2),
        event("evaluation", "validation loss 4.2500", seconds - 1, loss=4.25, phase="full context"),
        *events,
    ]
    if ends:
        found.append(event("end", f"step {num_steps}", seconds, step=num_steps))
    write_lines(records / EVENTS_FILE, sorted(found, key=lambda one: float(str(one["time_s"]))))
    if num_gpus_a_host is not None:
        for first in range(0, len(peaks), num_gpus_a_host):
            of_host = peaks[first : first + num_gpus_a_host]
            write_host(records, first, of_host, num_samples=num_samples, num_steps=num_steps)
    for rank, peak in enumerate(peaks) if num_gpus_a_host is None else ():
        device = f"GPU-{rank}"
        points = curve(peak, num_samples=num_samples, seconds=seconds)
        write_lines(
            records / samples_file(f"rank-{rank}"), ended(sample(at, used, device=device) for at, used in points())
        )
        write_lines(
            records / memory_file(rank), (memory(one, rank, peak, device=device) for one in range(1, num_steps + 1))
        )
    resolved.mkdir(parents=True, exist_ok=True)
    text = RUN_FILE.format(name=name, hidden_size=hidden_size) + (TARGETS if targets else "")
    (resolved / "run.yaml").write_text(text)
    settings = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4, "train_batch_size": 16}
    zero = {"stage": 2, "reduce_bucket_size": 500_000_000}
    blocks = {"bf16": {"enabled": True}, "zero_optimization": zero}
    (resolved / "ds_config.json").write_text(json.dumps({**settings, **blocks, **(deepspeed or {})}))
    if plan is not None:
        write_plan(plan, folder)
    return folder


def write_start(
    run_dir: Path, rank: int, stages: Sequence[tuple[str, float]] = START_STAGES, **others: object
) -> list[dict[str, object]]:
    """What a rank notes of its start; gives the lines, of which it writes the file anew."""
    fields = {"rank": rank, "host": "h1", "start_id": 0, "pid": 100 + rank, **others}
    lines = [{"stage": stage, "monotonic_s": at_s, **fields} for stage, at_s in stages]
    write_lines(run_dir / "records" / start_file(rank), lines)
    return lines


def write_host(records: Path, first: int, peaks: list[int], *, num_samples: int, num_steps: int) -> None:
    """What the monitor of one host writes, of these GPUs, the first of which is the rank `first`'s."""
    seconds, places = 12.0 + num_steps, range(first, first + len(peaks))
    named = {rank: {"device": f"GPU-{rank}", "host": f"host{first}"} for rank in places}
    curves = [curve(peak, num_samples=num_samples, seconds=seconds)() for peak in peaks]
    write_lines(
        records / samples_file(f"host-{first}"),
        (
            sample(at, used, rank=rank, is_last=at == seconds, **named[rank])  # type: ignore[arg-type]
            for looks in zip(*curves, strict=True)
            for rank, (at, used) in zip(places, looks, strict=True)
        ),
    )
    # When a peak has risen, once a minute, and at the end.
    steps = sorted({1, *range(1, num_steps, max(1, num_steps // 300)), num_steps})
    write_lines(
        records / host_memory_file(first),
        (
            memory(number, rank, peak, **named[rank])
            for number in steps
            for rank, peak in zip(places, peaks, strict=True)
        ),
    )


def make_cpu_run(folder: Path, *, plan: Plan | None = None) -> Path:
    """A run of two ranks without a GPU, with the CPU allocator's peaks of the first."""
    make_gpu_run(folder, (0, 0), plan=plan)
    records = folder / "records"
    for rank in range(2):
        rows = [memory(number, rank, None, device="cpu") for number in range(1, 13)]
        if rank == 0:
            rows.append(
                memory(
                    12, 0, None, device="cpu", allocator_peaks_bytes={"forward": 400_000_000, "backward": 500_000_000}
                )
            )
        write_lines(records / memory_file(rank), rows)
        samples = (sample(at, None, device="cpu", rss_bytes=900_000_000 + 5_000_000 * at) for at in range(24))
        write_lines(records / samples_file(f"rank-{rank}"), samples)
    return folder


def make_monitor_run(folder: Path, *, status: int = 0, ends: bool = True) -> Path:
    """What `monitor -- CMD` leaves: two GPUs, no steps, no run file."""
    records = folder / "records"
    found = [event("start", "python job.py --size 3", 0.0, interval_s=0.1)]
    if ends:
        found.append(event("end", f"status {status}", 30.0, status=status, seconds=30.0))
    write_lines(records / EVENTS_FILE, found)
    for gpu, peak in enumerate((3_000_000_000, 1_000_000_000)):
        points = curve(peak, num_samples=100, seconds=30.0)
        rows = (sample(at, used, device=f"GPU-{gpu}", process_bytes=used - 300_000_000) for at, used in points())
        write_lines(records / samples_file(f"gpu-{gpu}"), ended(rows))
    (folder / "resolved").mkdir(parents=True)
    launch = {"launcher": "monitor", "argv": ["python", "job.py", "--size", "3"], "num_ranks": None, "host": "h1"}
    (folder / "resolved" / "launch.json").write_text(json.dumps(launch))
    return folder
