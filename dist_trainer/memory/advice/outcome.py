"""A plan against its limits: the device's memory, the target, the baseline, and the host's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dist_trainer.memory.plan import Figure, Plan, needed
from dist_trainer.units import counted, format_gb

State = Literal["under", "close", "over"]


@dataclass(frozen=True)
class HostMemory:
    """The memory of one host, and how many ranks share it."""

    num_bytes: int
    num_ranks: int


@dataclass(frozen=True)
class Standing:
    """A planned figure against a limit. 'close': the figure is below the limit, but the top of its band is not."""

    needed: Figure
    limit_bytes: int

    @property
    def state(self) -> State:
        if self.needed.num_bytes > self.limit_bytes:
            return "over"
        return "close" if self.needed.high_bytes > self.limit_bytes else "under"

    @property
    def over_bytes(self) -> int:
        """By how much the figure exceeds the limit; negative if it is below."""
        return self.needed.num_bytes - self.limit_bytes


def device_standing(plan: Plan) -> Standing | None:
    """The plan against the GPU's memory; None on a CPU, and if the GPU's memory is not known."""
    if plan.device == "cpu" or plan.device_bytes is None:
        return None
    return Standing(needed(plan.worst), plan.device_bytes)


def target_standing(plan: Plan) -> Standing | None:
    """The plan against the run file's target, which is for a GPU; None without one, and on a CPU."""
    if plan.device == "cpu" or plan.target_bytes is None:
        return None
    return Standing(needed(plan.worst), plan.target_bytes)


def host_standing(plan: Plan, host: HostMemory | None) -> Standing | None:
    """All ranks of a host against its memory: on a CPU everything they hold, on GPUs what is offloaded."""
    if host is None:
        return None
    if plan.device == "cpu":
        figure = needed(plan.worst)
    else:
        num_bytes = max(rank.host_bytes for rank in plan.ranks)
        figure = Figure(num_bytes, num_bytes, num_bytes)
    if not figure.num_bytes:
        return None
    many = host.num_ranks
    return Standing(Figure(many * figure.num_bytes, many * figure.low_bytes, many * figure.high_bytes), host.num_bytes)


def reduction(plan: Plan) -> float | None:
    """The fraction of the baseline that the plan saves; None on a CPU, or without a baseline."""
    if plan.device == "cpu" or not plan.baseline_bytes:
        return None
    return 1 - needed(plan.worst).num_bytes / plan.baseline_bytes


def is_good(plan: Plan, host: HostMemory | None) -> bool:
    """Whether the plan fits the device and the host and meets the target, as far as these are known."""
    known = (device_standing(plan), target_standing(plan), host_standing(plan, host))
    return all(standing is None or standing.state != "over" for standing in known)


def plan_line(plan: Plan, host: HostMemory | None) -> str:
    """The plan in one line, as printed before a run."""
    worst = plan.worst
    figure = format_gb(needed(worst).num_bytes)
    if plan.device == "cpu":
        line = f"{figure} a rank planned (peak in {worst.peak_phase}, without the process itself)"
        if host is not None:
            ranks = counted(host.num_ranks, "rank")
            line += f"; {ranks} on a host of {format_gb(host.num_bytes)}"
        return line
    line = f"{figure} a GPU planned (peak in {worst.peak_phase})"
    if plan.device_bytes is not None:
        line += f", of {format_gb(plan.device_bytes)}"
    target = target_standing(plan)
    if target is not None:
        line += f"; target {format_gb(target.limit_bytes)}: {'missed' if target.state == 'over' else 'met'}"
    return line
