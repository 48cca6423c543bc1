"""Measurements of a sweep that nobody has to wait for."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from dist_trainer.benchmark.scaling.cells import cells
from dist_trainer.benchmark.scaling.points import Capacity, capacity, num_sequences, points, ranks
from dist_trainer.benchmark.scaling.results import KIND, SCHEMA_VERSION, Environment, Results
from dist_trainer.benchmark.worth.measurement import Machine, Measurement

WORLDS = (1, 2, 4)
CELLS = cells("tiny", WORLDS, ds="zero2", num_steps=8)
# tokens/s by cell; the smallest world's is 1000.
TOKENS_PER_S = {"strong-2": 1800.0, "strong-4": 2000.0, "weak-2": 1900.0, "weak-4": 3600.0}
GPUS = {world: capacity(world, num_threads=4, num_cores=16, num_gpus=4) for world in WORLDS}
# Two cores: one rank has both, two ranks have one each, four take turns.
CORES = {world: capacity(world, num_threads=max(1, 2 // world), num_cores=2, num_gpus=0) for world in WORLDS}


def rounds(
    *,
    num_rounds: int = 7,
    tokens_per_s: Mapping[str, float] = TOKENS_PER_S,
    failures: Mapping[str, str] | None = None,
    noise: float = 0.0,
    busy_rounds: tuple[int, ...] = (),
) -> list[Measurement]:
    state, found = random.Random(1), []
    for number in range(num_rounds):
        for at, cell in enumerate(CELLS):
            if cell.name in (failures or {}):
                found.append(Measurement(cell.name, number, at, 1.0, failure=(failures or {})[cell.name]))
                continue
            num_tokens = num_sequences(cell) * 256
            step_s = num_tokens / tokens_per_s.get(cell.name, 1000.0) * math.exp(state.gauss(0, noise))
            found.append(
                Measurement(
                    cell.name,
                    number,
                    at,
                    1.0,
                    num_tokens=num_tokens,
                    warm_up_s=(step_s,) * 3,
                    step_s=(step_s,) * 5,
                    data_wait_s=(0.01 * step_s,) * 5,
                    loss=7.0,
                    peak_bytes=800_000_000 // ranks(cell),
                    planned_bytes=790_000_000 // ranks(cell),
                    machine=Machine(load=1.0, others_share=0.5 if number in busy_rounds else 0.0),
                )
            )
    return found


def results(capacities: Mapping[int, Capacity] = CORES, **how: Any) -> Results:
    num_gpus = 0 if capacities is CORES else 4
    environment = Environment(
        model_size="tiny",
        deepspeed="zero2",
        sequence_length=256,
        num_steps=8,
        hardware="cores of a processor",
        num_cores=2,
        num_gpus=num_gpus,
        started_s=1_790_000_000.0,
        revision="0123abc",
        versions={"torch": "2.13.0"},
    )
    commands = {cell.name: f"python -m dist_trainer launch --config cells/{cell.name}.yaml" for cell in CELLS}
    found = points(CELLS, rounds(**how), capacities=capacities, commands=commands)
    return Results(SCHEMA_VERSION, KIND, environment, tuple(found))
