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
