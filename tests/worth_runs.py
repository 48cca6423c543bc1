"""Measurements of a benchmark that nobody has to wait for."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dist_trainer.benchmark.worth.cells import BASELINE, OPTIMISATIONS, OTHER_SEEDS, Cell, matrix
from dist_trainer.benchmark.worth.measurement import Machine, Measurement
from dist_trainer.benchmark.worth.results import Environment, Results, make_results
from dist_trainer.benchmark.worth.rows import MatmulRates

CELLS = matrix("tiny", num_steps=12)
ENVIRONMENT = Environment(
    model_size="tiny",
    sequence_length=128,
    num_steps=12,
    num_ranks=1,
    num_threads=2,
    hardware="2 cores of a processor",
    started_s=1_790_000_000.0,
    revision="0123abc",
    versions={"torch": "2.13.0", "deepspeed": "0.19.8"},
    rates=MatmulRates(measured={"fp32": 1e11, "bf16": 4e11}, data_sheet={}),
)
# How many times as fast as the baseline a cell is.
ALONE = {"bf16": 1.5, "checkpointing": 0.8, "fused": 1.1, "compile": 1.2}
WITHOUT = {f"without-{one.name}": 2.0 for one in OPTIMISATIONS} | {
    "without-bf16": 1.25,
    "without-checkpointing": 2.5,
    "without-compile": 1.6,
}
SPEEDS = {**ALONE, **WITHOUT, "all": 2.0}
LOSSES = {"fast": 9.5}
FAILURES = {"fp16": "this processor has no fp16 arithmetic"}


def rounds(
    cells: Sequence[Cell] = CELLS,
    *,
    num_rounds: int = 7,
    speeds: Mapping[str, float] = SPEEDS,
    losses: Mapping[str, float] = LOSSES,
    failures: Mapping[str, str] = FAILURES,
    failed_rounds: Sequence[tuple[str, int]] = (),
    noise: float = 0.005,
    tokens_per_s: float = 1000.0,
    **more: Any,
) -> list[Measurement]:
    """`more`: what every measurement that did not fail has besides."""
    state, found = random.Random(1), []
    for number in range(num_rounds):
        order = cells if number % 2 == 0 else list(reversed(cells))
        for place, cell in enumerate(order):
            if cell.name in failures or (cell.name, number) in failed_rounds:
                reason = failures.get(cell.name, f"out of memory in round {number}")
                found.append(Measurement(cell.name, number, place, 1.0, failure=reason))
                continue
            step_s = 500 / tokens_per_s / speeds.get(cell.name, 1.0) * math.exp(state.gauss(0, noise))
            loss = losses.get(cell.name, 6.0 + (0.1 * number if cell.name == OTHER_SEEDS else 0.0))
            one = Measurement(
                cell.name,
                number,
                place,
                1.0,
                num_tokens=500,
                warm_up_s=(3 * step_s, step_s),
                step_s=(step_s,) * 9 + (2 * step_s,),
                data_wait_s=(0.01 * step_s,) * 10,
                first_step_s=4.0,
                loss=loss,
                peak_bytes=1_000_000_000 if cell.name == BASELINE else 750_000_000,
                planned_bytes=760_000_000,
                machine=Machine(load=1.0, others_share=0.2 if number == 2 else 0.01),
            )
            found.append(replace(one, **more))
    return found


def results(cells: Sequence[Cell] = CELLS, environment: Environment = ENVIRONMENT, **how: Any) -> Results:
    commands = {cell.name: f"python -m dist_trainer launch --config cells/{cell.name}.yaml" for cell in cells}
    return make_results(cells, rounds(cells, **how), environment, commands)
