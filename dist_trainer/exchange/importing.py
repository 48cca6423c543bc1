"""The weights of another program as a checkpoint of this one, before its first step."""

from __future__ import annotations

import math
from pathlib import Path

from dist_trainer.checkpoints import data_file, folder
from dist_trainer.checkpoints.data_file import Part
from dist_trainer.checkpoints.index import (
    WEIGHT,
    Counters,
    File,
    Index,
    Made,
    Parameter,
    Piece,
    State,
    data_file_name,
)
from dist_trainer.checkpoints.position import Position
from dist_trainer.config.run import ModelConfig
from dist_trainer.data.atomic_folder import atomic_folder
from dist_trainer.disk import check_room, writing
from dist_trainer.encoding import as_utf8
from dist_trainer.errors import UserError
from dist_trainer.exchange.gpt2_form import weights_of
from dist_trainer.exchange.reading import memory_of
from dist_trainer.exchange.weights import Weights
from dist_trainer.versions import versions


def write_checkpoint(weights: Weights, output: Path) -> Path:
    """Makes `output`, a folder of checkpoints with step-0 alone, whole or not at all; returns the checkpoint.

    Raises UserError if `output` has something in it, if the number of attention heads is not known, or if the disk
    refuses; DamageError for files that can be read no longer.
    """
    model = _model_of(weights)
    parts, shapes = [], {}
    for one in weights_of(model):
        parts.append(Part(one.ours, WEIGHT, 0, math.prod(one.shape), weights.dtypes[one.ours]))
        shapes[one.ours] = one.shape
    layout = data_file.lay_out(parts)
    with atomic_folder(output) as made:
        check_room(made, layout.num_bytes, "the imported weights")
        aside = folder.begin(made, 0)
        path = aside / data_file_name(0)
        with writing(path, layout.num_bytes):
            contents = (memory_of(weights.read(part.parameter)) for part in parts)
            written = data_file.write(path, layout, contents)
        file = File(path.name, layout.num_bytes, len(layout.header), written.header)
        parameters = {
            part.parameter: Parameter(
                shapes[part.parameter],
                {WEIGHT: State(part.dtype, (Piece(0, 0, part.stop, offset, checksum),))},  # type: ignore[arg-type]
            )
            for part, offset, checksum in zip(parts, layout.offsets, written.parts, strict=True)
        }
        nothing_done = Counters(0, 0, 0, 0, {}, {})
        folder.publish(aside, Index(Position(), _made(weights, model), nothing_done, (file,), parameters, ()))
    return output / folder.name_of(0)


def _model_of(weights: Weights) -> ModelConfig:
    if weights.shape.num_heads is None:
        raise UserError(
            "the number of attention heads is not known: DeepSpeed's files do not say it",
            where=str(weights.folder),
            key="--num-heads",
            expected=f"a divisor of the hidden size, {weights.shape.hidden_size}",
            hint="add --num-heads N, the number that the model was trained with",
        )
    return ModelConfig(**vars(weights.shape), dropout=weights.dropout)


def _made(weights: Weights, model: ModelConfig) -> Made:
    run = {"name": as_utf8(weights.folder.name) or "imported", "model": model.model_dump(mode="json")}
    source = f"{weights.said}: {weights.folder}"
    return Made(1, run, {}, {}, versions(), imported_from=as_utf8(source))
