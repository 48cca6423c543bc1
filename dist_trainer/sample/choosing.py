"""Which token comes next: drawn from the model's distribution, or the likeliest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """`temperature`: what logits are divided by; with 0 the likeliest token is taken. `top_k`: only that many of the
    likeliest tokens are drawn from; None for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def generator(self) -> torch.Generator:
        """A prompt's own, so that what is drawn for it does not depend on the prompts beside it."""
        return torch.Generator().manual_seed(self.seed)

    def next_token(self, logits: Tensor, generator: torch.Generator) -> int:
        """From finite logits [tokens] in the host's memory. Draws one number, or none at temperature 0."""
        if self.temperature == 0:
            return int(logits.argmax())
        values, tokens = logits.topk(min(self.top_k, len(logits))) if self.top_k is not None else (logits, None)
        # The largest is taken away first: what is divided by a very small temperature stays finite or becomes -inf.
        shares = torch.softmax((values.double() - values.max()) / self.temperature, dim=0).cumsum(0)
        drawn = torch.rand((), dtype=torch.float64, generator=generator) * shares[-1]
        place = min(int(torch.searchsorted(shares, drawn, right=True)), len(shares) - 1)
        return place if tokens is None else int(tokens[place])
