"""What one rank of the real DeepSpeed engine allocates on the CPU, at any world size, in a single process.

`python -m dist_trainer.benchmark.measure SPEC.json` measures in a process of its own, because an engine leaves state
behind in DeepSpeed. torch's fake process group, whose collectives move no data, stands for the other ranks.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.config.request import Request, Switches
from dist_trainer.config.resolve import ResolvedRun, resolve
from dist_trainer.errors import RunError
from dist_trainer.logs import quiet_deepspeed
from dist_trainer.model.size import num_parameters
from dist_trainer.monitor.allocator import FORWARD, AllocatorProfile, MemoryEvent, mark_phases, peaks_of
from dist_trainer.train import process, step
from dist_trainer.train.engine import build_engine
from dist_trainer.units import counted

# What is measured saves nothing, so its plan has no copy for checkpoints either.
_NO_CHECKPOINTS = (
    *("checkpoints.every=null", "checkpoints.every_steps=0"),
    *("checkpoints.every_minutes=0", "checkpoints.at_end=false"),
)


@dataclass(frozen=True)
class Spec:
    """One rank to measure: the request as from a command line, the rank, world size, and sequence length in tokens."""

    request: Request
    rank: int
    world_size: int
    sequence_length: int
    num_steps: int = 2

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Spec:
        """`{"request": {"config": ..., "ds": ..., "settings": [...], "switches": {...}}, "rank": ..., ...}`."""
        request = dict(values["request"])
        request["settings"] = tuple(request.get("settings", ()))
        request["switches"] = Switches(**request.get("switches", {}))
        return cls(**{**values, "request": Request(**request)})


@dataclass(frozen=True)
class Measurement:
    """Bytes in the CPU allocator on one rank. `peaks_bytes`: phase -> peak. `*_live_bytes`: held after that moment."""

    peaks_bytes: dict[str, int]
    peak_bytes: int
    init_live_bytes: int
    first_step_live_bytes: int
    num_parameters: int
    seconds: float


def measure(
    resolved: ResolvedRun, *, rank: int, world_size: int, sequence_length: int, num_steps: int = 2
) -> Measurement:
    """Builds the engine and takes `num_steps` optimizer steps on random tokens. Call it only once per process.

    The tokens are made before recording begins, as a data loader makes them in other threads and processes.
    """
    measurement, _ = measure_with_events(
        resolved, rank=rank, world_size=world_size, sequence_length=sequence_length, num_steps=num_steps
    )
    return measurement


def measure_with_events(
    resolved: ResolvedRun, *, rank: int, world_size: int, sequence_length: int, num_steps: int = 2
) -> tuple[Measurement, list[MemoryEvent]]:
    """As `measure`; also returns every allocation and release, in order of time."""
    started_s = time.perf_counter()
    profile = AllocatorProfile()
    with fake_process_group(rank, world_size), values_do_not_matter():
        batches = _random_batches(resolved, sequence_length, num_steps)
        gc.collect()
        profile.start()
        engine = build_engine(resolved, device_index=0)
        mark_phases(engine, profile)
        for number in range(1, num_steps + 1):
            step.train_step(engine, batches, step=number)
        profile.stop()
        skipped = engine.skipped_steps
        engine.destroy()
    if skipped:
        raise RunError(
            "DeepSpeed left a step out, so its memory was not seen", found=f"{counted(skipped, 'step')} skipped"
        )
    events = profile.events()
    peaks = peaks_of(events)
    forwards = [live_bytes for phase, live_bytes in peaks.marks_live_bytes if phase == FORWARD]
    first_step_end = forwards[resolved.accumulation] if num_steps > 1 else peaks.end_live_bytes
    measurement = Measurement(
        peaks_bytes=peaks.peaks_bytes,
        peak_bytes=peaks.peak_bytes,
        init_live_bytes=forwards[0],
        first_step_live_bytes=first_step_end,
        num_parameters=num_parameters(resolved.run.model),
        seconds=round(time.perf_counter() - started_s, 1),
    )
    return measurement, events


@contextmanager
def fake_process_group(rank: int, world_size: int) -> Iterator[None]:
    """Makes this process one rank of a world whose other ranks do not exist."""
    import deepspeed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    process.export_rank(
        RankInfo(
            rank=rank,
            local_rank=0,
            world_size=world_size,
            local_world_size=1,
            master_addr="localhost",
            master_port=1,
            source="fake",
        )
    )
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        deepspeed.init_distributed(auto_mpi_discovery=False)
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def values_do_not_matter() -> Iterator[None]:
    """Allows for fake collectives, which leave uninitialised memory in their outputs: the loss may be anything, and
    DeepSpeed must not compare this rank's list of modules with rank 0's.
    """
    from deepspeed.runtime.zero import utils

    with (
        mock.patch.object(step, "_stop_unless_finite"),
        mock.patch.object(utils, "assert_lst_len_same_as_other_ranks"),
        mock.patch.object(utils, "get_lst_from_rank0", side_effect=lambda own: own),
    ):
        yield


def _random_batches(resolved: ResolvedRun, sequence_length: int, num_steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(resolved.run.seed)
    shape = (resolved.micro_batch, sequence_length + 1)
    tokens = [
        torch.randint(resolved.run.model.vocab_size, shape, generator=generator)
        for _ in range(num_steps * resolved.accumulation)
    ]
    return iter([(window[:, :-1].contiguous(), window[:, 1:].contiguous()) for window in tokens])


def resolve_spec(spec: Spec) -> ResolvedRun:
    """Resolved for this machine's CPU, so that what is measured is what would run on it."""
    request = replace(spec.request, settings=(*_NO_CHECKPOINTS, *spec.request.settings))
    with quiet_deepspeed():
        return resolve(request, world_size=spec.world_size, device=process.device_facts())


def measure_apart(spec: Spec) -> Measurement:
    """Measures in a process of its own, on one thread.

    Raises RunError if that process was killed, and otherwise whatever it raised.
    """
    process.measure_on_the_cpu()
    # Each is forked from a server that has imported everything and never measured anything.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "dist_trainer.benchmark.measure"])
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_measure_quietly, spec).result()
    except BrokenProcessPool as error:
        raise RunError(
            "the process that measured was killed",
            found=f"{spec.request.config}, {spec.request.ds}, rank {spec.rank} of {spec.world_size}",
            hint="most likely for want of memory: measure a smaller model, or on a larger machine",
        ) from error


def _measure_quietly(spec: Spec) -> Measurement:
    """Silences the process: DeepSpeed prints, and the result goes to the parent, not to the terminal."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    return measure_spec(spec)[0]


def _end_with_the_parent() -> None:
    """Without this, a measurement whose parent has ended would hold its memory for minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def measure_spec(spec: Spec) -> tuple[Measurement, list[MemoryEvent]]:
    """Measures in this process, which should not be used for anything else afterwards."""
    torch.set_num_threads(1)
    # The values are arbitrary, and arithmetic on denormal ones is very slow.
    torch.set_flush_denormal(True)
    process.measure_on_the_cpu()
    resolved = resolve_spec(spec)
    with quiet_deepspeed():
        return measure_with_events(
            resolved,
            rank=spec.rank,
            world_size=spec.world_size,
            sequence_length=spec.sequence_length,
            num_steps=spec.num_steps,
        )


def main(argv: list[str]) -> None:
    """SPEC.json (or - for stdin) [EVENTS.json]: prints the Measurement; writes every event to EVENTS.json, if given."""
    text = sys.stdin.read() if argv[0] == "-" else Path(argv[0]).read_text(encoding="utf-8")
    measurement, events = measure_spec(Spec.from_json(json.loads(text)))
    if len(argv) > 1:
        Path(argv[1]).write_text(json.dumps([asdict(event) for event in events]), encoding="utf-8")
    print(json.dumps(asdict(measurement)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
