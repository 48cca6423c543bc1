"""The training loop: the phases in order, their steps, and records after every step."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist_trainer.checkpoints.position import Position, order_name
from dist_trainer.cluster.rank import RankInfo
from dist_trainer.config.resolve import Phase, ResolvedRun
from dist_trainer.data.loader import BatchLoader, build_loader
from dist_trainer.data.sampler import BatchPlan, Order
from dist_trainer.data.tokens import TokenFile
from dist_trainer.endings import ERROR, end_event, show_life
from dist_trainer.errors import RunError
from dist_trainer.monitor.allocator import AllocatorWatch
from dist_trainer.monitor.memory import MemoryProbe
from dist_trainer.records import EVENTS_FILE, STEPS_FILE, Event, RecordWriter, StepRecord
from dist_trainer.train import hygiene
from dist_trainer.train.checkpoints.turns import Turns
from dist_trainer.train.compile_trial import CompileTrial
from dist_trainer.train.display import Display
from dist_trainer.train.preemption import Preemption, Stopped
from dist_trainer.train.step import StepResult, evaluate, train_step
from dist_trainer.train.timeline import Timeline, compile_s


@dataclass(frozen=True)
class PhaseData:
    """The token files of one phase; `validation` is None if there is none or the run file does not evaluate."""

    train: TokenFile
    validation: TokenFile | None


class Recorder:
    """Records memory on every rank, through its monitor; steps and events on rank 0 only."""

    def __init__(self, records_dir: Path, rank: int, probe: MemoryProbe) -> None:
        self.rank = rank
        self.probe = probe
        self._records_dir = records_dir
        self._steps = RecordWriter(records_dir / STEPS_FILE) if rank == 0 else None
        self._events = RecordWriter(records_dir / EVENTS_FILE) if rank == 0 else None

    def start(self, message: str, **facts: Any) -> None:
        """The event that begins a run, with the facts by which a reader can tell whether the run still goes on."""
        if self._events is not None:
            life = show_life(self._records_dir / EVENTS_FILE)
            self.event("start", message, **facts, **life, monotonic_s=time.monotonic())

    def phase(self, phase: Phase, *, step: int) -> None:
        """The event that begins a phase; memory samples bear this phase from now on."""
        self.probe.monitor.begin_phase(phase.name)
        self.event("phase", f"phase {phase.number}: {phase.name}", step=step, monotonic_s=time.monotonic())

    def step(self, record: StepRecord) -> None:
        """Raises RunError if the run's folder was moved or deleted."""
        if self._steps is not None:
            self._steps.write(record)
            self._check_place(self._steps)

    def memory(self, step: int, *, allocator_peaks_bytes: dict[str, int] | None = None) -> int:
        """Records this rank's memory; returns the bytes in use on the device, or on a CPU in the process."""
        reading = replace(self.probe.read(step), allocator_peaks_bytes=allocator_peaks_bytes)
        self.probe.monitor.write(reading)
        return reading.rss_bytes if reading.device_used_bytes is None else reading.device_used_bytes

    def event(self, kind: str, message: str, **facts: Any) -> None:
        """Raises RunError if the run's folder was moved or deleted."""
        if self._events is not None:
            self._events.write(Event(kind, message, self.rank, time.time(), facts))
            self._check_place(self._events)

    def _check_place(self, writer: RecordWriter) -> None:
        """Stops the run if its folder was moved or deleted: nobody would find its records and checkpoints."""
        if writer.is_in_place():
            return
        error = RunError(
            "the run's folder is gone: it was deleted or moved while the run was under way",
            where=str(self._records_dir.parent),
            hint="start the run again; where the folder was moved, name its new place with --run-dir",
        )
        if self._events is not None:
            # The open file is in the moved folder, where it is of use; in a deleted one it does no harm.
            self._events.write(end_event(ERROR, str(error), self.rank, type=type(error).__name__))
        raise error


@dataclass
class Run:
    """Everything that the loop needs on one rank. `position` changes.

    `timeline`: of this start, until its first step has ended.
    """

    resolved: ResolvedRun
    rank: RankInfo
    engine: Any
    data: list[PhaseData]
    num_workers: int
    run_dir: Path
    recorder: Recorder
    display: Display
    position: Position
    checkpoints: Turns
    preemption: Preemption
    max_steps: int | None
    allocator: AllocatorWatch | None = None
    timeline: Timeline | None = None
    compile_trial: CompileTrial | None = None

    @property
    def steps_left(self) -> float:
        """Optimizer steps left until `max_steps`; infinite without one."""
        return math.inf if self.max_steps is None else max(0, self.max_steps - self.position.step)


def train_phases(run: Run) -> None:
    """Trains every selected phase from the run's position to its end, or to `max_steps`.

    Raises Stopped, with everything saved, where a signal told the run to stop.
    """
    try:
        _train_phases(run)
    except Stopped:
        run.checkpoints.stop(run.position)
        run.preemption.leave()
        raise


def _train_phases(run: Run) -> None:
    hygiene.settle(run.engine)
    if all(_steps_left(run, phase) <= 0 for phase in run.resolved.phases):
        run.display.note(nothing_left(run.position, run.resolved.phases, run.max_steps))
    for phase, data in zip(run.resolved.phases, run.data, strict=True):
        if _steps_left(run, phase) <= 0:
            continue
        done = run.position.progress(phase.name).steps
        run.recorder.phase(phase, step=run.position.step)
        run.display.phase(phase, last_step=int(min(phase.steps, run.steps_left + done)))
        _train_phase(run, phase, data)
        hygiene.empty_cache()
        run.checkpoints.after_phase(run.position)
        if data.validation is not None:
            _evaluate_phase(run, phase, data.validation)


def _steps_left(run: Run, phase: Phase) -> float:
    return min(run.steps_left, phase.steps - run.position.progress(phase.name).steps)


def nothing_left(position: Position, phases: Sequence[Phase], max_steps: int | None) -> str:
    """The line for a run that already has all the steps that were asked for."""
    step = position.step
    if all(position.progress(phase.name).steps >= phase.steps for phase in phases):
        which = "that is the end of its phase" if len(phases) == 1 else "that is the end of its phases"
        return f"nothing left to do: the run stands at step {step}, and {which}"
    return f"nothing left to do: the run stands at step {step}, and --max-steps is {max_steps}"


def _train_phase(run: Run, phase: Phase, data: PhaseData) -> None:
    config = run.resolved.run
    order = _order(run, phase, data.train)
    name = order_name(data.train, order)
    place = run.position.places.get(name)
    sample = 0 if place is None else order.sample_at(place)
    steps_left = phase.steps - run.position.progress(phase.name).steps
    loader = _loader(run, data.train, order, first_sample=sample, num_steps=steps_left)
    with loader:
        batches = iter(loader)
        while run.position.progress(phase.name).steps < phase.steps and run.steps_left:
            step = run.position.step + 1
            result = train_step(
                run.engine,
                batches,
                step=step,
                before_micro_batch=run.preemption.turn,
                before_update=run.checkpoints.before_update,
            )
            run.preemption.stepped()
            if run.timeline is not None:
                run.timeline.end(compile_s=compile_s() if run.resolved.deepspeed.get("compile") is not None else None)
                run.timeline = None
            sample += run.resolved.train_batch_size
            run.position = run.position.after_step(
                phase.name, num_tokens=phase.tokens_per_step, order=name, place=order.place(sample)
            )
            _record_step(run, phase, step, result)
            if run.compile_trial is not None:
                run.compile_trial.after_step(phase.name, result.step_s)
            if run.allocator is not None and run.allocator.after_step():
                _record_allocator(run, run.allocator)
            hygiene.after_step(run.engine, config.memory, step)
            run.checkpoints.after_step(run.position, result.step_s)
    if run.allocator is not None:
        _record_allocator(run, run.allocator)


def _record_allocator(run: Run, allocator: AllocatorWatch) -> None:
    run.recorder.memory(run.position.step, allocator_peaks_bytes=allocator.end())
    run.allocator = None


def _record_step(run: Run, phase: Phase, step: int, result: StepResult) -> None:
    num_tokens = phase.tokens_per_step
    record = StepRecord(
        step=step,
        phase=phase.name,
        loss=result.loss,
        grad_norm=result.grad_norm,
        learning_rate=result.learning_rate,
        loss_scale=result.loss_scale,
        num_tokens=num_tokens,
        tokens_per_s=num_tokens / result.step_s,
        data_wait_s=result.data_wait_s,
        step_s=result.step_s,
        time_s=time.time(),
    )
    run.recorder.step(record)
    memory_bytes = None
    if step % run.resolved.run.memory.record_every_steps == 0:
        memory_bytes = run.recorder.memory(step)
    run.display.step(record, memory_bytes, run.position.progress(phase.name).steps)
    _write_to_deepspeed_monitors(run.engine, record)


def _write_to_deepspeed_monitors(engine: Any, record: StepRecord) -> None:
    """Writes to TensorBoard, CSV and so on, as the JSON enables them; DeepSpeed does not write the loss there."""
    if engine.monitor.enabled and engine.global_rank == 0:
        events = [("Train/loss", record.loss, record.step), ("Train/tokens_per_s", record.tokens_per_s, record.step)]
        if record.grad_norm is not None:
            events.append(("Train/grad_norm", record.grad_norm, record.step))
        engine.monitor.write_events(events)


def _evaluate_phase(run: Run, phase: Phase, validation: TokenFile) -> None:
    num_batches = run.resolved.run.evaluation.num_batches
    order = _order(run, phase, validation)
    loader = _loader(run, validation, order, first_sample=0, num_steps=num_batches, accumulation=1)
    with loader:
        loss = evaluate(run.engine, iter(loader), before_micro_batch=run.preemption.turn)
    run.recorder.event("evaluation", f"validation loss {loss:.4f}", phase=phase.name, step=run.position.step, loss=loss)
    run.display.note(f"phase {phase.number} ({phase.name}): validation loss {loss:.4f}")


def _order(run: Run, phase: Phase, tokens: TokenFile) -> Order:
    config = run.resolved.run
    return Order(tokens.num_tokens, phase.sequence_length, config.model.context_length, config.seed)


def _loader(
    run: Run, tokens: TokenFile, order: Order, *, first_sample: int, num_steps: int, accumulation: int | None = None
) -> BatchLoader:
    plan = BatchPlan(
        order,
        run.resolved.micro_batch,
        accumulation or run.resolved.accumulation,
        run.rank.world_size,
        first_sample,
    )
    return build_loader(
        tokens,
        plan,
        rank=run.rank.rank,
        num_steps=num_steps,
        num_workers=run.num_workers,
        prefetch_factor=run.resolved.run.data.prefetch_factor,
        pin_memory=run.engine.device.type == "cuda",
    )
