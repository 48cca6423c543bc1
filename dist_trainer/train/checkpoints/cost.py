"""What a save costs the run: how long steps waited for it, and how much slower those were that ran beside it."""

from __future__ import annotations

from collections import deque
from statistics import median

# Enough for a median, and few enough to be of the time around the save.
_NUM_QUIET = 50


class SaveCost:
    """Of one save after the other, by the durations of steps in seconds."""

    def __init__(self) -> None:
        self._quiet: deque[float] = deque(maxlen=_NUM_QUIET)
        self._beside: list[float] = []

    def after_step(self, step_s: float, *, waited_s: float, is_saving: bool) -> None:
        """`waited_s`: how much of the step it waited for a save. `is_saving`: whether one was under way in it."""
        (self._beside if is_saving else self._quiet).append(step_s - waited_s)

    def of_save(self, held_s: float) -> float:
        """Of the save that has ended now, for which steps waited so long in all; of slower steps the median counts."""
        slower_s = median(self._beside) - median(self._quiet) if self._beside and self._quiet else 0.0
        cost_s = held_s + len(self._beside) * max(0.0, slower_s)
        self._beside.clear()
        return cost_s

    def forget(self) -> None:
        """To be called after a phase, because the next one's steps are others."""
        self._quiet.clear()
        self._beside.clear()
