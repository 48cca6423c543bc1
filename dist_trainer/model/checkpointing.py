"""Activation checkpointing: keep only the input of each segment, recompute the segment in the backward pass.

The settings are those of DeepSpeed's `activation_checkpointing` block. The recomputation is torch's non-reentrant
`torch.utils.checkpoint`, which works under torch.compile and with every ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Checkpointing:
    """`num_checkpoints`: into how many segments the blocks are divided (None: one per block).

    `cpu`: keep the segments' inputs in host memory. `synchronize`: wait for the device before each segment.
    """

    num_checkpoints: int | None = None
    cpu: bool = False
    synchronize: bool = False

    def segments(self, blocks: Sequence[nn.Module]) -> list[Sequence[nn.Module]]:
        """The blocks in order, divided into segments of nearly equal length."""
        count = min(self.num_checkpoints or len(blocks), len(blocks))
        bounds = [len(blocks) * part // count for part in range(count + 1)]
        return [blocks[start:end] for start, end in pairwise(bounds)]

    def run(self, blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
        """The blocks applied to `x`, [batch, tokens, hidden] in and out, one checkpointed segment after the other."""
        with torch.autograd.graph.save_on_cpu(pin_memory=x.is_cuda) if self.cpu else nullcontext():
            for segment in self.segments(blocks):
                if self.synchronize and x.is_cuda:
                    torch.cuda.synchronize(x.device)
                x = checkpoint(_run_segment, segment, x, use_reentrant=False)
        return x


def _run_segment(segment: Sequence[nn.Module], x: Tensor) -> Tensor:
    for block in segment:
        x = block(x)
    return x
