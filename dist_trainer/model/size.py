"""The size of the transformer, by arithmetic and without torch."""

from __future__ import annotations

from dist_trainer.config.run import ModelConfig

# Elements of fp32 logits that a chunked loss holds at a time (16 MiB), unless a Triton kernel avoids holding any.
CHUNK_ELEMENTS = 2**22


def num_parameters(config: ModelConfig) -> int:
    """Trainable parameters of the model; the tied output embedding counts once."""
    hidden = config.hidden_size
    block = 12 * hidden**2 + 13 * hidden
    embeddings = (config.vocab_size + config.context_length) * hidden
    return embeddings + config.num_layers * block + 2 * hidden


def num_flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """FLOPs of the matrix products of a forward and backward pass, per token: 6 for each weight of a product, and for
    attention 12 x layers x hidden size x length (Chowdhery et al. 2022, appendix B, which does not halve it for the
    causal mask).

    What activation checkpointing or a chunked loss computes again does not count.
    """
    weights = 12 * config.num_layers * config.hidden_size**2 + config.vocab_size * config.hidden_size
    return 6 * weights + 12 * config.num_layers * config.hidden_size * sequence_length
