"""What the measurements come to: rows, a Markdown table, and losses that should agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from settings import Setting

from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.ratios import log_speeds, paired, ratio
from dist_trainer.config.run import ModelConfig
from dist_trainer.model.size import num_flops_per_token
from dist_trainer.units import format_bytes

# Relative. Sums of fp32 numbers in another order change the loss of a few steps by less than this.
LOSS_TOLERANCE = 2e-4


@dataclass(frozen=True)
class Row:
    """One contestant. `ratio`: ours' speed as a multiple of its speed, with `low` and `high`: the 95% interval if
    `is_interval`, else the least and the greatest of the rounds. None: not known. `mfu`: of the measured rate.
    """

    name: str
    num_rounds: int
    tokens_per_s: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    is_interval: bool = False
    peak_bytes: int | None = None
    mfu: float | None = None
    loss: float | None = None
    failure: str | None = None


def rows(setting: Setting, measurements: Sequence[Measurement], flops_per_s: float | None) -> list[Row]:
    """One for each contestant that was measured, in the setting's order."""
    ours = next(iter(setting.ours))
    per_token = num_flops_per_token(ModelConfig(**setting.model), setting.sequence_length)
    speeds = log_speeds(measurements)
    found = []
    for name in (*setting.ours, *setting.peers):
        of_it = [one for one in measurements if one.cell == name]
        good = [one for one in of_it if one.has_figures]
        failure = next((one.failure for one in of_it if one.failure), None)
        if not good:
            found += [Row(name, 0, failure=failure)] if of_it else []
            continue
        tokens_per_s = median(one.tokens_per_s for one in good)
        row = Row(
            name,
            num_rounds=len(good),
            tokens_per_s=tokens_per_s,
            peak_bytes=max(one.peak_bytes or 0 for one in good),
            mfu=tokens_per_s * per_token / flops_per_s if flops_per_s else None,
            loss=good[-1].loss,
            failure=failure,
            **_compared(measurements, ours, name, speeds) if name != ours else {},
        )
        found.append(row)
    return found


def _compared(
    measurements: Sequence[Measurement], ours: str, peer: str, speeds: dict[str, dict[int, float]]
) -> dict[str, Any]:
    estimate = ratio(measurements, ours, peer)
    if estimate is None:
        return {}
    if estimate.low is not None:
        return {"ratio": estimate.value, "low": estimate.low, "high": estimate.high, "is_interval": True}
    logs = paired(speeds[ours], speeds[peer]).values()
    return {"ratio": estimate.value, "low": math.exp(min(logs)), "high": math.exp(max(logs))}


def other_losses(found: Sequence[Row]) -> list[str]:
    """A line for each row whose loss is not the first row's, beyond what rounding explains in fp32."""
    known = [row for row in found if row.loss is not None]
    if not known or known[0].loss is None:
        return []
    expected = known[0].loss
    return [
        f"{row.name}: loss {row.loss:.6f}, {known[0].name}: {expected:.6f}"
        for row in known[1:]
        if row.loss is not None and abs(row.loss - expected) > LOSS_TOLERANCE * expected
    ]


def table(name: str, setting: Setting, found: Sequence[Row], *, num_steps: int) -> str:
    """A Markdown table under a line that says what was trained."""
    lines = [
        f"**{name}**: {setting.num_ranks} x {setting.micro_batch} x {setting.accumulation} sequences of "
        f"{setting.sequence_length} tokens a step (ranks x micro batch x accumulation), {num_steps} steps",
        "",
        "| | tokens/s | ours / it | peak of a rank | MFU | loss | rounds |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found:
        if row.tokens_per_s is None:
            lines.append(f"| {row.name} | failed | | | | | 0 |")
            continue
        mfu = "" if row.mfu is None else f"{row.mfu:.0%}"
        loss = "" if row.loss is None else f"{row.loss:.4f}"
        peak = format_bytes(row.peak_bytes or 0)
        lines.append(
            f"| {row.name} | {row.tokens_per_s:,.0f} | {_ratio(row)} | {peak} | {mfu} | {loss} | {row.num_rounds} |"
        )
    return "\n".join(lines)


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    between = f"{row.low:.3f} to {row.high:.3f}"
    return f"{row.ratio:.3f} ({between})" if row.is_interval else f"{row.ratio:.3f} (rounds: {between})"


def as_json(found: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in found]
