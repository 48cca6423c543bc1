"""One cell measured once, in a process of its own: what is kept of it, a line of `measurements.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Annotated

from annotated_types import Ge

Seconds = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Machine:
    """The machine while a cell was measured; None is not known. `load`: the average number of processes that wanted a
    CPU in the minute before. `others_share`: the share of all CPU time that other processes than the cell's took.
    """

    load: float | None = None
    others_share: float | None = None
    frequency_mhz: float | None = None

    @property
    def is_busy(self) -> bool:
        return self.others_share is not None and self.others_share > MOST_OF_OTHERS


MOST_OF_OTHERS = 0.1


@dataclass(frozen=True)
class Measurement:
    """`failure` says in a line why there are no figures. Steps are those of rank 0, which all ranks take together.

    `round` and `place` count from 0, `place` within the round. `took_s`: the whole run, from its launch to its end.
    `first_step_s`: from the launch to the end of the first step. `warm_up_s`: the steps that are left out of `step_s`.
    `loss`: the mean over the last steps. `peak_bytes`: of the rank that has most, NVML's on a GPU, the CPU allocator's
    on a CPU; `planned_bytes` is the plan's for the same. `energy_j`: of all GPUs.
    """

    cell: str
    round: int
    place: int
    time_s: float
    took_s: Seconds = 0.0
    failure: str | None = None
    num_tokens: int = 0
    warm_up_s: tuple[Seconds, ...] = ()
    step_s: tuple[Seconds, ...] = ()
    data_wait_s: tuple[Seconds, ...] = ()
    first_step_s: Seconds | None = None
    loss: float | None = None
    peak_bytes: int | None = None
    planned_bytes: int | None = None
    energy_j: float | None = None
    machine: Machine = field(default_factory=Machine)

    @property
    def median_step_s(self) -> float:
        """Raises ValueError for a measurement that failed."""
        if not self.step_s:
            raise ValueError(f"{self.cell} has no steps: {self.failure}")
        return median(self.step_s)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.median_step_s

    @property
    def compile_s(self) -> float:
        """What the first steps took above the later ones: compilation, allocation, caches."""
        return max(0.0, sum(self.warm_up_s) - len(self.warm_up_s) * self.median_step_s)

    @property
    def data_wait_share(self) -> float:
        return sum(self.data_wait_s) / sum(self.step_s)
