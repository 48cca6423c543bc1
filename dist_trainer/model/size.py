"""The transformer's size, by arithmetic: torch is not needed to count."""

from __future__ import annotations

from dist_trainer.config.run import ModelConfig

# A chunked loss holds fp32 logits of so many elements at a time, where no Triton kernel does without them: 16 MiB.
CHUNK_ELEMENTS = 2**22


def num_parameters(config: ModelConfig) -> int:
    """Trainable parameters of the model; the tied output embedding counts once."""
    hidden = config.hidden_size
    block = 12 * hidden**2 + 13 * hidden
    embeddings = (config.vocab_size + config.context_length) * hidden
    return embeddings + config.num_layers * block + 2 * hidden
