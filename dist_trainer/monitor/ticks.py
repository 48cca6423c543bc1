"""When to look next: deadlines on the monotonic clock, so that neither work nor lateness makes the series drift."""

from __future__ import annotations

import math


def next_tick_s(start_s: float, interval_s: float, now_s: float) -> float:
    """The first of `start_s` + n x `interval_s` after `now_s`: what was missed is skipped, not made up for."""
    passed = math.floor((now_s - start_s) / interval_s) + 1
    tick_s = start_s + passed * interval_s
    # Rounding can put the quotient just below a whole number.
    return tick_s if tick_s > now_s else tick_s + interval_s
