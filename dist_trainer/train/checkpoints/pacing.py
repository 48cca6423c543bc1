"""`checkpoints.every: auto`: when the next save is due, by the failures and the saves so far.

Rank 0 alone has it, and decides for all.
"""

from __future__ import annotations

from collections import deque

from dist_trainer.checkpoints import cadence
from dist_trainer.checkpoints.cadence import Failures, Save
from dist_trainer.checkpoints.history import History
from dist_trainer.units import counted, format_duration

# Until the first save, which shows what one costs.
FIRST_S = 60.0
# Of which the mean counts: a disk may become slower, and a run may have another number of ranks.
_NUM_SAVES = 9
# By how much the period changes before that is told again.
_TOLD_FACTOR = 1.5


class Pacing:
    """`history`: of the run's earlier starts."""

    def __init__(self, history: History) -> None:
        self._earlier = history.failures
        self._saves = deque(history.saves, maxlen=_NUM_SAVES)
        self._trained_s = 0.0
        self._told_s: float | None = None

    @property
    def period_s(self) -> float:
        """From the beginning of a save to that of the next."""
        return cadence.period_s(cadence.mean_of(self._saves), self.failures) if self._saves else FIRST_S

    @property
    def failures(self) -> Failures:
        return Failures(self._earlier.count, self._earlier.trained_s + self._trained_s)

    def after_step(self, step_s: float) -> None:
        self._trained_s += step_s

    def saved(self, save: Save) -> None:
        self._saves.append(save)

    def news(self) -> str | None:
        """A line for people where the period is not about what was told before."""
        period_s = self.period_s
        if self._told_s is not None and 1 / _TOLD_FACTOR < period_s / self._told_s < _TOLD_FACTOR:
            return None
        self._told_s = period_s
        if not self._saves:
            return f"checkpoint due first after {format_duration(period_s)}, to see what a save costs"
        cost_s, failures = cadence.mean_of(self._saves).cost_s, self.failures
        cost = format_duration(cost_s) if cost_s >= 1 else f"{cost_s:.2g}s"
        return (
            f"checkpoint due every {format_duration(period_s)}: a save costs {cost}, "
            f"{counted(failures.count, 'failure')} in {format_duration(failures.trained_s)}"
        )
