"""The tokenizer of the data that a checkpoint was trained on: found where its index says, and known by its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import INDEX_FILE, DataFacts
from dist_trainer.checkpoints.inside import read_inside
from dist_trainer.data.corpus import standard_library_dataset, standard_library_name
from dist_trainer.data.info import TOKENIZER_FILE
from dist_trainer.data.vocabulary import encode, end_of_text_id, num_token_ids, parse_vocabulary, read_tokenizer
from dist_trainer.encoding import printable
from dist_trainer.errors import UserError
from dist_trainer.units import MIB

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The largest published ones have some 35 MB.
_MAX_BYTES = 256 * MIB
_CURE = "give its file with --tokenizer FILE, or ids instead of text with --tokens '1 2 3'"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer. `num_ids`: one more than its largest id. `where`: the file that it came from."""

    tokenizer: Tokenizer
    num_ids: int
    end_of_text: int
    where: str

    def encode(self, prompt: str) -> list[int]:
        """The prompt's tokens; of an empty one the token that ends a text, after which another begins.

        Raises UserError.
        """
        return list(encode(self.tokenizer, [prompt], self.where)[0]) or [self.end_of_text]

    def following(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of tokens that follow `before`. Bytes that are not UTF-8 are U+FFFD."""
        whole = self._decode([*before, *tokens])
        return whole[len(self._decode(before)) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text


def from_file(path: Path, found: Found, *, vocab_size: int, tell: Callable[[str], None]) -> Vocabulary:
    """The tokenizer in a file that the user has named. It is told if the checkpoint was trained with another.

    Raises UserError.
    """
    data = read_tokenizer(path)
    digest = _digest(data)
    known = sorted({facts.tokenizer for facts in found.index.made_by.data.values() if facts.tokenizer is not None})
    if known and digest not in known:
        tell(f"{path} is not the tokenizer that the model was trained with: its sha256 is {digest}, not {known[0]}")
    return _vocabulary(data, str(path), vocab_size)


def of_checkpoint(
    found: Found, *, vocab_size: int, progress: bool = False, corpus_folder: Path | None = None
) -> Vocabulary:
    """The tokenizer of the data of the run, by the newest of its phases that has one.

    The built-in corpus is prepared again where it is not there any more, by the same Python. `corpus_folder` as in
    `standard_library_dataset`. Raises UserError naming the file that is missing or has another digest.
    """
    first_error: UserError | None = None
    for facts in reversed(found.index.made_by.data.values()):
        try:
            return _of_data(facts, found, vocab_size, progress, corpus_folder)
        except UserError as error:
            first_error = first_error or error
    raise first_error or UserError(
        "the checkpoint does not say which data it was trained on", where=str(found.folder / INDEX_FILE), hint=_CURE
    )


def _of_data(facts: DataFacts, found: Found, vocab_size: int, progress: bool, corpus_folder: Path | None) -> Vocabulary:
    if facts.tokenizer is None:
        raise UserError("the data of the run came without a tokenizer", where=printable(facts.path), hint=_CURE)
    folder = Path(facts.path).parent
    try:
        data = _read(folder)
    except DamageError as damage:
        if folder.name != standard_library_name(vocab_size):
            raise _refusal(f"the tokenizer of the run's data {damage.problem}", damage.file, facts, found) from damage
        folder = standard_library_dataset(vocab_size, folder=corpus_folder, progress=progress)
        data = _read(folder)
    digest = _digest(data)
    if digest != facts.tokenizer:
        problem = "the tokenizer beside the run's data is not the one that the model was trained with"
        raise _refusal(problem, folder / TOKENIZER_FILE, facts, found, f"sha256 {digest}")
    return _vocabulary(data, str(folder / TOKENIZER_FILE), vocab_size)


def _read(folder: Path) -> bytes:
    return read_inside(folder / TOKENIZER_FILE, folder, max_bytes=_MAX_BYTES)


def _refusal(problem: str, file: Path, facts: DataFacts, found: Found, what_is_there: str | None = None) -> UserError:
    return UserError(
        problem,
        where=printable(str(file)),
        found=what_is_there,
        expected=f"sha256 {printable(str(facts.tokenizer))}, as {found.folder / INDEX_FILE} says",
        hint=_CURE,
    )


def _vocabulary(data: bytes, where: str, vocab_size: int) -> Vocabulary:
    tokenizer = parse_vocabulary(data, where)
    num_ids = num_token_ids(tokenizer)
    if num_ids > vocab_size:
        raise UserError(
            "the tokenizer has more tokens than the model",
            where=where,
            found=num_ids,
            expected=f"at most {vocab_size}, the model's vocab_size",
        )
    return Vocabulary(tokenizer, num_ids, end_of_text_id(tokenizer, where), where)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
