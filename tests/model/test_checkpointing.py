"""How DeepSpeed's activation_checkpointing keys shape the segments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dist_trainer.model.checkpointing import Checkpointing


@pytest.mark.parametrize(
    ("num_checkpoints", "lengths"),
    [(None, [1] * 7), (7, [1] * 7), (100, [1] * 7), (1, [7]), (2, [3, 4]), (3, [2, 2, 3])],
)
def test_blocks_are_cut_into_nearly_equal_segments(num_checkpoints: int | None, lengths: list[int]) -> None:
    blocks = [nn.Identity() for _ in range(7)]
    segments = Checkpointing(num_checkpoints=num_checkpoints).segments(blocks)
    assert [len(segment) for segment in segments] == lengths
    assert [block for segment in segments for block in segment] == blocks


def test_cpu_checkpointing_packs_every_segment_input_to_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[torch.Size] = []
    real = torch.autograd.graph.save_on_cpu

    class Counting(real):  # type: ignore[valid-type, misc]
        def __init__(self, pin_memory: bool = False) -> None:
            super().__init__(pin_memory)
            inner = self.pack_hook

            def pack(tensor: torch.Tensor) -> object:
                packed.append(tensor.shape)
                return inner(tensor)

            self.pack_hook = pack

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Counting)
    blocks = [nn.Linear(8, 8) for _ in range(4)]
    x = torch.randn(3, 8, requires_grad=True)
    Checkpointing(cpu=True).run(blocks, x).sum().backward()
    assert packed.count(torch.Size([3, 8])) == 4
    assert x.grad is not None
