"""When to sample next: deadlines on the monotonic clock, so that neither slow samples nor late wake-ups add up."""

from __future__ import annotations

import math


def next_tick_s(start_s: float, interval_s: float, now_s: float) -> float:
    """The first `start_s` + n x `interval_s` after `now_s`. Missed ticks are skipped, not made up for."""
    passed = math.floor((now_s - start_s) / interval_s) + 1
    tick_s = start_s + passed * interval_s
    # Floating-point division may have put the quotient just below a whole number.
    return tick_s if tick_s > now_s else tick_s + interval_s
