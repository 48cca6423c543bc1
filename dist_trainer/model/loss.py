"""The mean cross-entropy from hidden states, in three forms: they differ in what they hold of the logits.

`full` is the textbook's: the logits [tokens, vocab] in their own precision, again in fp32, and their gradients.
`fused` holds them once and writes their gradients over them, a few rows at a time in fp32, while the rows are in the
processor's cache. `chunked` holds no more than a chunk in fp32, for a product a chunk; in 16-bit it is `fused`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dist_trainer.model import size
from dist_trainer.model.size import CHUNK_ELEMENTS

LossFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def full_loss(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """hidden [batch, tokens, hidden], weight [rows, hidden], targets [batch, tokens] -> scalar, computed in fp32.

    Rows of the weight beyond `vocab_size` are padding.
    """
    logits = F.linear(hidden, weight)[..., :vocab_size]
    return F.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), targets.reshape(-1))


def fused_loss(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """The same loss. Under torch.compile it is the full one, which the compiler fuses itself."""
    if torch.compiler.is_compiling():
        return full_loss(hidden, weight, targets, vocab_size)
    flat_hidden, weight = _in_dtype_of_autocast(hidden.reshape(-1, hidden.shape[-1]), weight)
    num_rows = size.fused_rows(vocab_size, cuda=hidden.is_cuda)
    with torch.autocast(hidden.device.type, enabled=False):
        loss = _FusedLoss.apply(  # type: ignore[no-untyped-call]
            flat_hidden, weight, targets.reshape(-1), vocab_size, num_rows
        )
    return cast(Tensor, loss)


def chunked_loss(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """The same loss, holding one chunk of fp32 logits at a time; in 16-bit the fused one."""
    in_fp32 = hidden.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled(hidden.device.type)
    if not in_fp32:
        return fused_loss(hidden, weight, targets, vocab_size)
    flat_hidden, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    num_rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    loss = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        flat_hidden, weight, flat_targets, vocab_size, num_rows
    )
    return cast(Tensor, loss)


def _in_dtype_of_autocast(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return hidden, weight
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype)


class _FusedLoss(torch.autograd.Function):
    """The gradient of the mean cross-entropy by the logits is (softmax - one_hot) / tokens. The division, and the scale
    of what comes after the loss, are left to the hidden states, which are small: in fp16 the gradients of rare tokens
    would underflow if they were divided before the loss scale is applied.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, num_rows: int) -> Tensor:
        """hidden [tokens, hidden], weight [rows, hidden], targets [tokens] -> the mean loss, an fp32 scalar."""
        num_tokens = hidden.shape[0]
        logits = hidden @ weight.t()
        total = logits.new_zeros((), dtype=torch.float32)
        needs_gradients = any(ctx.needs_input_grad)
        for start in range(0, num_tokens, num_rows):
            rows, wanted = logits[start : start + num_rows, :vocab_size], targets[start : start + num_rows, None]
            log_probabilities = torch.log_softmax(rows.float(), dim=-1)
            total -= log_probabilities.gather(1, wanted).sum()
            if needs_gradients:
                gradients = log_probabilities.exp_()
                gradients.scatter_add_(1, wanted, gradients.new_full((1, 1), -1.0).expand_as(wanted))
                rows.copy_(gradients)
        if needs_gradients:
            logits[:, vocab_size:] = 0
            ctx.save_for_backward(logits, hidden, weight)
        return total / num_tokens

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, Tensor, None, None, None]:
        gradients, hidden, weight = ctx.saved_tensors
        scale = (outer[0] / hidden.shape[0]).to(torch.float32)
        return (gradients @ weight).mul_(scale), gradients.t() @ (hidden * scale), None, None, None


class _ChunkedLoss(torch.autograd.Function):
    """torch 2.13's `linear_cross_entropy` does the same and is six times slower on CPUs."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, num_rows: int) -> Tensor:
        """hidden [tokens, hidden] and weight [rows, hidden] in fp32, targets [tokens] -> the mean loss, a scalar."""
        num_tokens = hidden.shape[0]
        total = hidden.new_zeros(())
        needs_gradients = any(ctx.needs_input_grad)
        hidden_grad = torch.empty_like(hidden) if needs_gradients else None
        weight_grad = torch.zeros_like(weight) if needs_gradients else None
        for start in range(0, num_tokens, num_rows):
            rows, wanted = hidden[start : start + num_rows], targets[start : start + num_rows, None]
            logits = rows @ weight.t()
            logits[:, vocab_size:] = -torch.inf
            of_targets, largest = logits.gather(1, wanted), logits.amax(-1, keepdim=True)
            # In place from here on: this chunk of logits is all that is held of them.
            powers = logits.sub_(largest).exp_()
            sums = powers.sum(-1, keepdim=True)
            total += (sums.log() + largest - of_targets).sum()
            if hidden_grad is None or weight_grad is None:
                continue
            grad = powers.div_(sums)
            grad.scatter_add_(1, wanted, grad.new_full((1, 1), -1.0).expand_as(wanted)).mul_(1 / num_tokens)
            torch.mm(grad, weight, out=hidden_grad[start : start + num_rows])
            weight_grad.addmm_(grad.t(), rows)
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total / num_tokens

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * outer[0], weight_grad * outer[0], None, None, None
