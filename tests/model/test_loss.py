"""The two losses agree; the chunked one never holds the fp32 logits."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dist_trainer.model import loss as loss_module
from dist_trainer.model.loss import chunked_loss, full_loss

TOKENS, HIDDEN, VOCAB = 512, 64, 4096


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(2, TOKENS // 2, HIDDEN).to(dtype).requires_grad_()
    weight = (0.05 * torch.randn(VOCAB, HIDDEN)).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCAB, (2, TOKENS // 2))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("chunk_elements", [2**22, 100 * VOCAB], ids=["one chunk", "chunks, the last not whole"])
def test_chunked_loss_and_gradients_equal_the_full_ones(
    dtype: torch.dtype, tolerance: float, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", chunk_elements)
    results = []
    for loss_function in (full_loss, chunked_loss):
        hidden, weight, targets = inputs(dtype)
        loss = loss_function(hidden, weight, targets)
        loss.backward()
        results.append((loss, hidden.grad, weight.grad))
    (loss, hidden_grad, weight_grad), (chunked, chunked_hidden_grad, chunked_weight_grad) = results
    assert chunked.dtype == torch.float32
    torch.testing.assert_close(chunked, loss, atol=1e-3 if dtype == torch.bfloat16 else 1e-5, rtol=0)
    for ours, theirs in ((chunked_hidden_grad, hidden_grad), (chunked_weight_grad, weight_grad)):
        scale = theirs.float().abs().max()
        torch.testing.assert_close(ours.float() / scale, theirs.float() / scale, atol=tolerance, rtol=0)


def peak_bytes(loss_function: object, dtype: torch.dtype) -> int:
    """The most that the CPU allocator held at once during forward and backward, from the profiler's own events."""
    hidden, weight, targets = inputs(dtype)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss_function(hidden, weight, targets).backward()  # type: ignore[operator]
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_chunked_loss_takes_less_than_the_fp32_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 32 * VOCAB)
    fp32_logits_bytes = TOKENS * VOCAB * 4
    assert peak_bytes(full_loss, torch.float32) > 1.9 * fp32_logits_bytes
    assert peak_bytes(chunked_loss, torch.float32) < 0.5 * fp32_logits_bytes


def test_the_chunked_loss_counts_by_what_comes_after_it() -> None:
    gradients = []
    for loss_function in (full_loss, chunked_loss):
        hidden, weight, targets = inputs(torch.float32)
        (3 * loss_function(hidden, weight, targets)).backward()
        gradients.append(hidden.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


def test_without_gradients_none_are_made() -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.no_grad():
        loss = chunked_loss(hidden, weight, targets)
    torch.testing.assert_close(loss, full_loss(hidden, weight, targets).detach())


def test_under_autocast_the_product_is_autocasts(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_loss(hidden, weight, targets)
        full = full_loss(hidden, weight, targets)
    torch.testing.assert_close(loss, full, atol=1e-3, rtol=0)
    assert not torch.equal(full, full_loss(hidden, weight, targets))
