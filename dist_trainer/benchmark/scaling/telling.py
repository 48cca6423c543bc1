"""Writes what was measured so far of a sweep: results.json, results.csv, report.html, report.md."""

from __future__ import annotations

import os
from pathlib import Path

from dist_trainer.benchmark.scaling.page import make_page, write_page
from dist_trainer.benchmark.scaling.points import capacity, points, ranks
from dist_trainer.benchmark.scaling.results import KIND, SCHEMA_VERSION, Environment, Results, write_results
from dist_trainer.benchmark.worth.measuring import Bench
from dist_trainer.benchmark.worth.telling import commands, hardware_in_words, versions
from dist_trainer.cluster.threads import count_own_cores, threads_here


def tell(bench: Bench, *, num_gpus: int) -> tuple[Path, ...]:
    """Writes the tables of all measurements there are, and returns their paths."""
    results = results_of(bench, num_gpus=num_gpus)
    return (*write_results(results, bench.folder.path), *write_page(make_page(results), bench.folder.path))


def results_of(bench: Bench, *, num_gpus: int) -> Results:
    measured, settings, num_cores = bench.folder.measurements(), bench.settings, count_own_cores()
    capacities = {
        world: capacity(world, num_threads=threads_here(os.environ, world), num_cores=num_cores, num_gpus=num_gpus)
        for world in map(ranks, bench.cells)
    }
    environment = Environment(
        model_size=settings.model_size,
        deepspeed=settings.deepspeed.rpartition(" ")[0],
        sequence_length=settings.sequence_length,
        num_steps=settings.num_steps,
        hardware=hardware_in_words(settings.hardware),
        num_cores=num_cores,
        num_gpus=num_gpus,
        started_s=min((one.time_s for one in measured), default=0.0),
        revision=settings.code[:10],
        versions=versions(),
    )
    return Results(
        SCHEMA_VERSION,
        KIND,
        environment,
        tuple(points(bench.cells, measured, capacities=capacities, commands=commands(bench))),
    )
