"""Where an axis has its ticks, and how their labels read."""

from __future__ import annotations

import itertools
import math

_TIME_STEPS_S = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 14400, 21600, 43200, 86400),
)


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 x 10^n within [low, high], about `count` of them."""
    if high <= low:
        return [low]
    return _multiples(low, high, _nice((high - low) / count))


def time_ticks(low_s: float, high_s: float, *, count: int = 6) -> list[float]:
    """Multiples of seconds, minutes, hours or days as clocks have them (30 s, 5 min, 6 h), about `count` of them."""
    if high_s <= low_s:
        return [low_s]
    wanted = (high_s - low_s) / count
    step = next((step for step in _TIME_STEPS_S if step >= wanted), 86400 * _nice(wanted / 86400))
    return _multiples(low_s, high_s, step)


def format_ticks(values: list[float]) -> list[str]:
    """All with just the decimals that tell them apart; large ones with K or M, small ones as 1.5e-4."""
    if not values:
        return []
    largest = max(abs(value) for value in values)
    step = min((abs(b - a) for a, b in itertools.pairwise(values)), default=largest or 1.0)
    if 0 < largest < 0.01:
        power = math.floor(math.log10(largest))
        decimals = _decimals(step / 10.0**power)
        return ["0" if value == 0 else f"{value / 10.0**power:.{decimals}f}e{power}" for value in values]
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "K")):
        if largest >= size:
            unit = 1e3 if letter == "K" else size
            return ["0" if value == 0 else f"{value / unit:.{_decimals(step / unit)}f}{letter}" for value in values]
    return [f"{value:.{_decimals(step)}f}" for value in values]


def format_time(seconds: float) -> str:
    """0, 30s, 5m, 1h 30m, 2d 3h: only what is not zero."""
    if seconds < 60:
        return "0" if seconds == 0 else f"{seconds:g}s"
    whole = round(seconds)
    units = (("d", whole // 86400), ("h", whole % 86400 // 3600), ("m", whole % 3600 // 60), ("s", whole % 60))
    return " ".join(f"{count}{unit}" for unit, count in units if count)


def _nice(wanted: float) -> float:
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * 0.999)


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
