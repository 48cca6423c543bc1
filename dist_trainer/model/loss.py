"""The mean cross-entropy from hidden states, with all fp32 logits [tokens, vocab] at once or a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dist_trainer.model.size import CHUNK_ELEMENTS

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def full_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """hidden [batch, tokens, hidden], weight [vocab, hidden], targets [batch, tokens] -> scalar, computed in fp32."""
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.reshape(-1))


def chunked_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same loss, holding one chunk of fp32 logits at a time.

    In fp32 each chunk's gradients are formed beside its loss, so that no logits are kept for the backward. In 16-bit
    they would underflow before a loss scale is applied; there DeepSpeed's `chunked_cross_entropy` is used, which keeps
    the 16-bit logits and upcasts a block of rows at a time.
    """
    flat_hidden, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    num_rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    if hidden.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled(hidden.device.type):
        loss = _ChunkedLoss.apply(flat_hidden, weight, flat_targets, num_rows)  # type: ignore[no-untyped-call]
        return cast(Tensor, loss)
    from deepspeed.runtime.chunked_cross_entropy import chunked_cross_entropy

    return cast(Tensor, chunked_cross_entropy(F.linear(flat_hidden, weight), flat_targets, block_rows=num_rows))


class _ChunkedLoss(torch.autograd.Function):
    """torch 2.13's `linear_cross_entropy` does the same and is six times slower on CPUs."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, num_rows: int) -> Tensor:
        """hidden [tokens, hidden] and weight [vocab, hidden] in fp32, targets [tokens] -> the mean loss, a scalar."""
        num_tokens = hidden.shape[0]
        total = hidden.new_zeros(())
        needs_gradients = any(ctx.needs_input_grad)
        hidden_grad = torch.empty_like(hidden) if needs_gradients else None
        weight_grad = torch.zeros_like(weight) if needs_gradients else None
        for start in range(0, num_tokens, num_rows):
            rows, wanted = hidden[start : start + num_rows], targets[start : start + num_rows, None]
            logits = rows @ weight.t()
            of_targets, largest = logits.gather(1, wanted), logits.amax(-1, keepdim=True)
            # In place from here on: this chunk of logits is all that is held of them.
            powers = logits.sub_(largest).exp_()
            sums = powers.sum(-1, keepdim=True)
            total += (sums.log() + largest - of_targets).sum()
            if hidden_grad is None or weight_grad is None:
                continue
            # The gradient of the mean cross-entropy by the logits: (softmax - one_hot) / tokens.
            grad = powers.div_(sums)
            grad.scatter_add_(1, wanted, grad.new_full((1, 1), -1.0).expand_as(wanted)).mul_(1 / num_tokens)
            torch.mm(grad, weight, out=hidden_grad[start : start + num_rows])
            weight_grad.addmm_(grad.t(), rows)
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total / num_tokens

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * outer[0], weight_grad * outer[0], None, None
