"""The cells of the benchmark: runs that differ from the baseline in what is measured, and in nothing else.

Every cell trains the same tokens a step from the same initial weights on the same data, so that speed, memory and loss
can be compared. A cell is a DeepSpeed JSON and a run file, complete, from which it can be run again by itself.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from dist_trainer.config import run as run_file
from dist_trainer.config.deepspeed.batch import ACCUMULATION, MICRO
from dist_trainer.config.files import DEEPSPEED_FILE, RUN_FILE, find_file
from dist_trainer.config.optimisations import apply
from dist_trainer.config.request import Switches

Group = Literal["baseline", "noise", "alone", "without", "together", "preset", "zero", "strong", "weak"]

BASELINE = "baseline"
AGAIN = "baseline-again"
# The baseline with another seed in each round.
OTHER_SEEDS = "other-seeds"
ALL = "all"
# Sequences per rank and optimizer step, by model size. More than one, so that they can be accumulated.
SEQUENCES_A_RANK = {"tiny": 4, "small": 2, "medium": 2, "large": 2}
PRESETS = ("fast", "memory_saver")
ZERO = ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


@dataclass(frozen=True)
class Cell:
    """`deepspeed` and `run` are the contents of its two files.

    `optimisation`: the one that is on alone, or taken away from all; None in other groups. `num_ranks`: where cells
    differ in it; None where all have the same, that of the benchmark's settings.
    """

    name: str
    title: str
    group: Group
    deepspeed: Mapping[str, Any]
    run: Mapping[str, Any]
    optimisation: str | None = None
    num_ranks: int | None = None


Change = Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]


@dataclass(frozen=True)
class Optimisation:
    """`change` takes the DeepSpeed JSON and the run file without the optimisation, and returns both with it.

    `in_all`: whether it is one of all together. Those have bf16, which excludes fp16.
    """

    name: str
    title: str
    change: Change
    in_all: bool = True


def _switches(**switches: Any) -> Change:
    return lambda deepspeed, run: (apply(deepspeed, Switches(**switches)), run)


def _setting(section: str, **values: Any) -> Change:
    return lambda deepspeed, run: (deepspeed, {**run, section: {**run.get(section, {}), **values}})


def _top(**values: Any) -> Change:
    return lambda deepspeed, run: (deepspeed, {**run, **values})


def _accumulation(deepspeed: dict[str, Any], run: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    num_sequences = deepspeed[MICRO] * deepspeed[ACCUMULATION]
    return apply(deepspeed, Switches(micro_batch=1, accumulation=num_sequences)), run


def _hygiene(deepspeed: dict[str, Any], run: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {**deepspeed, "disable_python_gc": True}, run


OPTIMISATIONS = (
    Optimisation("accumulation", "gradient accumulation", _accumulation),
    Optimisation("bf16", "bf16", _switches(precision="bf16")),
    Optimisation("fp16", "fp16", _switches(precision="fp16"), in_all=False),
    Optimisation("checkpointing", "activation checkpointing", _switches(checkpointing=True)),
    Optimisation("loading", "loader workers", _setting("data", num_workers=1)),
    Optimisation("hygiene", "memory hygiene", _hygiene),
    Optimisation("fused", "fused AdamW", _switches(fused=True)),
    Optimisation("compile", "torch.compile", _switches(compile=True)),
    # Not in all: they have 16-bit weights, with which this does nothing.
    Optimisation("matmul", "matrix products in tf32 or bf32", _top(matmul="auto"), in_all=False),
    Optimisation("fused-loss", "fused loss", _setting("model", loss="fused")),
    # Not in all: in 16-bit the chunked loss is the fused one; a vocabulary of 2,048 needs no padding.
    Optimisation("chunked-loss", "chunked loss", _setting("model", loss="chunked"), in_all=False),
    Optimisation("pad-vocab", "padded vocabulary", _setting("model", pad_vocab=True), in_all=False),
)


def names() -> list[str]:
    """The names of all cells, in their order, as `--only` takes them."""
    return [cell.name for cell in matrix("tiny", num_steps=1)]


def matrix(model_size: str, *, num_steps: int, sequence_length: int | None = None) -> list[Cell]:
    """All cells for a shipped run file. `sequence_length` is by default the model's context.

    Raises UserError for a model size that is no shipped run file.
    """
    run = base_run(model_size, num_steps=num_steps, sequence_length=sequence_length)
    deepspeed = _with_batch(_shipped("baseline"), SEQUENCES_A_RANK.get(model_size, 2), 1)

    def cell(name: str, title: str, group: Group, *on: Optimisation, about: str | None = None) -> Cell:
        both = copy.deepcopy(deepspeed), copy.deepcopy(run)
        for one in on:
            both = one.change(*both)
        return Cell(name, title, group, *both, optimisation=about)

    every = [one for one in OPTIMISATIONS if one.in_all]
    return [
        cell(BASELINE, "baseline", "baseline"),
        cell(AGAIN, "baseline again", "noise"),
        cell(OTHER_SEEDS, "baseline, other seeds", "noise"),
        *(cell(one.name, one.title, "alone", one, about=one.name) for one in OPTIMISATIONS),
        *(
            cell(
                f"without-{one.name}",
                f"all without {one.title}",
                "without",
                *(other for other in every if other is not one),
                about=one.name,
            )
            for one in every
        ),
        cell(ALL, "all together", "together", *every),
        *(_as_shipped(name, "preset", deepspeed, run) for name in PRESETS),
        *(_as_shipped(name, "zero", deepspeed, run) for name in ZERO),
    ]


def base_run(model_size: str, *, num_steps: int, sequence_length: int | None = None) -> dict[str, Any]:
    """The shipped run file with one phase, the full loss, no loader workers, dropout, checkpoints or evaluation.

    Raises UserError for a model size that is no shipped run file.
    """
    path = find_file(model_size, replace(RUN_FILE, switch="--model-size"))
    config = run_file.check(run_file.read(path), source=str(path)).model_dump(mode="json", exclude_none=True)
    length = sequence_length or config["model"]["context_length"]
    return {
        **config,
        "model": {**config["model"], "loss": "full", "dropout": 0.0},
        "data": {**config["data"], "num_workers": 0},
        "phases": [{"name": "benchmark", "sequence_length": length, "steps": num_steps}],
        "checkpoints": {"every_steps": 0, "every_minutes": 0.0, "at_end": False},
        "evaluation": {"num_batches": 0},
    }


def _as_shipped(name: str, group: Group, baseline: Mapping[str, Any], run: Mapping[str, Any]) -> Cell:
    """The cell of a shipped DeepSpeed file, with the baseline's run file and number of sequences per step."""
    deepspeed = _shipped(name)
    num_sequences = baseline[MICRO] * baseline[ACCUMULATION]
    micro = min(int(deepspeed[MICRO]), num_sequences)
    return Cell(name, f"{name}.json", group, _with_batch(deepspeed, micro, num_sequences // micro), copy.deepcopy(run))


def _shipped(name: str) -> dict[str, Any]:
    path = find_file(name, DEEPSPEED_FILE)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    # Without its schedule: a run has few steps, and with a warm-up in them its loss would not be comparable.
    found.pop("scheduler", None)
    return found


def _with_batch(deepspeed: Mapping[str, Any], micro_batch: int, accumulation: int) -> dict[str, Any]:
    return {**deepspeed, MICRO: micro_batch, ACCUMULATION: accumulation}
