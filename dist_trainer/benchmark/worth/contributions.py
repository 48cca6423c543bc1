"""What each optimisation is worth: alone, beside all the others, and as its share of what all are worth together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dist_trainer.benchmark.worth.cells import ALL, BASELINE, Cell
from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.ratios import Estimate, Logs, estimate, log_speeds, paired
from dist_trainer.benchmark.worth.rows import Row
from dist_trainer.typed_json import Finite


@dataclass(frozen=True)
class Contribution:
    """One optimisation. The estimates are ratios of speeds, with it to without it.

    `alone`: it alone, to the baseline; `in_all`: all together, to all without it; `share`: the geometric mean of both,
    its Shapley value as long as optimisations interact in pairs only (docs/benchmark.md). The reductions are fractions
    of the peak memory without it. `spoils_alone`: the loss of it alone is spoiled; `spoils_in_all`: that of all
    together is, and that of all without it is not.
    """

    optimisation: str
    title: str
    alone: Estimate | None
    in_all: Estimate | None
    share: Estimate | None
    reduction_alone: Finite | None
    reduction_in_all: Finite | None
    spoils_alone: bool
    spoils_in_all: bool

    @property
    def spoils(self) -> bool:
        return self.spoils_alone or self.spoils_in_all


@dataclass(frozen=True)
class Contributions:
    """`together`: the speed of all together, to the baseline's. `rest`: `together` divided by all shares, which leaves
    what three or more do together, and what those without a share do.
    """

    each: Sequence[Contribution]
    together: Estimate | None
    rest: Estimate | None


def contributions(cells: Sequence[Cell], measurements: Sequence[Measurement], rows: Sequence[Row]) -> Contributions:
    """Only what was measured both alone and in all has a share. `rows`: a row for each of the cells."""
    spoiled = {row.cell for row in rows if row.loss_is_spoiled}
    speeds = log_speeds(measurements)
    peaks = {row.cell: row.peak_bytes for row in rows if row.peak_bytes}
    alone = {cell.optimisation: cell for cell in cells if cell.group == "alone" and cell.optimisation}
    without = {cell.optimisation: cell for cell in cells if cell.group == "without" and cell.optimisation}
    each, shares = [], []
    for name, cell in alone.items():
        less = without[name].name if name in without else ""
        first = paired(speeds.get(cell.name, {}), speeds.get(BASELINE, {}))
        last = paired(speeds.get(ALL, {}), speeds.get(less, {}))
        share = {number: (first[number] + last[number]) / 2 for number in first.keys() & last.keys()}
        if share:
            shares.append(share)
        each.append(
            Contribution(
                optimisation=name,
                title=cell.title,
                alone=estimate(first),
                in_all=estimate(last),
                share=estimate(share),
                reduction_alone=_reduction(peaks, cell.name, BASELINE),
                reduction_in_all=_reduction(peaks, ALL, less),
                spoils_alone=cell.name in spoiled,
                spoils_in_all=ALL in spoiled and bool(less) and less not in spoiled,
            )
        )
    together = paired(speeds.get(ALL, {}), speeds.get(BASELINE, {}))
    return Contributions(tuple(each), estimate(together), estimate(_rest(together, shares)))


def _rest(together: Logs, shares: Sequence[Logs]) -> Logs:
    """For each round that has `together` and every share; empty if there are no shares."""
    if not shares:
        return {}
    common = set(together).intersection(*shares)
    return {number: together[number] - sum(share[number] for share in shares) for number in common}


def _reduction(peaks: Mapping[str, int], cell: str, base: str) -> float | None:
    return 1 - peaks[cell] / peaks[base] if cell in peaks and base in peaks else None
