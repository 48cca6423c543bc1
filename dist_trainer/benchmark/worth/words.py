"""Figures of a benchmark in words: the page, its Markdown, its tables and the comparison say them alike."""

from __future__ import annotations

from dist_trainer.benchmark.worth.cells import Group
from dist_trainer.benchmark.worth.ratios import Estimate
from dist_trainer.benchmark.worth.rows import Row
from dist_trainer.units import format_bytes

NOTHING = "–"
SPOILS = "spoils the loss"
_MOST_DIGITS = 6

_GROUPS: dict[Group, str] = {
    "baseline": "baseline",
    "noise": "baseline",
    "alone": "one alone",
    "without": "all without one",
    "together": "all together",
    "preset": "presets",
    "zero": "ZeRO and offload",
}


def group_name(group: Group) -> str:
    return _GROUPS[group]


def times(ratio: Estimate) -> str:
    """'x1.50 (1.46 to 1.54)', without an interval where there is none."""
    return f"x{ratio.value:.2f}{_interval(ratio)}"


def worth(ratio: Estimate, *, is_spoiled: bool) -> str:
    """As `times`, but says so if the loss is spoiled, no difference is shown, or there are too few rounds."""
    if is_spoiled:
        return f"{SPOILS}, {times(ratio)}"
    if ratio.verdict == "no difference shown":
        return f"{ratio.verdict}{_interval(ratio)}"
    return f"{times(ratio)}, {ratio.verdict}" if ratio.verdict == "too few rounds" else times(ratio)


def judged(row: Row) -> str:
    """The judgement; with a percentage if it is "faster" or "slower"."""
    if row.ratio is None or row.judgement not in ("faster", "slower"):
        return row.judgement or NOTHING
    return f"{abs(row.ratio.value - 1):.1%} {row.judgement}"


def interval(ratio: Estimate | None) -> str:
    if ratio is None or ratio.low is None or ratio.high is None:
        return NOTHING
    digits = 2
    # More digits, so that an end that is not 1 does not look like 1.
    while digits < _MOST_DIGITS and any(end != 1 and round(end, digits) == 1 for end in (ratio.low, ratio.high)):
        digits += 1
    return f"{ratio.low:.{digits}f} to {ratio.high:.{digits}f}"


def percent(share: float | None, *, digits: int = 1) -> str:
    return NOTHING if share is None else f"{share:.{digits}%}"


def size(num_bytes: int | None) -> str:
    return NOTHING if num_bytes is None else format_bytes(num_bytes)


def seconds(duration_s: float | None) -> str:
    if duration_s is None:
        return NOTHING
    return f"{duration_s * 1000:.1f} ms" if duration_s < 1 else f"{duration_s:.2f} s"


def _interval(ratio: Estimate) -> str:
    return "" if ratio.low is None else f" ({interval(ratio)})"
