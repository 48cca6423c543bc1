"""How often torch.compile traces the model: what is traced again in a run costs minutes there."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from dist_trainer.config.run import ModelConfig
from dist_trainer.model.checkpointing import Checkpointing
from dist_trainer.model.gpt import GPT

CONFIG = ModelConfig(num_layers=1, hidden_size=32, num_heads=2, vocab_size=64, context_length=64, dropout=0.0)


@pytest.mark.parametrize("checkpointing", [None, Checkpointing(num_checkpoints=None, cpu=False, synchronize=False)])
def test_micro_batches_evaluations_and_a_third_sequence_length_trace_nothing_again(
    checkpointing: Checkpointing | None,
) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = GPT(CONFIG, checkpointing)
    # What is traced again is the tracer's choice; what it hands its graphs to does not matter.
    model.compile(backend="eager")
    graphs = []
    for num_tokens in (16, 32, 48):
        tokens = torch.zeros(2, num_tokens, dtype=torch.int64)
        for _ in range(2):
            for _micro_step in range(2):
                model.train()(tokens, tokens).backward()
            graphs.append(counters["stats"]["unique_graphs"])
            with torch.no_grad():
                model.eval()(tokens, tokens)
            graphs.append(counters["stats"]["unique_graphs"])
    # One to train with and one to evaluate with; both once more for any other length.
    assert graphs == [1, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4]
    assert counters["graph_break"] == {}
