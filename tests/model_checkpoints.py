"""Checkpoints of a whole GPT, made without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoint_folders import RUN, made, position
from torch import Tensor

from dist_trainer.checkpoints import data_file, folder, index
from dist_trainer.checkpoints.data_file import Part
from dist_trainer.checkpoints.index import Counters, DataFacts, File, Index, Parameter, Piece, State
from dist_trainer.model.gpt import GPT

WORLD_SIZE = 2


def model_checkpoint(checkpoints_dir: Path, step: int, model: GPT, data: dict[str, DataFacts], **shape: Any) -> Path:
    """A whole one, which `latest` names: of each parameter two ranks have a half. `shape`: what it says of the model
    and is not so.
    """
    weights = {name: parameter.detach().flatten() for name, parameter in model.named_parameters()}
    pieces: dict[str, list[Piece]] = {name: [] for name in weights}
    aside = folder.begin(checkpoints_dir, step)
    files = []
    for rank in range(WORLD_SIZE):
        parts = [_half(name, values, rank) for name, values in weights.items()]
        layout = data_file.lay_out(parts)
        contents = [memoryview(weights[part.parameter][part.start : part.stop].numpy()) for part in parts]
        written = data_file.write(aside / index.data_file_name(rank), layout, contents)
        files.append(File(index.data_file_name(rank), layout.num_bytes, len(layout.header), written.header))
        for part, offset, checksum in zip(layout.parts, layout.offsets, written.parts, strict=True):
            pieces[part.parameter].append(Piece(rank, part.start, part.stop, offset, checksum))
    described = Index(
        position=position(step),
        made_by=made(run={**RUN, "model": {**model.config.model_dump(mode="json"), **shape}}, data=data),
        counters=Counters(step, 0, step, step, {}, {}),
        files=tuple(files),
        parameters={
            name: Parameter(tuple(parameter.shape), {"weight": State("F32", tuple(pieces[name]))})
            for name, parameter in model.named_parameters()
        },
        random=({"cpu": "AAEC"},) * WORLD_SIZE,
    )
    return folder.publish(aside, described)


def _half(name: str, values: Tensor, rank: int) -> Part:
    middle = values.numel() // 2
    start, stop = (0, middle) if rank == 0 else (middle, values.numel())
    return Part(name, "weight", start, stop, "F32")
