"""One rank's training, from building the engine to the summary."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dist_trainer import blackbox
from dist_trainer.checkpoints.changed import differences
from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.find import cannot_be_loaded
from dist_trainer.checkpoints.history import history
from dist_trainer.checkpoints.position import Position
from dist_trainer.cluster.rank import RankInfo
from dist_trainer.cluster.threads import count_host_cores
from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.data.workers import default_num_workers
from dist_trainer.exchange.foreign import refused
from dist_trainer.exchange.initial import Initial
from dist_trainer.memory.targets import Baseline
from dist_trainer.monitor.allocator import AllocatorWatch
from dist_trainer.monitor.memory import MemoryProbe
from dist_trainer.monitor.rank import RankMonitor
from dist_trainer.report import summary
from dist_trainer.report.summary import Summary
from dist_trainer.train import hygiene, muon, process
from dist_trainer.train.before_meeting import Prepared
from dist_trainer.train.checkpoints import loading
from dist_trainer.train.checkpoints.holders import Holders, holders_of
from dist_trainer.train.checkpoints.pacing import Pacing
from dist_trainer.train.checkpoints.saving import Kept, Saver
from dist_trainer.train.checkpoints.turns import Turns
from dist_trainer.train.compile_trial import CompileTrial
from dist_trainer.train.display import Display
from dist_trainer.train.engine import build_engine
from dist_trainer.train.job import RankJob
from dist_trainer.train.loop import Recorder, Run, train_phases
from dist_trainer.train.monitoring import stop_monitor
from dist_trainer.train.opening import open_run
from dist_trainer.train.preemption import Preemption
from dist_trainer.train.timeline import Timeline


def train(
    job: RankJob,
    prepared: Prepared,
    run_dir: Path,
    monitor: RankMonitor,
    timeline: Timeline,
    preemption: Preemption,
) -> Summary | None:
    """Trains. Returns the summary on rank 0, None on the others. Collective. Raises Stopped if a signal told it to."""
    timeline.begin("opening")
    rank, is_first = job.rank.rank, job.rank.rank == 0
    resolved, device = prepared.resolved, prepared.device
    display = Display(speaks=is_first)
    device_index = process.device_index(job.rank, device)
    probe = MemoryProbe(rank, torch.device("cuda", device_index) if device.kind == "cuda" else None, monitor)
    recorder = Recorder(run_dir / "records", rank, probe)
    if is_first:
        open_run(prepared, job.rank, run_dir, recorder=recorder, display=display)

    allocator = AllocatorWatch.begin() if job.measure_allocator else None
    timeline.begin("imports")
    muon.import_uncompiled_unless_used(resolved.deepspeed)
    hygiene.end_imports()
    timeline.begin("engine")
    engine = build_engine(resolved, device_index=device_index)
    if allocator is not None:
        allocator.watch(engine)
    torch.manual_seed(resolved.run.seed + rank)
    if prepared.loads_weights:
        timeline.begin("resume")
    holders = holders_of(engine, resolved.run.model.vocab_size)
    position = _starting_position(engine, holders, prepared, recorder=recorder, display=display)
    timeline.begin("first step")
    run = Run(
        resolved=resolved,
        rank=job.rank,
        engine=engine,
        data=prepared.data,
        num_workers=_num_workers(resolved, job.rank),
        run_dir=run_dir,
        recorder=recorder,
        display=display,
        position=position,
        checkpoints=_turns(engine, holders, prepared, run_dir, position, recorder=recorder, display=display),
        preemption=preemption,
        max_steps=job.max_steps,
        timeline=timeline,
        compile_trial=_compile_trial(engine, resolved, recorder=recorder, display=display),
        allocator=allocator,
    )
    try:
        train_phases(run)
    except BaseException:
        run.checkpoints.finish_what_was_begun()
        raise
    finally:
        display.close()
    blackbox.own().enter("shutdown")
    # Before the summary, because it reads what the monitors write.
    stop_monitor(monitor, job.rank)
    result = _sum_up(run, prepared.baseline) if is_first else None
    engine.destroy()
    return result


def _turns(
    engine: Any,
    holders: Holders,
    prepared: Prepared,
    run_dir: Path,
    position: Position,
    *,
    recorder: Recorder,
    display: Display,
) -> Turns:
    config = prepared.resolved.run.checkpoints
    kept = Kept(config.keep_newest, config.keep_every_steps)
    saver = Saver(engine, holders, run_dir / "checkpoints", prepared.made_by, kept)
    pacing = Pacing(history(run_dir / "records")) if config.every == "auto" and recorder.rank == 0 else None
    return Turns(saver, config, resumed_step=position.step, recorder=recorder, display=display, pacing=pacing)


def _starting_position(
    engine: Any, holders: Holders, prepared: Prepared, *, recorder: Recorder, display: Display
) -> Position:
    """The run's position: the beginning, or that of the checkpoint. This loads what the run starts from."""
    resume, initial = prepared.resume, prepared.initial
    for notice in (*resume.notices, *(initial.notices if initial else ())):
        display.note(f"notice     {notice}")
        recorder.event("notice", notice)
    found = resume.found
    if found is None:
        if initial is not None:
            _begin_with(holders, initial)
            display.note(f"weights    from {initial.said}")
            recorder.event("weights", initial.said)
        return Position()
    # With another seed the user wants other random numbers than those of the checkpoint.
    same_seed = found.index.made_by.run.get("seed") == prepared.resolved.run.seed
    try:
        loading.load(engine, holders, found, with_random_state=same_seed)
    except DamageError as damage:
        raise cannot_be_loaded(found.folder, f"cannot be loaded: {damage}") from damage
    position = found.index.position
    changed = differences(found, prepared.made_by)
    display.note(f"resumed from {found.folder} at step {position.step}")
    for line in changed:
        display.note(f"changed    {line}")
    recorder.event("resume", str(found.folder), step=position.step, changed=changed)
    return position


def _begin_with(holders: Holders, initial: Initial) -> None:
    try:
        loading.load_weights(holders, initial)
    except DamageError as damage:
        raise refused(damage) from damage


def _compile_trial(engine: Any, resolved: ResolvedRun, *, recorder: Recorder, display: Display) -> CompileTrial | None:
    if resolved.deepspeed.get("compile") is None or not resolved.run.compile_if_faster:
        return None

    def tell(line: str) -> None:
        display.note(f"notice     {line}")
        recorder.event("notice", line)

    return CompileTrial(engine, tell)


def _num_workers(resolved: ResolvedRun, rank: RankInfo) -> int:
    asked = resolved.run.data.num_workers
    return default_num_workers(count_host_cores(), rank.local_world_size) if asked is None else asked


def _sum_up(run: Run, baseline: Baseline | None) -> Summary:
    run.recorder.event("end", f"step {run.position.step}", step=run.position.step)
    result = summary.summarise(run.run_dir, baseline=baseline)
    summary.write(result, run.run_dir)
    width = max(100, shutil.get_terminal_size().columns)
    summary.show(result, run.run_dir, Console(highlight=False, width=width))
    return result
