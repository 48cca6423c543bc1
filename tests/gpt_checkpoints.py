"""Checkpoints of a small GPT, of any number of ranks, written without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from checkpoint_folders import DEEPSPEED, RUN, made, position
from torch import Tensor

from dist_trainer.checkpoints import data_file, folder, index
from dist_trainer.checkpoints.data_file import Part
from dist_trainer.checkpoints.index import WEIGHT, Counters, File, Index, Parameter, Piece, State
from dist_trainer.config.run import ModelConfig
from dist_trainer.exchange.reading import DTYPES, memory_of
from dist_trainer.model.gpt import GPT

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def model(*, seed: int = 0, **changes: Any) -> GPT:
    """None of its weights or biases is zero or one."""
    shape = {"num_layers": 2, "hidden_size": 48, "num_heads": 4, "vocab_size": 70, "context_length": 32}
    torch.manual_seed(seed)
    gpt = GPT(ModelConfig(**{**shape, **changes})).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return gpt


def states_of(gpt: GPT) -> dict[str, dict[str, Tensor]]:
    """Each parameter's weight, without the vocabulary's padding, and an optimizer's state of it."""
    rows = {"token_embedding.weight": gpt.config.vocab_size}
    weights = {name: tensor.detach()[: rows.get(name)] for name, tensor in gpt.named_parameters()}
    return {name: {WEIGHT: weight, "exp_avg": weight * 2} for name, weight in weights.items()}


def write(
    checkpoints_dir: Path,
    gpt: GPT,
    states: Mapping[str, Mapping[str, Tensor]],
    *,
    num_ranks: int = 2,
    stage: int = 2,
    step: int = 8,
    data: Mapping[str, Any] | None = None,
    **said: Any,
) -> Path:
    """Each rank has an equal part of every state. `said`: what the index says of the model, and is not so."""
    aside = folder.begin(checkpoints_dir, step)
    pieces: dict[str, dict[str, list[Piece]]] = {name: {state: [] for state in of} for name, of in states.items()}
    files = []
    for rank in range(num_ranks):
        parts, contents = [], []
        for name, of in states.items():
            for state, tensor in of.items():
                flat, numel = tensor.reshape(-1), tensor.numel()
                start, stop = numel * rank // num_ranks, numel * (rank + 1) // num_ranks
                if start < stop:
                    parts.append(Part(name, state, start, stop, _NAMES[tensor.dtype]))
                    contents.append(memory_of(flat[start:stop].clone()))
        layout = data_file.lay_out(parts)
        written = data_file.write(aside / index.data_file_name(rank), layout, contents)
        files.append(File(index.data_file_name(rank), layout.num_bytes, len(layout.header), written.header))
        for part, offset, checksum in zip(layout.parts, layout.offsets, written.parts, strict=True):
            pieces[part.parameter][part.state].append(Piece(rank, part.start, part.stop, offset, checksum))
    made_by = made(
        world_size=num_ranks,
        run={**RUN, "model": {**gpt.config.model_dump(mode="json"), **said}},
        deepspeed={**DEEPSPEED, "zero_optimization": {"stage": stage}},
        **({} if data is None else {"data": dict(data)}),
    )
    whole = Index(
        position=position(step),
        made_by=made_by,
        counters=Counters(step, 0, step * 4, step * 8, {"step": float(step)}, {}),
        files=tuple(files),
        parameters={
            name: Parameter(
                tuple(of[WEIGHT].shape),
                {state: State(_NAMES[tensor.dtype], tuple(pieces[name][state])) for state, tensor in of.items()},
            )
            for name, of in states.items()
        },
        random=tuple({"cpu": "AAEC"} for _ in range(num_ranks)),
    )
    return folder.publish(aside, whole)
