"""The parts of the planned memory beside the measured memory, as bars on one scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dist_trainer.memory.targets import CPU, Verdict
from dist_trainer.report.reading.findings import Findings
from dist_trainer.report.summary import Summary
from dist_trainer.report.verdict import fullest, label
from dist_trainer.units import format_bytes

# A part has the same colour in every report; what is not a tensor is grey.
COLOURS = {
    "parameters": "c0",
    "gradients": "c7",
    "optimizer states": "c4",
    "master weights": "c6",
    "activations": "c1",
    "logits and loss": "c2",
    "buckets": "c5",
    "gathered parameters": "c3",
    "step temporaries": "c8",
    "allocated": "c0",
    "allocator slack": "g1",
    "copy for checkpoints": "g2",
    "workspaces": "g2",
    "context": "g0",
    "not torch's": "g0",
}


@dataclass(frozen=True)
class Segment:
    """`percent` is of the scale that all bars share."""

    name: str
    num_bytes: int
    percent: float
    colour: str

    @property
    def text(self) -> str:
        return f"{self.name} {format_bytes(self.num_bytes)}"


@dataclass(frozen=True)
class Bar:
    name: str
    total: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Breakdown:
    """`target_percent`: where the target lies on the scale; None if there is no target or it does not apply."""

    title: str
    bars: tuple[Bar, ...]
    target_percent: float | None
    target_text: str
    parts: tuple[Segment, ...]
    phase: str


def breakdown(findings: Findings, summary: Summary) -> Breakdown | None:
    """For the GPU with the highest peak; None if there is no plan for it."""
    worst, plan = fullest(summary.verdicts), findings.asked.plan
    if worst is None or worst.rank is None or plan is None or (plan.device == CPU) != (worst.device == CPU):
        return None
    rank = plan.of(worst.rank)
    measured = _measured(worst)
    totals = [sum(rank.parts.values()), sum(measured.values())]
    target_bytes = worst.target_bytes if worst.device != CPU else None
    scale = max([*totals, target_bytes or 0]) * 1.02 or 1.0
    planned = sorted(rank.parts.items(), key=lambda part: (COLOURS.get(part[0], "g")[0] == "g", -part[1]))
    bars = [_bar("planned", dict(planned), scale)]
    if measured:
        bars.append(_bar("measured", measured, scale))
    return Breakdown(
        title=f"What the memory is made of, {label(worst)}",
        bars=tuple(bars),
        target_percent=100 * target_bytes / scale if target_bytes is not None else None,
        target_text=f"target {format_bytes(target_bytes)}" if target_bytes is not None else "",
        parts=bars[0].segments,
        phase=rank.peak_phase,
    )


def _measured(worst: Verdict) -> dict[str, int]:
    """The measured peak split by what torch reports. torch's peaks need not have occurred at one moment."""
    if worst.device == CPU:
        peak_bytes = max((worst.allocator_bytes or {}).values(), default=None)
        return {} if peak_bytes is None else {"allocated": peak_bytes}
    if worst.peak_bytes is None:
        return {}
    allocated, reserved = worst.allocated_bytes, worst.reserved_bytes
    if allocated is None or reserved is None or not allocated <= reserved <= worst.peak_bytes:
        return {"in use by NVML": worst.peak_bytes}
    return {
        "allocated": allocated,
        "allocator slack": reserved - allocated,
        "not torch's": worst.peak_bytes - reserved,
    }


def _bar(name: str, parts: Mapping[str, int], scale: float) -> Bar:
    segments = tuple(
        Segment(part, num_bytes, 100 * num_bytes / scale, COLOURS.get(part, "c0"))
        for part, num_bytes in parts.items()
        if num_bytes > 0
    )
    return Bar(name, format_bytes(sum(parts.values())), segments)
