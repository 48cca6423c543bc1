"""What the loss layer takes, forward and backward: milliseconds and the allocator's peak of each form, as Markdown.

    .venv/bin/python docs/speed/loss_layer.py [ROUNDS]

The forms run in one process, one after the other, every second round in reverse; times are medians over the rounds but
the first.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

# Before torch is imported, which reads it.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from dist_trainer.model.loss import chunked_loss, full_loss, fused_loss

Form = Callable[[Tensor, Tensor, Tensor, int], Tensor]
VOCAB = 50_257
SHAPES = (
    (torch.bfloat16, 512, 768),
    (torch.bfloat16, 1024, 128),
    (torch.float32, 512, 768),
    (torch.float32, 1024, 128),
)


def deepspeeds(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """DeepSpeed's chunked cross-entropy, with the rows of a chunk that it has by default."""
    from deepspeed.runtime.chunked_cross_entropy import chunked_cross_entropy

    loss: Tensor = chunked_cross_entropy(F.linear(hidden, weight), targets)
    return loss


def torchs(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """torch's, in chunks of its own choice; from torch 2.13 on."""
    return F.linear_cross_entropy(hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions())  # type: ignore[attr-defined,no-any-return]


FORMS: dict[str, Form] = {
    "full": full_loss,
    "full, compiled": torch.compile(full_loss),
    "fused": fused_loss,
    "chunked": chunked_loss,
    "DeepSpeed's chunked": deepspeeds,
    "torch's linear_cross_entropy": torchs,
}


def inputs(dtype: torch.dtype, num_tokens: int, hidden_size: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, hidden_size).to(dtype).requires_grad_()
    weight = (0.02 * torch.randn(VOCAB, hidden_size)).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(VOCAB, (num_tokens,))


def once(form: Form, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets = tensors
    hidden.grad = weight.grad = None
    form(hidden, weight, targets, VOCAB).backward()


def product(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """The three matrix products alone."""
    hidden, weight, _ = tensors
    with torch.no_grad():
        logits = hidden @ weight.t()
        logits @ weight
        logits.t() @ hidden


def peak_mb(form: Form, tensors: tuple[Tensor, Tensor, Tensor]) -> float:
    """What the allocator held at most beside the inputs, from the profiler's events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        once(form, tensors)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6


def seconds(run: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


def row_cells(shape: tuple[torch.dtype, int, int], num_rounds: int) -> dict[str, str]:
    """What each form takes for one shape; a dash for a form that this torch or DeepSpeed does not have."""
    tensors = inputs(*shape)
    runs: dict[str, Callable[[], None]] = {"product alone": partial(product, tensors)}
    runs |= {name: partial(once, form, tensors) for name, form in FORMS.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(num_rounds + 1):
        for name in list(runs) if number % 2 else list(runs)[::-1]:
            with suppress(AttributeError, ImportError):
                taken[name].append(seconds(runs[name]))
    cells = {}
    for name, times in taken.items():
        cell = f"{1e3 * statistics.median(times[1:]):.0f} ms" if times else "–"
        cells[name] = f"{cell}, {peak_mb(FORMS[name], tensors):.0f} MB" if times and name in FORMS else cell
    return cells


def main(num_rounds: int) -> None:
    columns = [row_cells(shape, num_rounds) for shape in SHAPES]
    print("| | " + " | ".join(f"{str(d)[6:]}, {tokens} x {width}" for d, tokens, width in SHAPES) + " |")
    print("|---|" + "---:|" * len(SHAPES))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
