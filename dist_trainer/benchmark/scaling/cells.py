"""The cells of a sweep: the same model and DeepSpeed JSON on different numbers of ranks.

The smallest world is one cell, beside which both kinds of scaling are judged. Strong scaling keeps the sequences of a
step, weak scaling those of a rank; the micro batch is the same in all, only the accumulation differs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from dist_trainer.benchmark.worth.cells import Cell, base_run
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.deepspeed import file as deepspeed_file
from dist_trainer.config.deepspeed.batch import ACCUMULATION, MICRO, TRAIN
from dist_trainer.config.files import DEEPSPEED_FILE, find_file
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.units import counted

Mode = Literal["strong", "weak"]
MODES: tuple[Mode, ...] = get_args(Mode)


def cells(
    model_size: str, worlds: Sequence[int], *, ds: str | None, num_steps: int, sequence_length: int | None = None
) -> list[Cell]:
    """`worlds` ascend; `ds` is a name or path, by default the run file's.

    Raises UserError for files that do not exist, or that are wrong for the smallest world.
    """
    run = base_run(model_size, num_steps=num_steps, sequence_length=sequence_length)
    smallest = worlds[0]
    resolved = resolve(Request(config=model_size, ds=ds), world_size=smallest, device=ANY_DEVICE)
    deepspeed = _without_schedule(deepspeed_file.read(find_file(ds or resolved.run.deepspeed, DEEPSPEED_FILE)))
    num_micro_batches = shared_by_all(resolved.accumulation * smallest, worlds)

    def cell(name: str, group: Literal["baseline", "strong", "weak"], world: int, accumulation: int) -> Cell:
        batch = {MICRO: resolved.micro_batch, ACCUMULATION: accumulation}
        title = counted(world, "rank") if group == "baseline" else f"{counted(world, 'rank')}, {group}"
        return Cell(name, title, group, {**deepspeed, **batch}, run, num_ranks=world)

    per_rank = num_micro_batches // smallest
    return [
        cell(cell_name(None, smallest), "baseline", smallest, per_rank),
        *(cell(cell_name("strong", world), "strong", world, num_micro_batches // world) for world in worlds[1:]),
        *(cell(cell_name("weak", world), "weak", world, per_rank) for world in worlds[1:]),
    ]


def cell_name(mode: Mode | None, world: int) -> str:
    """`mode` is None for the smallest world, which both have."""
    return f"{mode or 'world'}-{world}"


def shared_by_all(num_micro_batches: int, worlds: Sequence[int]) -> int:
    """The lowest multiple of every world that is not below `num_micro_batches`."""
    common = math.lcm(*worlds)
    return math.ceil(num_micro_batches / common) * common


def identity(cell: Cell, ds: str | None) -> str:
    """The DeepSpeed JSON of a sweep in a word, by which a folder of results is continued with the same one only."""
    digest = hashlib.sha256(json.dumps(cell.deepspeed, sort_keys=True).encode()).hexdigest()[:12]
    return f"{ds or cell.run['deepspeed']} {digest}"


def _without_schedule(deepspeed: Mapping[str, Any]) -> dict[str, Any]:
    """A run has few steps, and each says its own batch: a schedule's warm-up would be all of it."""
    return {key: value for key, value in deepspeed.items() if key not in ("scheduler", TRAIN)}
