"""GPT's forward pass for tokens that follow others, whose keys and values were kept: the same function as `GPT.forward`
without dropout, made of the model's own modules.

Rows of a batch may have any lengths: nothing is padded and nothing masked, because each has keys and values of its own.
All else works on one token at a time, and so on the tokens of all rows, one below the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dist_trainer.model.gpt import GPT, Attention, Block


class Cache:
    """Keys and values of one row's tokens so far: of `num_tokens`, which are at positions from 0 on."""

    def __init__(self, model: GPT, max_tokens: int) -> None:
        config, weight = model.config, model.token_embedding.weight
        head_size = config.hidden_size // config.num_heads
        shape = (config.num_layers, 2, config.num_heads, min(max_tokens, config.context_length), head_size)
        self.num_tokens = 0
        self._kept = torch.empty(shape, dtype=weight.dtype, device=weight.device)

    @property
    def max_tokens(self) -> int:
        return self._kept.shape[3]

    def with_next(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, once those of the next tokens, [heads, tokens, head size], are kept too."""
        end = self.num_tokens + keys.shape[1]
        self._kept[layer, 0, :, self.num_tokens : end] = keys
        self._kept[layer, 1, :, self.num_tokens : end] = values
        return self._kept[layer, 0, :, :end], self._kept[layer, 1, :, :end]


@torch.no_grad()
def next_logits(model: GPT, rows: Sequence[Sequence[int]], caches: Sequence[Cache]) -> Tensor:
    """The logits [rows, vocab] of what follows each row's tokens; their keys and values are added to the row's cache.

    A row has one token, or its first ones: several where its cache is empty. Each has to fit into its cache.
    """
    lengths = [len(row) for row in rows]
    device = model.token_embedding.weight.device
    tokens = torch.tensor([token for row in rows for token in row], device=device)
    starts = zip(caches, lengths, strict=True)
    positions = torch.cat([torch.arange(cache.num_tokens, cache.num_tokens + length) for cache, length in starts])
    x = model.token_embedding(tokens) + model.position_embedding(positions.to(device))
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        x = x + _attention(block.attention, block.attention_norm(x), layer, lengths, caches)
        x = x + block.feed_forward(block.feed_forward_norm(x))
    for cache, length in zip(caches, lengths, strict=True):
        cache.num_tokens += length
    last = torch.tensor(lengths, device=device).cumsum(0) - 1
    logits = F.linear(model.final_norm(x[last]), model.token_embedding.weight)
    return logits[:, : model.config.vocab_size]


def _attention(attention: Attention, x: Tensor, layer: int, lengths: list[int], caches: Sequence[Cache]) -> Tensor:
    mixed = torch.cat(list(_each_row(attention, attention.qkv(x), layer, lengths, caches)))
    return attention.projection(mixed)  # type: ignore[no-any-return]


def _each_row(
    attention: Attention, qkv: Tensor, layer: int, lengths: list[int], caches: Sequence[Cache]
) -> Iterator[Tensor]:
    """What each row's tokens take from the values: [tokens, hidden]."""
    for of_row, cache in zip(qkv.split_with_sizes(lengths), caches, strict=True):
        num_tokens = of_row.shape[0]
        assert num_tokens == 1 or cache.num_tokens == 0
        query, key, value = of_row.view(num_tokens, 3, attention.num_heads, -1).permute(1, 2, 0, 3)
        keys, values = cache.with_next(layer, key, value)
        # With a batch of one, because torch's fast kernels want four dimensions.
        y = F.scaled_dot_product_attention(query[None], keys[None], values[None], is_causal=num_tokens > 1)
        yield y[0].transpose(0, 1).reshape(num_tokens, -1)
