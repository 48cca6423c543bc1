"""The tokenizer: trained on the text, or read from a tokenizer.json."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.data.regular_file import regular_size_bytes
from dist_trainer.errors import UserError
from dist_trainer.units import MIB

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 257
# The largest published vocabularies have a quarter of a million tokens; counting needs an array entry for each id.
_MOST_TOKEN_IDS = 2**24
# The largest published ones have some 35 MB.
_MAX_BYTES = 256 * MIB

# The names of the end-of-text token in tokenizers of the GPT-2, Llama 3, Llama 2, Qwen and T5 families.
_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<|im_end|>", "<eos>")


def train_vocabulary(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens (fewer if no further pair occurs twice in the text).

    Raises UserError if `vocab_size` is too small for the 256 bytes and the end-of-text token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            "the vocabulary is too small",
            key="vocab_size",
            found=vocab_size,
            expected=f"at least {MIN_VOCAB_SIZE}: the 256 bytes and {END_OF_TEXT}",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_vocabulary(path: Path) -> Tokenizer:
    """Raises UserError if the file is not a tokenizer.json of the `tokenizers` library."""
    return parse_vocabulary(read_tokenizer(path), str(path))


def read_tokenizer(path: Path) -> bytes:
    """The file's content. Raises UserError."""
    try:
        regular_size_bytes(path, "the tokenizer", max_bytes=_MAX_BYTES)
        return path.read_bytes()
    except OSError as error:
        raise UserError("the tokenizer cannot be read", where=str(path), found=error.strerror) from error


def parse_vocabulary(data: bytes, where: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json's content. Raises UserError if it is none."""
    from tokenizers import Tokenizer

    try:
        with _without_stderr():
            tokenizer = Tokenizer.from_buffer(data)
    except BaseException as error:
        # A panic in the library's Rust code arrives as a BaseException that is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            "the tokenizer cannot be read",
            where=where,
            found=str(error),
            expected="a tokenizer.json of the Hugging Face `tokenizers` library",
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if not 0 < num_token_ids(tokenizer) <= _MOST_TOKEN_IDS:
        raise UserError(
            "the tokenizer's tokens have no numbers that a model could have",
            where=where,
            found=num_token_ids(tokenizer) - 1,
            expected=f"numbers up to {_MOST_TOKEN_IDS - 1}",
        )
    return tokenizer


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Rust writes a panic's message and stack to stderr before Python sees the exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def encode(tokenizer: Tokenizer, texts: Sequence[str], where: str) -> list[Sequence[int]]:
    """The token ids of each text. Raises UserError if the tokenizer cannot encode a text."""
    try:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    except Exception as error:
        # The library raises plain Exception for everything.
        raise UserError("the tokenizer has no tokens for a text", where=where, found=str(error)) from error
    return [encoding.ids for encoding in encodings]


def num_token_ids(tokenizer: Tokenizer) -> int:
    """One more than the largest id. Published tokenizers may have gaps, so their number of tokens can be smaller."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def end_of_text_id(tokenizer: Tokenizer, where: str) -> int:
    """Raises UserError if the tokenizer has no end-of-text token."""
    for name in _END_OF_TEXT_NAMES:
        token: int | None = tokenizer.token_to_id(name)
        if token is not None:
            return token
    raise UserError(
        "the tokenizer has no token that ends a text",
        where=where,
        expected=f"one of {', '.join(_END_OF_TEXT_NAMES)}",
        hint=f"add {END_OF_TEXT} to its special tokens",
    )
