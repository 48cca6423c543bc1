"""A point for each number of ranks and kind of scaling: its figures, its speed-up, and what could be had at best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dist_trainer.benchmark.scaling.cells import MODES, Mode
from dist_trainer.benchmark.worth.cells import Cell
from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.ratios import Estimate, ratio
from dist_trainer.benchmark.worth.rows import Judgement, MatmulRates, Row, make_rows
from dist_trainer.config.deepspeed.batch import ACCUMULATION, MICRO
from dist_trainer.typed_json import Count, Finite, Seconds


@dataclass(frozen=True)
class Capacity:
    """What ranks of a world have to compute with: `num_units` GPUs, or cores that their threads keep busy, of all ranks
    together. `num_threads` is of each. `is_crowded`: they are more than the cores, and take turns on them.
    """

    num_threads: Count
    num_units: Count
    is_crowded: bool


@dataclass(frozen=True)
class Point:
    """None: not known. The first point of each kind is the smallest world, beside which the others are judged.

    `num_sequences`: of a step, over all ranks. `speed_up`: tokens/s as a multiple of the smallest world's, paired by
    round. `ideal`: the same if it were in proportion to the GPUs or cores in use. `efficiency` is the speed-up over the
    multiple of ranks, `share_of_ideal` the speed-up over `ideal`. Other figures are as in `Row`.
    """

    mode: Mode
    num_ranks: Count
    num_threads: Count
    num_units: Count
    is_crowded: bool
    micro_batch: Count
    accumulation: Count
    num_sequences: Count
    ideal: Finite
    cell: str
    title: str
    command: str
    judgement: Judgement
    num_rounds: Count
    num_failed_rounds: Count
    num_busy_rounds: Count
    failure: str | None = None
    tokens_per_s: Finite | None = None
    speed_up: Estimate | None = None
    efficiency: Finite | None = None
    share_of_ideal: Finite | None = None
    step_p50_s: Seconds | None = None
    step_p95_s: Seconds | None = None
    planned_bytes: Count | None = None
    peak_bytes: Count | None = None
    data_wait_share: Finite | None = None
    loss: Finite | None = None
    energy_j: Finite | None = None


def capacity(num_ranks: int, *, num_threads: int, num_cores: int, num_gpus: int) -> Capacity:
    """A rank has a GPU of its own; where the host has none, all ranks share the `num_cores`."""
    if num_gpus:
        return Capacity(num_threads, num_ranks, is_crowded=False)
    return Capacity(num_threads, min(num_cores, num_ranks * num_threads), is_crowded=num_ranks > num_cores)


def points(
    cells: Sequence[Cell],
    measurements: Sequence[Measurement],
    *,
    capacities: Mapping[int, Capacity],
    commands: Mapping[str, str],
) -> list[Point]:
    """`capacities`: by number of ranks. `commands`: by cell name. Cells not measured yet have a point too."""
    rows = {row.cell: row for row in make_rows(cells, measurements, commands=commands, rates=MatmulRates({}, {}))}
    base = cells[0]
    return [
        _point(mode, cell, base, rows[cell.name], capacities, speed_up(measurements, cell, base))
        for mode in MODES
        for cell in cells
        if cell.group in ("baseline", mode)
    ]


def speed_up(measurements: Sequence[Measurement], cell: Cell, base: Cell) -> Estimate | None:
    """In tokens/s; None for the base itself, and where no round has both."""
    steps = None if cell is base else ratio(measurements, cell.name, base.name)
    if steps is None:
        return None
    more = num_sequences(cell) / num_sequences(base)
    return replace(
        steps,
        value=steps.value * more,
        low=None if steps.low is None else steps.low * more,
        high=None if steps.high is None else steps.high * more,
    )


def num_sequences(cell: Cell) -> int:
    """Of a step, over all ranks."""
    return int(cell.deepspeed[MICRO] * cell.deepspeed[ACCUMULATION] * ranks(cell))


def ranks(cell: Cell) -> int:
    assert cell.num_ranks is not None
    return cell.num_ranks


def _point(
    mode: Mode, cell: Cell, base: Cell, row: Row, capacities: Mapping[int, Capacity], found: Estimate | None
) -> Point:
    here = capacities[ranks(cell)]
    ideal = here.num_units / capacities[ranks(base)].num_units
    return Point(
        mode=mode,
        num_ranks=ranks(cell),
        num_threads=here.num_threads,
        num_units=here.num_units,
        is_crowded=here.is_crowded,
        micro_batch=cell.deepspeed[MICRO],
        accumulation=cell.deepspeed[ACCUMULATION],
        num_sequences=num_sequences(cell),
        ideal=ideal,
        cell=cell.name,
        title=row.title,
        command=row.command,
        judgement=_judgement(cell, base, row, found),
        num_rounds=row.num_rounds,
        num_failed_rounds=row.num_failed_rounds,
        num_busy_rounds=row.num_busy_rounds,
        failure=row.failure,
        tokens_per_s=row.tokens_per_s,
        speed_up=found,
        efficiency=None if found is None else found.value * ranks(base) / ranks(cell),
        share_of_ideal=None if found is None else found.value / ideal,
        step_p50_s=row.step_p50_s,
        step_p95_s=row.step_p95_s,
        planned_bytes=row.planned_bytes,
        peak_bytes=row.peak_bytes,
        data_wait_share=row.data_wait_share,
        loss=row.loss,
        energy_j=row.energy_j,
    )


def _judgement(cell: Cell, base: Cell, row: Row, found: Estimate | None) -> Judgement:
    if row.judgement in ("failed", "not measured"):
        return row.judgement
    if cell is base:
        return ""
    return "no baseline" if found is None else found.verdict
