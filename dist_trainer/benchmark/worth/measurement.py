"""What is kept of one cell measured once, in a run of its own: a line of `measurements.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from dist_trainer.typed_json import Count, Finite, Seconds


@dataclass(frozen=True)
class Machine:
    """The machine while a cell was measured; None: not known. `load`: its load average over the minute before.
    `others_share`: the share of all CPU time that was taken by processes other than the cell's.
    """

    load: Finite | None = None
    others_share: Finite | None = None
    frequency_mhz: Finite | None = None

    @property
    def is_busy(self) -> bool:
        return self.others_share is not None and self.others_share > MOST_OF_OTHERS


MOST_OF_OTHERS = 0.1


@dataclass(frozen=True)
class Measurement:
    """`failure` says in a line why there are no figures. Steps are those of rank 0, which all ranks take together.

    `round` and `place` count from 0, `place` within the round. `time_s`: when it began, as Unix time. `took_s`: the
    whole run, from its launch to its end. `precision`: of the weights, which is another than the cell's where the
    hardware lacks that one. `num_tokens`: of one step, over all ranks. `warm_up_s`: the times of the
    first steps, which `step_s` leaves out. `first_step_s`: from the launch to the end of the first step. `loss`: the
    mean over the last steps. `peak_bytes`: of the rank that has most, NVML's on a GPU, the CPU allocator's on a CPU;
    `planned_bytes` is the plan's for the same. `energy_j`: of all GPUs.
    """

    cell: str
    round: Count
    place: Count
    time_s: Seconds
    took_s: Seconds = 0.0
    failure: str | None = None
    num_tokens: Count = 0
    warm_up_s: tuple[Seconds, ...] = ()
    step_s: tuple[Seconds, ...] = ()
    data_wait_s: tuple[Seconds, ...] = ()
    first_step_s: Seconds | None = None
    loss: Finite | None = None
    peak_bytes: Count | None = None
    planned_bytes: Count | None = None
    energy_j: Finite | None = None
    machine: Machine = field(default_factory=Machine)
    precision: Literal["fp32", "bf16", "fp16"] | None = None

    @property
    def has_figures(self) -> bool:
        """Whether the run came to its end, with tokens and steps of more than 0 s."""
        return self.failure is None and self.num_tokens > 0 and bool(self.step_s) and self.median_step_s > 0

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
