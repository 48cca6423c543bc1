"""A row for each cell: what its measurements came to, beside the baseline's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from dist_trainer.benchmark.worth.cells import BASELINE, OTHER_SEEDS, Cell, Group
from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.ratios import Estimate, Logs, estimate, log_speeds, paired
from dist_trainer.config.deepspeed.rules import precision
from dist_trainer.config.run import ModelConfig
from dist_trainer.model.size import num_flops_per_token
from dist_trainer.typed_json import Count, Finite, Seconds

# The one word or phrase that stands beside a cell's name.
Judgement = Literal[
    "",
    "faster",
    "slower",
    "no difference shown",
    "too few rounds",
    "spoils the loss",
    "failed",
    "not measured",
    "no baseline",
]
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class MatmulRates:
    """FLOP/s of large matrix products on all ranks' cores or GPUs together, measured by the same benchmark, and by the
    GPU's data sheet. By dtype: "fp32", "bf16", "fp16", and "tf32" or "bf32", which are fp32 matrices multiplied in that
    precision. A dtype that is not known, or that the hardware lacks, is missing.
    """

    measured: Mapping[str, Finite]
    data_sheet: Mapping[str, Finite]


@dataclass(frozen=True)
class Row:
    """None: not known. `failure` is the reason of the latest failed round, though others may have been measured.

    `tokens_per_s`: the median over rounds of each round's median step. `speed`: the same as a geometric mean, with its
    interval, by which results are compared with others. `ratio`: to the baseline's speed, paired by round. Step times
    are of all rounds' steps together; `first_step_s`, `compile_s`, `loss` and `energy_j` are medians over rounds.
    `planned_bytes` and `peak_bytes` are the highest of any round; `reduction` is 1 - peak / the baseline's peak. `mfu`
    is the model's FLOP/s over `MatmulRates.measured`, `mfu_of_data_sheet` over `MatmulRates.data_sheet`. `ran_in`: the
    precision of the weights, if the hardware lacks that of the cell. `data_wait_share` is of the step time.
    `loss_is_spoiled`: the loss lies further above the baseline's than the losses of other seeds lie apart.
    """

    cell: str
    title: str
    group: Group
    optimisation: str | None
    command: str
    judgement: Judgement
    num_rounds: Count
    num_failed_rounds: Count
    num_busy_rounds: Count
    failure: str | None = None
    tokens_per_s: Finite | None = None
    speed: Estimate | None = None
    ratio: Estimate | None = None
    step_p50_s: Seconds | None = None
    step_p95_s: Seconds | None = None
    first_step_s: Seconds | None = None
    compile_s: Seconds | None = None
    planned_bytes: Count | None = None
    peak_bytes: Count | None = None
    reduction: Finite | None = None
    mfu: Finite | None = None
    mfu_of_data_sheet: Finite | None = None
    data_wait_share: Finite | None = None
    loss: Finite | None = None
    loss_is_spoiled: bool | None = None
    energy_j: Finite | None = None
    ran_in: str | None = None


def make_rows(
    cells: Sequence[Cell],
    measurements: Sequence[Measurement],
    *,
    commands: Mapping[str, str],
    rates: MatmulRates,
) -> list[Row]:
    """A row for each cell, in their order. `commands`: by cell name, the command that runs it by itself."""
    speeds = log_speeds(measurements)
    by_cell = {cell.name: latest(measurements, cell.name) for cell in cells}
    baseline = [one for one in by_cell.get(BASELINE, []) if one.has_figures]
    spread = loss_spread(baseline, by_cell.get(OTHER_SEEDS, []))
    return [
        _row(
            cell,
            by_cell[cell.name],
            baseline,
            command=commands.get(cell.name, ""),
            rates=rates,
            speeds=speeds,
            spread=spread,
        )
        for cell in cells
    ]


def latest(measurements: Iterable[Measurement], cell: str) -> list[Measurement]:
    """The cell's measurements, one a round: of a round measured twice the later."""
    return [one for _, one in sorted({one.round: one for one in measurements if one.cell == cell}.items())]


def loss_spread(baseline: Iterable[Measurement], other_seeds: Iterable[Measurement]) -> float | None:
    """From the lowest to the highest loss over the seeds, the baseline's among them; None with too few."""
    own = _median(one.loss for one in baseline)
    losses = [one.loss for one in other_seeds if one.loss is not None and math.isfinite(one.loss)]
    if own is None or len(losses) < FEWEST_SEEDS:
        return None
    return max(*losses, own) - min(*losses, own)


def _row(
    cell: Cell,
    measured: Sequence[Measurement],
    baseline: Sequence[Measurement],
    *,
    command: str,
    rates: MatmulRates,
    speeds: Mapping[str, Logs],
    spread: float | None,
) -> Row:
    good = [one for one in measured if one.has_figures]
    failures = [one.failure or "no step was taken" for one in measured if one not in good]
    ratio = None if cell.name == BASELINE else estimate(paired(speeds.get(cell.name, {}), speeds.get(BASELINE, {})))
    tokens_per_s = _median(one.tokens_per_s for one in good)
    steps_s = [step_s for one in good for step_s in one.step_s]
    peak_bytes = _highest(one.peak_bytes for one in good)
    base_bytes = _highest(one.peak_bytes for one in baseline)
    ran_in = next((one.precision for one in good if one.precision), None) or precision(dict(cell.deepspeed))
    dtype = _product_dtype(ran_in, cell, rates)
    flops_per_s = None if tokens_per_s is None else tokens_per_s * _flops_per_token(cell)
    loss = _median(one.loss for one in good)
    is_spoiled = _is_spoiled(cell, good, baseline, spread)
    return Row(
        cell=cell.name,
        title=cell.title,
        group=cell.group,
        optimisation=cell.optimisation,
        command=command,
        judgement=_judgement(cell, is_measured=bool(good), failures=failures, ratio=ratio, is_spoiled=is_spoiled),
        num_rounds=len(good),
        num_failed_rounds=len(failures),
        num_busy_rounds=sum(one.machine.is_busy for one in good),
        failure=failures[-1] if failures else None,
        tokens_per_s=tokens_per_s,
        speed=_speed(good),
        ratio=ratio,
        step_p50_s=_quantile(steps_s, 0.5),
        step_p95_s=_quantile(steps_s, 0.95),
        first_step_s=_median(one.first_step_s for one in good),
        compile_s=_median(one.compile_s for one in good if one.warm_up_s),
        planned_bytes=_highest(one.planned_bytes for one in measured),
        peak_bytes=peak_bytes,
        reduction=1 - peak_bytes / base_bytes if peak_bytes is not None and base_bytes else None,
        mfu=_share(flops_per_s, rates.measured.get(dtype)),
        mfu_of_data_sheet=_share(flops_per_s, rates.data_sheet.get(dtype)),
        data_wait_share=_data_wait_share(good),
        loss=loss,
        loss_is_spoiled=is_spoiled,
        energy_j=_median(one.energy_j for one in good),
        ran_in=None if ran_in == precision(dict(cell.deepspeed)) else ran_in,
    )


def _judgement(
    cell: Cell, *, is_measured: bool, failures: Sequence[str], ratio: Estimate | None, is_spoiled: bool | None
) -> Judgement:
    if not is_measured:
        return "failed" if failures else "not measured"
    if cell.name == BASELINE:
        return ""
    if is_spoiled:
        return "spoils the loss"
    return "no baseline" if ratio is None else ratio.verdict


def _is_spoiled(
    cell: Cell, good: Sequence[Measurement], baseline: Sequence[Measurement], spread: float | None
) -> bool | None:
    """None where that is not known, and for the baseline's own losses, by which the others are judged."""
    if cell.group in ("baseline", "noise"):
        return None
    losses = [one.loss for one in good if one.loss is not None]
    if any(not math.isfinite(loss) for loss in losses):
        return True
    loss, own = _median(losses), _median(one.loss for one in baseline)
    return None if loss is None or own is None or spread is None else loss - own > spread


def _speed(good: Sequence[Measurement]) -> Estimate | None:
    return estimate({one.round: math.log(one.tokens_per_s) for one in good})


def _flops_per_token(cell: Cell) -> int:
    length = max(phase["sequence_length"] for phase in cell.run["phases"])
    return num_flops_per_token(ModelConfig(**cell.run["model"]), length)


def _product_dtype(weights: str, cell: Cell, rates: MatmulRates) -> str:
    """The precision in which a cell with these weights multiplies matrices. For fp32 weights the run file's `matmul`
    says it, which asks for what the hardware has beside fp32: as train/matmul.py `choose` decides.
    """
    asked = cell.run.get("matmul", "fp32")
    if weights != "fp32" or asked == "fp32":
        return weights
    known = {*rates.measured, *rates.data_sheet}
    return next((dtype for dtype in ("tf32", "bf32") if dtype in known and asked in ("auto", dtype)), "fp32")


def _data_wait_share(good: Sequence[Measurement]) -> float | None:
    known = [one for one in good if one.data_wait_s]
    total_s = sum(sum(one.step_s) for one in known)
    return sum(sum(one.data_wait_s) for one in known) / total_s if total_s else None


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _median(values: Iterable[float | None]) -> float | None:
    """Of those that are known and finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return median(known) if known else None


def _highest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _quantile(values: Sequence[float], fraction: float) -> float | None:
    """Interpolated between the two nearest values, as numpy.quantile does; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    below = math.floor(fraction * (len(ordered) - 1))
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (fraction * (len(ordered) - 1) - below) * (ordered[above] - ordered[below])
