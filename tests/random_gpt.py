"""A GPT with weights that are far from those it is initialised with, so that every part of it bears on its logits."""

from __future__ import annotations

import torch

from dist_trainer.config.run import ModelConfig
from dist_trainer.model.gpt import GPT


def random_gpt(config: ModelConfig, *, std: float) -> GPT:
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    return model
