"""Turns text into a folder of token files. Memory is bounded by a batch of text, not by the size of the input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dist_trainer.data.atomic_folder import atomic_folder
from dist_trainer.data.info import (
    FORMAT_VERSION,
    TOKENIZER_FILE,
    DatasetInfo,
    SourceInfo,
    SplitInfo,
    tokens_file,
    write_info,
)
from dist_trainer.data.pieces import NUM_KEYS, Piece, read_pieces
from dist_trainer.data.progress import Advance, byte_progress
from dist_trainer.data.sources import SourceFile, find_sources
from dist_trainer.data.vocabulary import encode, end_of_text_id, load_vocabulary, num_token_ids, train_vocabulary
from dist_trainer.disk import writing
from dist_trainer.errors import UserError
from dist_trainer.units import GIB, MIB

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH_BYTES = 4 * MIB
_MIN_PIECE_BYTES = 2**10
_MAX_PIECE_BYTES = 2**16
# The BPE trainer holds every distinct word in memory: of a larger input it sees a sample of this size.
_MAX_TRAINER_BYTES = 2 * GIB
_HELD_OUT_SHARE = 0.01
_MIN_HELD_OUT_BYTES = 2**15
_MAX_HELD_OUT_SHARE = 0.1


def prepare(
    inputs: Sequence[Path],
    output: Path,
    *,
    tokenizer: Path | None,
    vocab_size: int | None,
    progress: bool,
    tell: Callable[[str], None] = lambda notice: None,
) -> DatasetInfo:
    """Writes train.bin, val.bin, tokenizer.json and dataset.json into the folder `output`; the same inputs give the
    same bytes.

    Inputs are .txt, .md and .py files (one document each), .jsonl files (one document per line, in "text"), and folders
    of such files. `tell` is called with what is left out, before anything is read. With `tokenizer` (a tokenizer.json)
    `vocab_size` is the most that it may have; without, a byte-level BPE of `vocab_size` tokens is trained.

    An end-of-text token follows each text; a literal `<|endoftext|>` in the input becomes that token. About 1% is held
    out for validation, selected by a hash of each document's place; of a document longer than 64 KiB (or 1/256 of a
    small input) parts are held out. Raises UserError.
    """
    if tokenizer is None and vocab_size is None:
        raise UserError(
            "there is neither a tokenizer nor the size of one to train",
            expected="a vocabulary size, or a tokenizer.json",
            hint="give --vocab-size N or --tokenizer FILE",
        )
    found = find_sources(inputs)
    for notice in found.notices:
        tell(notice)
    return prepare_sources(found.sources, output, tokenizer=tokenizer, vocab_size=vocab_size, progress=progress)


def prepare_sources(
    sources: Sequence[SourceFile],
    output: Path,
    *,
    tokenizer: Path | None,
    vocab_size: int | None,
    progress: bool,
    hint_if_unwritable: str | None = None,
) -> DatasetInfo:
    """`prepare`, for files that were already found."""
    total_bytes = sum(source.num_bytes for source in sources)
    piece_bytes = min(max(total_bytes // 256, _MIN_PIECE_BYTES), _MAX_PIECE_BYTES)
    with atomic_folder(output, hint=hint_if_unwritable) as folder:
        survey = _Survey()
        learns = "learning the vocabulary" if tokenizer is None else None
        with byte_progress("reading", total_bytes, enabled=progress, afterwards=learns) as advance:
            pieces = survey.watch(read_pieces(sources, piece_bytes), advance)
            if tokenizer is None:
                assert vocab_size is not None
                vocabulary = train_vocabulary(_trainer_sample(pieces, total_bytes), vocab_size)
                tokenizer_bytes = vocabulary.to_str(pretty=False).encode()
            else:
                vocabulary = load_vocabulary(tokenizer)
                tokenizer_bytes = tokenizer.read_bytes()
                _check_fits(vocabulary, vocab_size, tokenizer)
                for _ in pieces:
                    pass
        first_train_key = survey.first_train_key()
        with writing(folder / TOKENIZER_FILE, len(tokenizer_bytes)):
            (folder / TOKENIZER_FILE).write_bytes(tokenizer_bytes)

        num_ids = num_token_ids(vocabulary)
        end_of_text = end_of_text_id(vocabulary, str(tokenizer))
        dtype: np.dtype[Any] = np.dtype("<u2" if num_ids <= 2**16 else "<u4")
        with (
            (folder / tokens_file("train")).open("wb") as train_stream,
            (folder / tokens_file("val")).open("wb") as val_stream,
            byte_progress("encoding", total_bytes, enabled=progress) as advance,
        ):
            train = _TokenWriter(train_stream, dtype, num_ids, end_of_text)
            val = _TokenWriter(val_stream, dtype, num_ids, end_of_text)
            read_bytes = token_bytes = 0
            for batch in _batches(read_pieces(sources, piece_bytes)):
                tokens = encode(vocabulary, [piece.text for piece in batch], str(tokenizer))
                read_bytes += sum(piece.num_source_bytes for piece in batch)
                token_bytes += sum(map(len, tokens)) * dtype.itemsize
                with writing(output, token_bytes * total_bytes // max(read_bytes, 1)):
                    for piece, ids in zip(batch, tokens, strict=True):
                        (val if piece.key < first_train_key else train).append(piece, ids)
                        advance(piece.num_source_bytes)
                    train_stream.flush()
                    val_stream.flush()
            info = DatasetInfo(
                format_version=FORMAT_VERSION,
                vocab_size=num_ids,
                dtype=dtype.name,
                end_of_text=end_of_text,
                train=train.finish(),
                val=val.finish(),
                max_token=max(train.max_token(), val.max_token()),
                unigram_entropy_nats=train.unigram_entropy_nats(),
                num_documents=survey.num_documents,
                tokenizer_sha256=hashlib.sha256(tokenizer_bytes).hexdigest(),
                sources=_summary(sources),
            )
        write_info(folder, info)
    return info


class _Survey:
    """The result of one pass over the whole input: the number of documents, and the amount of text under each key."""

    def __init__(self) -> None:
        self.num_documents = 0
        self._bytes_by_key = np.zeros(NUM_KEYS, dtype=np.int64)

    def watch(self, pieces: Iterable[Piece], advance: Advance) -> Iterator[Piece]:
        for piece in pieces:
            self.num_documents = piece.document + 1
            self._bytes_by_key[piece.key] += len(piece.text)
            advance(piece.num_source_bytes)
            yield piece

    def first_train_key(self) -> int:
        """Pieces with smaller keys are held out. Raises UserError if that would leave nothing to train on."""
        up_to_key = np.cumsum(self._bytes_by_key)
        total = int(up_to_key[-1])
        wanted = max(total * _HELD_OUT_SHARE, min(_MIN_HELD_OUT_BYTES, total * _MAX_HELD_OUT_SHARE), 1)
        key = int(np.searchsorted(up_to_key, wanted)) + 1
        if key > NUM_KEYS or up_to_key[key - 1] == total:
            raise UserError(
                "there is too little text to hold some of it out for validation",
                found=f"{total} characters",
                expected=f"two documents, or more than {2 * _MIN_PIECE_BYTES} characters",
            )
        return key


class _TokenWriter:
    """Appends tokens to a file, with an end-of-text token between pieces that are not consecutive in one document."""

    def __init__(self, stream: IO[bytes], dtype: np.dtype[Any], num_ids: int, end_of_text: int) -> None:
        self._stream = stream
        self._dtype = dtype
        self._end_of_text = end_of_text
        self._counts = np.zeros(num_ids, dtype=np.int64)
        self._digest = hashlib.sha256()
        self._num_texts = 0
        self._last: Piece | None = None

    def append(self, piece: Piece, ids: Sequence[int]) -> None:
        if self._last is not None and not piece.follows(self._last):
            self._end_text()
        self._last = piece
        self._write(np.array(ids, dtype=np.int64))

    def finish(self) -> SplitInfo:
        self._end_text()
        return SplitInfo(int(self._counts.sum()), self._num_texts, self._digest.hexdigest())

    def max_token(self) -> int:
        return int(np.flatnonzero(self._counts)[-1])

    def unigram_entropy_nats(self) -> float:
        probabilities = self._counts[self._counts > 0] / self._counts.sum()
        return float(-(probabilities * np.log(probabilities)).sum())

    def _end_text(self) -> None:
        self._num_texts += 1
        self._write(np.array([self._end_of_text], dtype=np.int64))

    def _write(self, ids: npt.NDArray[np.int64]) -> None:
        self._counts += np.bincount(ids, minlength=len(self._counts))
        data = ids.astype(self._dtype).tobytes()
        self._digest.update(data)
        self._stream.write(data)


def _trainer_sample(pieces: Iterable[Piece], total_bytes: int) -> Iterator[str]:
    """The pieces with the largest keys, as much as the trainer may see; held-out pieces have the smallest keys."""
    first_key = NUM_KEYS - NUM_KEYS * _MAX_TRAINER_BYTES // max(total_bytes, _MAX_TRAINER_BYTES)
    return (piece.text for piece in pieces if piece.key >= first_key)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    num_characters = 0
    for piece in pieces:
        batch.append(piece)
        num_characters += len(piece.text)
        if num_characters >= _BATCH_BYTES:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _check_fits(vocabulary: Tokenizer, vocab_size: int | None, path: Path) -> None:
    num_ids = num_token_ids(vocabulary)
    if vocab_size is not None and num_ids > vocab_size:
        raise UserError(
            "the tokenizer's vocabulary is larger than the one asked for",
            where=str(path),
            found=num_ids,
            expected=f"at most {vocab_size}",
        )


def _summary(sources: Sequence[SourceFile]) -> tuple[SourceInfo, ...]:
    by_suffix: dict[str, list[int]] = {}
    for source in sources:
        by_suffix.setdefault(source.path.suffix.lower(), []).append(source.num_bytes)
    return tuple(SourceInfo(suffix, len(sizes), sum(sizes)) for suffix, sizes in sorted(by_suffix.items()))
