"""Checkpoints as they lie on disk, of a tiny model and two ranks, made without an engine."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

from dist_trainer.checkpoints import data_file, folder, index
from dist_trainer.checkpoints.data_file import Part
from dist_trainer.checkpoints.index import INDEX_FILE, Counters, DataFacts, File, Index, Made, Parameter, Piece, State
from dist_trainer.checkpoints.position import Position
from dist_trainer.config.progress import Progress
from dist_trainer.data.sampler import DataPlace

CONTENT_FILE = index.data_file_name(0)
WORLD_SIZE = 2
SHAPES = {"wte.weight": (9, 8), "ln.weight": (8,), "head.bias": (5,)}
STATES = ("weight", "exp_avg")
RUN: dict[str, Any] = {
    "name": "mine",
    "seed": 1,
    "model": {"num_layers": 2, "hidden_size": 8, "num_heads": 2, "vocab_size": 9, "context_length": 16, "dropout": 0.0},
    "data": {"source": "a", "num_workers": None},
    "phases": [
        {"name": "short", "sequence_length": 8, "steps": 9},
        {"name": "long", "sequence_length": 16, "steps": 9},
    ],
    "memory": {"gc_every_steps": 100},
}
DEEPSPEED: dict[str, Any] = {
    "train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-3}},
    "zero_optimization": {"stage": 2},
    "bf16": {"enabled": True},
    "steps_per_print": 10,
}
DATA = DataFacts("a/train.bin", 1000, "f00", "t00")


def made(**changes: Any) -> Made:
    return Made(**{"world_size": WORLD_SIZE, "run": RUN, "deepspeed": DEEPSPEED, "data": {"short": DATA}, **changes})


def position(step: int) -> Position:
    return Position(step, {"short": Progress(step, step * 64)}, {"f00/16": DataPlace(0, step * 64, 8)})


def parts_of(rank: int) -> list[Part]:
    """Each rank has half of the elements that follow each other in all parameters, as ZeRO shares them out."""
    total = sum(_numel(shape) for shape in SHAPES.values())
    mine = range(total * rank // WORLD_SIZE, total * (rank + 1) // WORLD_SIZE)
    parts = []
    for state in STATES:
        first = 0
        for parameter, shape in SHAPES.items():
            start, stop = max(mine.start - first, 0), min(mine.stop - first, _numel(shape))
            if start < stop:
                parts.append(Part(parameter, state, start, stop, "F32"))
            first += _numel(shape)
    return parts


def values_of(part: Part, step: int) -> array[float]:
    """Different ones for every parameter, state, element and step."""
    kind = list(SHAPES).index(part.parameter) * len(STATES) + STATES.index(part.state)
    return array("f", (step * 10_000 + kind * 1000 + element for element in range(part.start, part.stop)))


def write_ranks_files(into: Path, step: int, *, made_by: Made | None = None) -> Index:
    """Both ranks' data files, and the index that belongs to them, which is not written."""
    files: list[File] = []
    states: dict[str, dict[str, list[Piece]]] = {name: {state: [] for state in STATES} for name in SHAPES}
    for rank in range(WORLD_SIZE):
        layout = data_file.lay_out(parts_of(rank))
        name = index.data_file_name(rank)
        contents = [memoryview(values_of(part, step)) for part in layout.parts]
        written = data_file.write(into / name, layout, contents)
        files.append(File(name, layout.num_bytes, len(layout.header), written.header))
        for part, offset, checksum in zip(layout.parts, layout.offsets, written.parts, strict=True):
            states[part.parameter][part.state].append(Piece(rank, part.start, part.stop, offset, checksum))
    return Index(
        position=position(step),
        made_by=made_by or made(),
        counters=Counters(step, 1, step * 4, step * 8, {"step": float(step)}, {"cur_scale": 65536.0}),
        files=tuple(files),
        parameters={
            name: Parameter(shape, {state: State("F32", tuple(states[name][state])) for state in STATES})
            for name, shape in SHAPES.items()
        },
        random=tuple({"cpu": "AAEC"} for _ in range(WORLD_SIZE)),
    )


def checkpoint(checkpoints_dir: Path, step: int, *, made_by: Made | None = None) -> Path:
    """A whole one, which `latest` names."""
    aside = folder.begin(checkpoints_dir, step)
    return folder.publish(aside, write_ranks_files(aside, step, made_by=made_by))


def content_of(checkpoint_dir: Path) -> dict[str, Any]:
    """What its index says."""
    content: dict[str, Any] = json.loads((checkpoint_dir / INDEX_FILE).read_text())["content"]
    return content


def write_content(checkpoint_dir: Path, content: bytes) -> None:
    """An index that says this, with the digest that belongs to it."""
    whole = b"".join((index._BEFORE, content, index._BETWEEN, index._digest(content), index._AFTER))
    (checkpoint_dir / INDEX_FILE).write_bytes(whole)


def _numel(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)
