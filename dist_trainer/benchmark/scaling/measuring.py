"""A sweep from what was asked to a benchmark that `worth.measuring` runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dist_trainer.benchmark.scaling.cells import cells, identity
from dist_trainer.benchmark.scaling.sweep import check_gpus, in_words
from dist_trainer.benchmark.worth.measuring import Bench, Wanted, begin, settings_for, steps_of_a_run


def prepare(wanted: Wanted, worlds: Sequence[int], *, ds: str | None, hardware: str, num_gpus: int) -> Bench:
    """Writes the cells into the folder of the results, as `worth.measuring.prepare` does.

    `wanted.only` and `wanted.num_ranks` do not count: `worlds`, which ascend, say what is measured. Raises UserError
    for more ranks than GPUs, wrong files, too few steps, and a folder with other settings.
    """
    check_gpus(worlds, num_gpus)
    every = cells(
        wanted.model_size,
        worlds,
        ds=ds,
        num_steps=steps_of_a_run(wanted),
        sequence_length=wanted.sequence_length,
    )
    settings = replace(
        settings_for(wanted, every, hardware=hardware),
        sweep=in_words(worlds),
        deepspeed=identity(every[0], ds),
    )
    return begin(wanted, settings, every, about="scaling")
