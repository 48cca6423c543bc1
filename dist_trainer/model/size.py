"""The size of the transformer, by arithmetic and without torch."""

from __future__ import annotations

from dist_trainer.config.run import ModelConfig

# Elements of fp32 logits that a chunked loss holds at a time (16 MiB), unless a Triton kernel avoids holding any.
CHUNK_ELEMENTS = 2**22
# Elements of fp32 logits that the fused loss works on at a time: on a CPU what its cache holds (4 MiB), on CUDA enough
# (64 MiB) that starting the kernels takes no time.
_FUSED_ELEMENTS_CPU, _FUSED_ELEMENTS_CUDA = 2**20, 2**24

# Matrix products are fastest in tiles, of which the largest in use have 128 rows.
_VOCAB_MULTIPLE = 128


def fused_rows(vocab_size: int, *, cuda: bool) -> int:
    """Rows of logits that the fused loss works on at a time: a power of two."""
    rows = max(1, (_FUSED_ELEMENTS_CUDA if cuda else _FUSED_ELEMENTS_CPU) // vocab_size)
    return 1 << (rows.bit_length() - 1)


def embedding_rows(vocab_size: int, *, pad_vocab: bool) -> int:
    """Rows of the token embedding: the vocabulary, with `pad_vocab` up to a multiple of 128."""
    return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE if pad_vocab else vocab_size


def num_parameters(config: ModelConfig) -> int:
    """Trainable parameters of the model; the tied output embedding counts once, and its padding does not."""
    hidden = config.hidden_size
    block = 12 * hidden**2 + 13 * hidden
    embeddings = (config.vocab_size + config.context_length) * hidden
    return embeddings + config.num_layers * block + 2 * hidden


def num_stored_parameters(config: ModelConfig) -> int:
    """The same with the embedding's padding, for which memory and disk have to be there."""
    padding = embedding_rows(config.vocab_size, pad_vocab=config.pad_vocab) - config.vocab_size
    return num_parameters(config) + padding * config.hidden_size


def num_flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """FLOPs of the matrix products of a forward and backward pass, per token: 6 for each weight of a product, and for
    attention 12 x layers x hidden size x length (Chowdhery et al. 2022, appendix B, which does not halve it for the
    causal mask).

    What activation checkpointing or a chunked loss computes again does not count.
    """
    weights = 12 * config.num_layers * config.hidden_size**2 + config.vocab_size * config.hidden_size
    return 6 * weights + 12 * config.num_layers * config.hidden_size * sequence_length
