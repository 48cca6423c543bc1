"""The mean cross-entropy from hidden states, with all fp32 logits [tokens, vocab] at once or a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_trainer.model.size import CHUNK_ELEMENTS

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def full_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """hidden [batch, tokens, hidden], weight [vocab, hidden], targets [batch, tokens] -> scalar, computed in fp32."""
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.reshape(-1))


def chunked_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same loss and shapes, holding one chunk of fp32 logits at a time: less memory, more time.

    In fp32 this is torch's `linear_cross_entropy` (since 2.13; it is chunked only if given options), which never holds
    all logits. In 16-bit that would return the loss in 16-bit and compute its gradients before the loss scale is
    applied, so DeepSpeed's `chunked_cross_entropy` is used, which keeps the 16-bit logits and upcasts a block of rows
    at a time.
    """
    flat_hidden, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if hidden.dtype == torch.float32 and hasattr(nn, "LinearCrossEntropyOptions"):
        return F.linear_cross_entropy(flat_hidden, weight, flat_targets, options=nn.LinearCrossEntropyOptions())
    from deepspeed.runtime.chunked_cross_entropy import chunked_cross_entropy

    logits = F.linear(flat_hidden, weight)
    loss: Tensor = chunked_cross_entropy(logits, flat_targets, block_rows=max(1, CHUNK_ELEMENTS // logits.shape[-1]))
    return loss
