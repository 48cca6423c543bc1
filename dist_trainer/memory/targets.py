"""The verdict on memory: what each GPU took, against the target, the baseline, the plan, and the GPU's memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dist_trainer.config.run import TargetConfig
from dist_trainer.memory.plan import Figure, Plan

Judgement = Literal["met", "missed", "not judged"]

CPU = "cpu"
NO_GPU = "no GPU"
NO_READING = "NVML gave no reading"
NO_TARGETS = "no targets are set"


@dataclass(frozen=True)
class Measured:
    """The peaks of one GPU, or of one rank on a CPU, over a run. None: not measured.

    `source`: "rank-N", or for a watched program "gpu-N" or "host". `used_bytes`: in use on the device, by NVML;
    `used_version`: the version of the NVML call. `allocator_bytes`: the CPU allocator's peak by phase. `unknown`: since
    when and why `used_bytes` may have missed a peak; None if it was known throughout.
    """

    source: str
    rank: int | None
    host: str
    device: str
    used_bytes: int | None = None
    used_version: int | None = None
    device_bytes: int | None = None
    process_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    allocator_bytes: dict[str, int] | None = None
    resident_bytes: int | None = None
    is_sampled: bool = True
    unknown: str | None = None


@dataclass(frozen=True)
class Baseline:
    """What a run is compared with: the run file's figure, or the measured peak of the run in `run_dir`. `notes`: what
    else but the optimisations differs in that run.
    """

    num_bytes: int
    run_dir: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        return "the run file's figure" if self.run_dir is None else f"measured in {self.run_dir}"


@dataclass(frozen=True)
class Prediction:
    """A planned figure and the measured one. `error_percent`: (planned - measured) / measured x 100; positive if the
    plan was too high.
    """

    quantity: str
    planned_bytes: int
    low_bytes: int
    high_bytes: int
    measured_bytes: int
    error_percent: float
    is_within_band: bool


@dataclass(frozen=True)
class Verdict:
    """The judgement on one GPU. `peak_bytes`: all memory in use on it, by NVML; None if it could not be read.

    `reduction`: the fraction of the baseline that was saved, negative if more was used. Headrooms are negative if the
    limit was exceeded. `notes` qualify the figures.
    """

    source: str
    rank: int | None
    host: str
    device: str
    judgement: Judgement
    reason: str
    peak_bytes: int | None
    target_bytes: int | None
    target_headroom_bytes: int | None
    baseline_bytes: int | None
    baseline_origin: str | None
    reduction: float | None
    device_bytes: int | None
    device_headroom_bytes: int | None
    allocated_bytes: int | None
    reserved_bytes: int | None
    process_bytes: int | None
    allocator_bytes: dict[str, int] | None
    resident_bytes: int | None
    predictions: tuple[Prediction, ...]
    notes: tuple[str, ...]


def judge(
    measured: Iterable[Measured],
    targets: TargetConfig | None,
    *,
    baseline: Baseline | None = None,
    plan: Plan | None = None,
) -> list[Verdict]:
    """One verdict for each GPU, or for each rank on a CPU. `baseline` replaces the run file's baseline."""
    if baseline is None and targets is not None:
        baseline = Baseline(targets.baseline_bytes)
    return [_judge(one, targets, baseline, plan) for one in measured]


def predictions(plan: Plan, measured: Measured) -> tuple[Prediction, ...]:
    """The plan for this rank against its measured figures; empty if the plan is for another kind of device, or if the
    rank is not known.
    """
    if measured.rank is None or (plan.device == CPU) != (measured.device == CPU):
        return ()
    planned = plan.of(measured.rank)
    if plan.device != CPU:
        pairs = (
            ("allocated", planned.allocated, measured.allocated_bytes),
            ("reserved", planned.reserved, measured.reserved_bytes),
            ("NVML used", planned.device_used, measured.used_bytes),
        )
        return tuple(_predict(name, figure, peak) for name, figure, peak in pairs if figure is not None and peak)
    peaks = measured.allocator_bytes
    if not peaks:
        return ()
    phases = {phase.phase: phase.allocated_bytes for phase in planned.phases}
    return (
        _predict("CPU allocator", planned.allocated, max(peaks.values())),
        *(
            _predict(f"CPU allocator, {name}", Figure(phases[name], phases[name], phases[name]), peak)
            for name, peak in peaks.items()
            if name in phases and peak
        ),
    )


def _predict(quantity: str, figure: Figure, measured_bytes: int) -> Prediction:
    return Prediction(
        quantity=quantity,
        planned_bytes=figure.num_bytes,
        low_bytes=figure.low_bytes,
        high_bytes=figure.high_bytes,
        measured_bytes=measured_bytes,
        error_percent=100 * (figure.num_bytes - measured_bytes) / measured_bytes,
        is_within_band=figure.low_bytes <= measured_bytes <= figure.high_bytes,
    )


def _judge(one: Measured, targets: TargetConfig | None, baseline: Baseline | None, plan: Plan | None) -> Verdict:
    judgement, reason = _judgement(one, targets)
    peak_bytes = one.used_bytes if one.device != CPU else None
    is_known = peak_bytes is not None and one.unknown is None
    target_bytes = targets.target_bytes if targets else None
    return Verdict(
        source=one.source,
        rank=one.rank,
        host=one.host,
        device=one.device,
        judgement=judgement,
        reason=reason,
        peak_bytes=peak_bytes,
        target_bytes=target_bytes,
        target_headroom_bytes=_headroom(target_bytes, peak_bytes),
        baseline_bytes=baseline.num_bytes if baseline else None,
        baseline_origin=baseline.origin if baseline else None,
        reduction=1 - peak_bytes / baseline.num_bytes if is_known and peak_bytes and baseline else None,
        device_bytes=one.device_bytes,
        device_headroom_bytes=_headroom(one.device_bytes, peak_bytes),
        allocated_bytes=one.allocated_bytes,
        reserved_bytes=one.reserved_bytes,
        process_bytes=one.process_bytes,
        allocator_bytes=one.allocator_bytes,
        resident_bytes=one.resident_bytes,
        predictions=predictions(plan, one) if plan else (),
        notes=tuple(_notes(one, judgement)),
    )


def _judgement(one: Measured, targets: TargetConfig | None) -> tuple[Judgement, str]:
    if one.device == CPU:
        return "not judged", NO_GPU
    if one.used_bytes is None:
        return "not judged", NO_READING + (f": {one.unknown}" if one.unknown else "")
    if targets is None:
        return "not judged", NO_TARGETS
    # A peak above the target is a miss, even if later samples are missing.
    if one.used_bytes > targets.target_bytes:
        return "missed", "peak device memory by NVML"
    if one.unknown is not None:
        return "not judged", one.unknown
    return "met", "peak device memory by NVML"


def _notes(one: Measured, judgement: Judgement) -> Iterable[str]:
    if one.used_bytes is None:
        return
    if one.unknown is not None and judgement == "missed":
        yield one.unknown
    if not one.is_sampled:
        yield "the GPU was looked at when steps ended, not in between: sampling was off"
    if one.used_version == 1:
        yield "the figure includes the driver's own reserve, which this driver's NVML does not report separately"


def _headroom(limit_bytes: int | None, peak_bytes: int | None) -> int | None:
    return None if limit_bytes is None or peak_bytes is None else limit_bytes - peak_bytes
