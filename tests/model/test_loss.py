"""The three losses agree, with and without padding; they differ in what they hold of the logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from dist_trainer.model import loss as loss_module
from dist_trainer.model import size
from dist_trainer.model.loss import LossFunction, chunked_loss, full_loss, fused_loss

TOKENS, HIDDEN, VOCAB, PADDING = 512, 64, 4096, 32


def inputs(dtype: torch.dtype, *, padding: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(2, TOKENS // 2, HIDDEN).to(dtype).requires_grad_()
    weight = (0.05 * torch.randn(VOCAB, HIDDEN)).to(dtype)
    return hidden, F.pad(weight, (0, 0, 0, padding)).requires_grad_(), torch.randint(0, VOCAB, (2, TOKENS // 2))


@pytest.fixture(params=["one part", "parts, the last not whole"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    num_rows = TOKENS if request.param == "one part" else 100
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", num_rows * VOCAB)
    monkeypatch.setattr(size, "fused_rows", lambda vocab_size, *, cuda: num_rows)


def trained(loss_function: LossFunction, dtype: torch.dtype, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients by the hidden states and the weight."""
    hidden, weight, targets = inputs(dtype, padding=padding)
    loss = loss_function(hidden, weight, targets, VOCAB)
    (3 * loss).backward()
    assert loss.dtype == torch.float32 and hidden.grad is not None and weight.grad is not None
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("padding", [0, PADDING])
@pytest.mark.parametrize("loss_function", [full_loss, fused_loss, chunked_loss])
@pytest.mark.usefixtures("parts")
def test_loss_and_gradients_are_those_of_the_full_one_without_padding(
    loss_function: LossFunction, padding: int, dtype: torch.dtype, tolerance: float
) -> None:
    loss, hidden_grad, weight_grad = trained(full_loss, dtype, 0)
    ours, our_hidden_grad, our_weight_grad = trained(loss_function, dtype, padding)
    torch.testing.assert_close(ours, loss, atol=1e-3 if dtype == torch.bfloat16 else 1e-5, rtol=0)
    for mine, theirs in ((our_hidden_grad, hidden_grad), (our_weight_grad[:VOCAB], weight_grad)):
        scale = theirs.float().abs().max()
        torch.testing.assert_close(mine.float() / scale, theirs.float() / scale, atol=tolerance, rtol=0)
    assert not our_weight_grad[VOCAB:].any()


def test_in_fp16_the_fused_gradients_of_rare_tokens_do_not_underflow() -> None:
    hidden, weight, targets = inputs(torch.float16)
    # As engine and loss scaler do; a probability of 1 / 4096 by 512 tokens is below fp16's least, 6e-8, without it.
    (1024 * fused_loss(hidden, weight, targets, VOCAB)).backward()
    _, exact, _ = trained(full_loss, torch.float32, 0)
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad.float() / 1024, exact / 3, atol=3e-2 * float(exact.abs().max()), rtol=0)


def peak_bytes(loss_function: LossFunction, dtype: torch.dtype) -> int:
    """The most that the CPU allocator held at once during forward and backward, from the profiler's own events."""
    hidden, weight, targets = inputs(dtype)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss_function(hidden, weight, targets, VOCAB).backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_what_each_holds_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 32 * VOCAB)
    monkeypatch.setattr(size, "fused_rows", lambda vocab_size, *, cuda: 8)
    fp32_logits_bytes = TOKENS * VOCAB * 4
    assert peak_bytes(full_loss, torch.float32) > 1.9 * fp32_logits_bytes
    assert peak_bytes(fused_loss, torch.float32) < 1.3 * fp32_logits_bytes
    assert peak_bytes(chunked_loss, torch.float32) < 0.5 * fp32_logits_bytes
    assert peak_bytes(fused_loss, torch.bfloat16) < 0.7 * fp32_logits_bytes


@pytest.mark.parametrize("loss_function", [fused_loss, chunked_loss])
def test_without_gradients_none_are_made(loss_function: LossFunction) -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.no_grad():
        loss = loss_function(hidden, weight, targets, VOCAB)
    torch.testing.assert_close(loss, full_loss(hidden, weight, targets, VOCAB).detach())


@pytest.mark.parametrize("loss_function", [fused_loss, chunked_loss])
def test_under_autocast_the_product_is_autocasts(loss_function: LossFunction) -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_function(hidden, weight, targets, VOCAB)
        full = full_loss(hidden, weight, targets, VOCAB)
    loss.backward()
    torch.testing.assert_close(loss, full, atol=1e-3, rtol=0)
    assert not torch.equal(full, full_loss(hidden, weight, targets, VOCAB))
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32


def test_the_fused_loss_may_be_compiled() -> None:
    hidden, weight, targets = inputs(torch.float32)
    compiled = torch.compile(fused_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(hidden, weight, targets, VOCAB), full_loss(hidden, weight, targets, VOCAB))
