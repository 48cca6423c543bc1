"""Token files on disk, read on demand: as prepared here, by nanoGPT, or by llm.c."""

from __future__ import annotations

import hashlib
import os
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dist_trainer.data.info import INFO_FILE, DatasetInfo, read_info, tokens_file
from dist_trainer.data.regular_file import regular_size_bytes
from dist_trainer.errors import RunError, UserError
from dist_trainer.units import MIB, counted

SPLITS = ("train", "val")

# llm.c, dev/data/data_common.py: 256 int32 (magic, version, number of tokens, zeros), then the tokens.
_LLM_C_HEADER_BYTES = 1024
_LLM_C_DTYPES = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
_LLM_C_MAGICS = {magic for magic, _ in _LLM_C_DTYPES}

_FULL_SCAN_BYTES = 256 * MIB
_BLOCK_TOKENS = 2**16
_NUM_SAMPLED_BLOCKS = 64
_FINGERPRINT_TOKENS = 1024


@dataclass(frozen=True)
class TokenFile:
    """The tokens of one split. `token_limit` is the model's vocabulary size, which every token must be below.

    `vocab_size` and `info` describe the dataset, None if the file does not say. Pickling keeps only the description:
    the process that unpickles it opens the file itself.

    The file is read, not memory-mapped: if a mapped file is cut short or its server forgets it, an access ends the
    process by SIGBUS, where a read reports an error. Reading is faster, too.
    """

    path: Path
    dtype: str
    offset_bytes: int
    num_tokens: int
    token_limit: int
    info: DatasetInfo | None

    def read(self, start: int, count: int) -> npt.NDArray[Any]:
        """Tokens [start, start + count), read-only. Raises RunError if the file no longer has them."""
        tokens: npt.NDArray[Any] = self.read_rows(np.array([start]), count)[0]
        return tokens

    def read_rows(self, starts: npt.NDArray[np.int64], count: int) -> npt.NDArray[Any]:
        """[len(starts), count] tokens, read-only: `count` from each start. Raises RunError like `read`."""
        assert np.all((starts >= 0) & (starts + count <= self.num_tokens))
        assert count >= 0
        dtype, descriptor = np.dtype(self.dtype).newbyteorder("<"), self._descriptor
        row_bytes = count * dtype.itemsize
        first_bytes = (self.offset_bytes + starts * dtype.itemsize).tolist()
        try:
            found = b"".join([os.pread(descriptor, row_bytes, first_byte) for first_byte in first_bytes])
            if len(found) < len(starts) * row_bytes:
                found = b"".join([self._read_whole(first_byte, row_bytes) for first_byte in first_bytes])
        except OSError as error:
            raise RunError(
                "a token file can no longer be read",
                where=str(self.path),
                found=error.strerror,
                hint="look at the file and at the file system that it lies on, then resume the run",
            ) from error
        return np.frombuffer(found, dtype=dtype).reshape(len(starts), count)

    def _read_whole(self, first_byte: int, num_bytes: int) -> bytes:
        """One read may give less than was asked for, and does so where the file ends."""
        found = b""
        while len(found) < num_bytes:
            part = os.pread(self._descriptor, num_bytes - len(found), first_byte + len(found))
            if not part:
                raise self._cut_short()
            found += part
        return found

    @cached_property
    def _descriptor(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def _cut_short(self) -> RunError:
        itemsize = np.dtype(self.dtype).itemsize
        return RunError(
            "a token file has become shorter since it was opened",
            where=str(self.path),
            found=counted(os.fstat(self._descriptor).st_size, "byte"),
            expected=counted(self.offset_bytes + self.num_tokens * itemsize, "byte"),
            hint="nothing may write to a file that a run reads: put the whole file back, then resume the run",
        )

    @property
    def vocab_size(self) -> int | None:
        return self.info.vocab_size if self.info else None

    @property
    def unigram_entropy_nats(self) -> float | None:
        """The loss of a model that knows only the frequencies of the train tokens; None if the dataset does not say."""
        return self.info.unigram_entropy_nats if self.info else None

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the tokens independently of the path: a digest of their number and of samples of them."""
        digest = hashlib.blake2b(str(self.num_tokens).encode(), digest_size=16)
        last = max(0, self.num_tokens - _FINGERPRINT_TOKENS)
        for number in range(_NUM_SAMPLED_BLOCKS):
            start = last * number // (_NUM_SAMPLED_BLOCKS - 1)
            tokens = self.read(start, min(_FINGERPRINT_TOKENS, self.num_tokens - start))
            digest.update(tokens.astype("<u4").tobytes())
        return digest.hexdigest()

    def check(self, tokens: npt.NDArray[Any], start: int) -> None:
        """Raises UserError if one of `tokens`, read at position `start`, is not below the model's vocabulary size."""
        if tokens.size and int(tokens.max()) >= self.token_limit:
            index = int(np.argmax(tokens >= self.token_limit))
            raise UserError(
                "a token is beyond the model's vocabulary",
                where=f"{self.path}, token {start + index}",
                found=int(tokens[index]),
                expected=f"less than {self.token_limit}",
                hint="set the model's vocab_size to the tokenizer's, or prepare the data with a smaller one",
            )

    def __getstate__(self) -> dict[str, Any]:
        # A file descriptor means nothing in another process.
        return {name: value for name, value in self.__dict__.items() if name != "_descriptor"}


def open_tokens(path: Path, split: str, vocab_size: int) -> TokenFile:
    """Opens the 'train' or 'val' tokens at `path` for a model with a vocabulary of `vocab_size`.

    `path` is a prepared folder; a folder with train.bin and val.bin, or with llm.c's NAME_train.bin and NAME_val.bin;
    or such a train file, with its val file beside it. Without dataset.json or llm.c's header, tokens are uint16.

    Raises UserError if the file is missing, empty or cut short, or has tokens outside the vocabulary. Of a file above
    256 MiB without dataset.json only samples are checked for that; `TokenFile.check` checks the rest as it is read.
    """
    assert split in SPLITS
    try:
        if (path / INFO_FILE).exists():
            return _open_prepared(path, split, vocab_size)
        tokens = _open_raw(_split_file(path, split), vocab_size)
        _scan(tokens)
        return tokens
    except OSError as error:
        raise _unreadable(path, error) from error


def has_split(path: Path, split: str) -> bool:
    """Whether `open_tokens` would find a file for this split. Says nothing about whether the file is valid."""
    if (path / INFO_FILE).exists():
        return (path / tokens_file(split)).exists()
    try:
        return _split_file(path, split).exists()
    except UserError:
        return False


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        "a token file cannot be read",
        where=str(error.filename or path),
        found=error.strerror,
        hint="check data.source in the run file, or make the file: python -m dist_trainer data prepare",
    )


def _open_prepared(folder: Path, split: str, vocab_size: int) -> TokenFile:
    info = read_info(folder)
    path = folder / tokens_file(split)
    if info.dtype not in ("uint16", "uint32"):
        raise UserError(
            "a dataset's description is damaged",
            where=str(folder / INFO_FILE),
            key="dtype",
            found=info.dtype,
            expected="uint16 or uint32",
        )
    num_tokens = info.split(split).num_tokens
    _check_size(path, _size_bytes(path), num_tokens * np.dtype(info.dtype).itemsize, INFO_FILE)
    if info.max_token >= vocab_size:
        raise UserError(
            "the dataset has tokens beyond the model's vocabulary",
            where=str(folder / INFO_FILE),
            key="max_token",
            found=info.max_token,
            expected=f"less than the model's vocab_size, {vocab_size}",
            hint=f"set the model's vocab_size to {info.vocab_size}, or prepare the data with a smaller vocabulary",
        )
    tokens = TokenFile(path, info.dtype, 0, num_tokens, vocab_size, info)
    # Reading once opens the file: errors show now, and forked workers read this very file, even if it is replaced.
    tokens.read(0, 1)
    return tokens


def _split_file(path: Path, split: str) -> Path:
    if path.is_dir():
        plain = path / tokens_file(split)
        found = (
            [plain] if plain.exists() else sorted(path.glob(f"*_{split}.bin")) + sorted(path.glob(f"*_{split}_*.bin"))
        )
        if len(found) == 1:
            return found[0]
        raise UserError(
            f"the folder holds {'more than one' if found else 'no'} {split} file",
            where=str(path),
            found=[file.name for file in found[:4]] or None,
            expected=f"{INFO_FILE} and {tokens_file(split)}, or {tokens_file(split)} alone, or one NAME_{split}.bin",
            hint="prepare text with: python -m dist_trainer data prepare"
            if not found
            else "name one folder for each pair",
        )
    if split == "train" or "val" in path.name:
        return path
    beside = path.with_name(path.name.replace("train", "val"))
    if beside != path and beside.exists():
        return beside
    raise UserError(
        "there is no val file beside the train file",
        where=str(path),
        expected=beside.name if beside != path else "a file with 'train' in its name, and one with 'val' beside it",
    )


def _open_raw(path: Path, vocab_size: int) -> TokenFile:
    size_bytes = _size_bytes(path)
    if size_bytes >= _LLM_C_HEADER_BYTES:
        magic, version, num_tokens = (int(value) for value in np.fromfile(path, dtype="<i4", count=3))
        if magic in _LLM_C_MAGICS:
            dtype = _LLM_C_DTYPES.get((magic, version))
            if dtype is None:
                raise UserError(
                    "a token file has llm.c's header in a version that is not known",
                    where=str(path),
                    found=version,
                    expected=" or ".join(str(known) for its_magic, known in _LLM_C_DTYPES if its_magic == magic),
                )
            expected_bytes = _LLM_C_HEADER_BYTES + num_tokens * np.dtype(dtype).itemsize
            _check_size(path, size_bytes, expected_bytes, "its header")
            return TokenFile(path, dtype, _LLM_C_HEADER_BYTES, num_tokens, vocab_size, None)
    if size_bytes % 2:
        raise UserError(
            "a token file is cut short",
            where=str(path),
            found=counted(size_bytes, "byte"),
            expected="an even number of bytes: tokens are uint16 where there is neither dataset.json nor a header",
        )
    return TokenFile(path, "uint16", 0, size_bytes // 2, vocab_size, None)


def _size_bytes(path: Path) -> int:
    size_bytes = regular_size_bytes(path, "a token file")
    if size_bytes == 0:
        raise UserError("a token file is empty", where=str(path))
    return size_bytes


def _check_size(path: Path, size_bytes: int, expected_bytes: int, said_by: str) -> None:
    if size_bytes != expected_bytes:
        raise UserError(
            "a token file is cut short" if size_bytes < expected_bytes else "a token file is too long",
            where=str(path),
            found=counted(size_bytes, "byte"),
            expected=f"{counted(expected_bytes, 'byte')}, as {said_by} says",
            hint="prepare or copy the dataset again",
        )


def _scan(file: TokenFile) -> None:
    if file.num_tokens * np.dtype(file.dtype).itemsize < _FULL_SCAN_BYTES:
        starts = list(range(0, file.num_tokens, _BLOCK_TOKENS))
    else:
        last = file.num_tokens - _BLOCK_TOKENS
        starts = [last * number // (_NUM_SAMPLED_BLOCKS - 1) for number in range(_NUM_SAMPLED_BLOCKS)]
    for start in starts:
        file.check(file.read(start, min(_BLOCK_TOKENS, file.num_tokens - start)), start)
