"""GPT-2's transformer, built from torch's modules.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019: pre-norm blocks, a final norm, learned
positions, GELU (tanh form), input and output embeddings tied. The parameters are those of the published GPT-2, with
projections as [out, in], as torch's Linear has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_trainer.config.run import ModelConfig
from dist_trainer.model.checkpointing import Checkpointing
from dist_trainer.model.loss import LossFunction, chunked_loss, full_loss, fused_loss
from dist_trainer.model.size import embedding_rows

INIT_STD = 0.02
GROUPS_OF_MATRICES = 8
_LOSSES = {"full": full_loss, "fused": fused_loss, "chunked": chunked_loss}


def _padded(embedding: nn.Embedding, num_rows: int) -> nn.Embedding:
    """With rows of zeros up to `num_rows`. No gradient ever reaches them, so they stay zero."""
    missing = num_rows - embedding.num_embeddings
    if missing:
        embedding.num_embeddings = num_rows
        embedding.weight = nn.Parameter(F.pad(embedding.weight.detach(), (0, 0, 0, missing)))
    return embedding


class Attention(nn.Module):
    """Causal self-attention over [batch, tokens, hidden]; one projection makes queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, hidden = x.shape
        heads = (batch, tokens, self.num_heads, hidden // self.num_heads)
        query, key, value = (part.view(heads).transpose(1, 2) for part in self.qkv(x).split(hidden, dim=2))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.projection(y.transpose(1, 2).reshape(batch, tokens, hidden))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, 4 x hidden wide inside; [batch, tokens, hidden] in and out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.expansion = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.activation = nn.GELU(approximate="tanh")
        self.projection = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.activation(self.expansion(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); [batch, tokens, hidden] in and out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Token ids [batch, tokens] -> logits [batch, tokens, vocab], or the mean loss when targets are given."""

    def __init__(self, config: ModelConfig, checkpointing: Checkpointing | None = None) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        num_rows = embedding_rows(config.vocab_size, pad_vocab=config.pad_vocab)
        self.token_embedding = _padded(nn.Embedding(config.vocab_size, config.hidden_size), num_rows)
        self.position_embedding = nn.Embedding(config.context_length, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size)
        self.loss_function: LossFunction = _LOSSES[config.loss]
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                # Not the padding: the weights are the same with it and without.
                of_vocab = slice(self.config.vocab_size) if module is self.token_embedding else slice(None)
                nn.init.normal_(module.weight[of_vocab], std=INIT_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        # Each block adds two residual branches. GPT-2 scales the last projection of each to keep the sum's variance.
        residual_std = INIT_STD / math.sqrt(2 * self.config.num_layers)
        for block in self._blocks():
            nn.init.normal_(block.attention.projection.weight, std=residual_std)
            nn.init.normal_(block.feed_forward.projection.weight, std=residual_std)

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def hidden_states(self, tokens: Tensor) -> Tensor:
        """[batch, tokens] -> [batch, tokens, hidden], after the final norm."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        if self.checkpointing is not None and self.training:
            x = self.checkpointing.run(list(self._blocks()), x)
        else:
            for block in self._blocks():
                x = block(x)
        return self.final_norm(x)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """int64 [batch, tokens] -> logits [batch, tokens, vocab]; with targets of the same shape, the mean loss."""
        hidden = self.hidden_states(tokens)
        if targets is None:
            return F.linear(hidden, self.token_embedding.weight)[..., : self.config.vocab_size]
        return self.loss_function(hidden, self.token_embedding.weight, targets, self.config.vocab_size)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups: matrices have its weight decay; biases and norms, the last group, have
        none.

        The matrices form several groups, each of at least an eighth of the model, because ZeRO's step works on one
        group at a time and its temporaries are as large as the largest group.
        """
        parameters = list(self.parameters())
        enough = sum(parameter.numel() for parameter in parameters) / GROUPS_OF_MATRICES
        matrices: list[list[nn.Parameter]] = [[]]
        for parameter in (parameter for parameter in parameters if parameter.dim() >= 2):
            if sum(member.numel() for member in matrices[-1]) >= enough:
                matrices.append([])
            matrices[-1].append(parameter)
        return [
            *({"params": group} for group in matrices),
            {"params": [parameter for parameter in parameters if parameter.dim() < 2], "weight_decay": 0.0},
        ]
