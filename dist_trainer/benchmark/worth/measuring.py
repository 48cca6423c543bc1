"""The benchmark from its first round to its last: what is measured, what is left, and where it goes on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from dist_trainer.benchmark.worth.cells import AGAIN, BASELINE, OTHER_SEEDS, Cell, matrix
from dist_trainer.benchmark.worth.folder import Folder, Settings, free_folder
from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.rounds import Turn, left, remaining_s, turns
from dist_trainer.benchmark.worth.running import measure
from dist_trainer.cache import code_digest
from dist_trainer.errors import UserError
from dist_trainer.launch.hosts.devices import smallest_visible_gpu
from dist_trainer.memory.targets import CPU
from dist_trainer.units import format_duration

RESULTS = Path("benchmark_results")
# Part of every selection: the baseline, and what shows how much speed and loss vary by themselves.
ALWAYS = (BASELINE, AGAIN, OTHER_SEEDS)
NUM_WARM_UP = 3
# Optimizer steps of one run, by model size: more make its median steadier, and a round longer.
NUM_STEPS = {"tiny": 8, "small": 6, "medium": 6, "large": 6}
# Below six rounds there is no interval; with seven most slow-downs of 5% are shown.
NUM_ROUNDS = {"tiny": 7, "small": 6, "medium": 6, "large": 6}


@dataclass(frozen=True)
class Wanted:
    """What was asked for; None: the default for the model size. `only`: names of cells, None for all."""

    model_size: str
    only: tuple[str, ...] | None = None
    num_ranks: int = 2
    num_rounds: int | None = None
    num_steps: int | None = None
    sequence_length: int | None = None
    launcher: str = "torchrun"
    results: Path | None = None


@dataclass(frozen=True)
class Bench:
    """A benchmark to be run or continued."""

    folder: Folder
    settings: Settings
    cells: tuple[Cell, ...]
    num_rounds: int

    def settings_of(self, name: str) -> Settings:
        """The settings as they are for this cell, with its own number of ranks if it has one."""
        cell = next(cell for cell in self.cells if cell.name == name)
        return replace(self.settings, num_ranks=cell.num_ranks or self.settings.num_ranks)


def prepare(wanted: Wanted, *, hardware: str) -> Bench:
    """Writes the cells into the folder of the results: a new one, or one of the same settings, which is continued.

    Raises UserError for unknown cells and model sizes, too few steps, and a folder with other settings.
    """
    num_steps = steps_of_a_run(wanted)
    every = matrix(wanted.model_size, num_steps=num_steps, sequence_length=wanted.sequence_length)
    cells = _selected(every, wanted.only)
    return begin(wanted, settings_for(wanted, cells, hardware=hardware), cells)


def steps_of_a_run(wanted: Wanted) -> int:
    """Raises UserError where all of them would be warm-up."""
    num_steps = wanted.num_steps or NUM_STEPS.get(wanted.model_size, NUM_STEPS["small"])
    if num_steps <= NUM_WARM_UP:
        raise UserError(
            "too few steps: the first ones warm up",
            where="--steps",
            found=num_steps,
            expected=f"more than {NUM_WARM_UP}",
        )
    return num_steps


def settings_for(wanted: Wanted, cells: Sequence[Cell], *, hardware: str) -> Settings:
    phase = cells[0].run["phases"][0]
    return Settings(
        model_size=wanted.model_size,
        num_ranks=wanted.num_ranks,
        num_steps=phase["steps"],
        num_warm_up=NUM_WARM_UP,
        sequence_length=phase["sequence_length"],
        launcher=wanted.launcher,
        hardware=hardware,
        code=code_digest(sorted(Path(__file__).parents[2].rglob("*.py"))),
    )


def begin(wanted: Wanted, settings: Settings, cells: Sequence[Cell], *, about: str = "") -> Bench:
    """Writes the cells into the folder of the results. `about` ends a new folder's name.

    Raises UserError for a folder with other settings.
    """
    name = "-".join((date.today().isoformat(), settings.model_size, _slug(settings.hardware), *filter(None, [about])))
    folder = Folder(wanted.results or free_folder(RESULTS, name, settings))
    folder.begin(settings, cells)
    num_rounds = wanted.num_rounds or NUM_ROUNDS.get(wanted.model_size, NUM_ROUNDS["small"])
    return Bench(folder, settings, tuple(cells), num_rounds)


def run(bench: Bench, *, say: Callable[[str], None]) -> list[Measurement]:
    """Makes all measurements that are left, and keeps each at once.

    Raises KeyboardInterrupt if it is told to end; the measurement that was under way is not kept.
    """
    measured = bench.folder.measurements()
    todo = left(turns([cell.name for cell in bench.cells], bench.num_rounds), measured)
    while todo:
        turn = todo[0]
        say(progress_line(bench, turn, todo, measured))
        made = measure(bench.folder, turn, bench.settings_of(turn.cell))
        bench.folder.add(made)
        measured.append(made)
        if made.failure is not None:
            say(f"           {turn.cell} failed: {made.failure}")
        todo = left(todo, measured)
    return measured


def progress_line(bench: Bench, turn: Turn, todo: Sequence[Turn], measured: Sequence[Measurement]) -> str:
    seconds = remaining_s(todo, measured)
    rest = "" if seconds is None else f", {format_duration(seconds)} to go"
    return f"round {turn.round + 1} of {bench.num_rounds}: {turn.cell} ({len(todo)} left{rest})"


def hardware_here() -> str:
    """The name of the GPU that a rank started here would see, or "cpu"."""
    gpu = None if os.environ.get("DS_ACCELERATOR") == CPU else smallest_visible_gpu(os.environ)
    return CPU if gpu is None else gpu.name


def _selected(every: Sequence[Cell], only: Sequence[str] | None) -> list[Cell]:
    if only is None:
        return list(every)
    known = [cell.name for cell in every]
    for name in only:
        if name not in known:
            raise UserError("there is no such cell", where="--only", found=name, expected=f"some of {', '.join(known)}")
    return [cell for cell in every if cell.name in (*ALWAYS, *only)]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
