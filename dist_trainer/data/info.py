"""dataset.json: the description of a prepared dataset's folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from dist_trainer import typed_json
from dist_trainer.data.regular_file import regular_size_bytes
from dist_trainer.errors import UserError
from dist_trainer.typed_json import Count, Finite
from dist_trainer.units import MIB

INFO_FILE = "dataset.json"
TOKENIZER_FILE = "tokenizer.json"
FORMAT_VERSION = 1
_MAX_BYTES = 16 * MIB


def tokens_file(split: str) -> str:
    return f"{split}.bin"


@dataclass(frozen=True)
class SplitInfo:
    """One token file. A text is what lies between two end-of-text tokens."""

    num_tokens: Count
    num_texts: Count
    sha256: str


@dataclass(frozen=True)
class SourceInfo:
    """All inputs with one suffix."""

    suffix: str
    num_files: Count
    num_bytes: Count


@dataclass(frozen=True)
class DatasetInfo:
    """`max_token`: the largest token id in either split. `unigram_entropy_nats`: of the train tokens.

    The unigram entropy is the loss of a model that knows the tokens' frequencies and nothing else.
    """

    format_version: int
    vocab_size: Count
    dtype: str
    end_of_text: Count
    max_token: Count
    unigram_entropy_nats: Finite
    num_documents: Count
    train: SplitInfo
    val: SplitInfo
    tokenizer_sha256: str
    sources: tuple[SourceInfo, ...]

    def split(self, name: str) -> SplitInfo:
        return self.train if name == "train" else self.val


def write_info(folder: Path, info: DatasetInfo) -> None:
    (folder / INFO_FILE).write_text(json.dumps(dataclasses.asdict(info), indent=2) + "\n", encoding="utf-8")


def read_info(folder: Path) -> DatasetInfo:
    """Raises UserError if the folder's dataset.json cannot be read, is damaged, or has another format version."""
    path = folder / INFO_FILE
    try:
        regular_size_bytes(path, "a dataset's description", max_bytes=_MAX_BYTES)
        info = typed_json.read(path, DatasetInfo)
    except OSError as error:
        raise UserError("a dataset's description cannot be read", where=str(path), found=error.strerror) from error
    except typed_json.DamagedError as error:
        raise UserError(
            "a dataset's description is damaged",
            where=str(path),
            key=error.key,
            found=error.problem,
            hint="prepare the dataset again",
        ) from error
    if info.format_version != FORMAT_VERSION:
        raise UserError(
            "a dataset was prepared by another version",
            where=str(path),
            key="format_version",
            found=info.format_version,
            expected=str(FORMAT_VERSION),
            hint="prepare the dataset again",
        )
    return info
