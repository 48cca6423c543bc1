"""The prompts, as tokens that the model can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dist_trainer.encoding import as_utf8
from dist_trainer.errors import UserError
from dist_trainer.units import counted, whole_number


def read_prompts(path: Path) -> list[str]:
    """The lines of a file. Raises UserError if it cannot be read or has none."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError("the prompts cannot be read", where=str(path), found=error.strerror) from error
    except UnicodeDecodeError as error:
        raise UserError("the prompts are not UTF-8", where=str(path), found=str(error)) from error
    if lines[-1] == "":
        del lines[-1]
    if not lines:
        raise UserError("there is no prompt", where=str(path), expected="one a line")
    return lines


def check_text(prompt: str) -> str:
    """The prompt, unchanged. Raises UserError if the command line has it in bytes that are not UTF-8."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError("a prompt is not UTF-8", where="command line", key="--prompt", found=as_utf8(prompt)) from error
    return prompt


def parse_tokens(text: str, *, vocab_size: int) -> list[int]:
    """Token ids with spaces or commas between them. Raises UserError for what is no token of the model."""
    words = text.replace(",", " ").split()
    if not words:
        raise UserError("there is no token", where="command line", key="--tokens", expected="ids, as in '1 2 3'")
    tokens = []
    for word in words:
        token = whole_number(word)
        if token is None or token >= vocab_size:
            raise UserError(
                "not a token of the model",
                where="command line",
                key="--tokens",
                found=word,
                expected=f"a whole number from 0 to {vocab_size - 1}",
            )
        tokens.append(token)
    return tokens


def fit_in(prompts: Sequence[Sequence[int]], context_length: int, tell: Callable[[str], None]) -> list[Sequence[int]]:
    """The last tokens of each prompt that the model can read at once. It is told where there were more."""
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt) > context_length:
            tell(
                f"prompt {number} has {counted(len(prompt), 'token')}, and the model's context {context_length}: "
                f"the last {context_length} are read"
            )
    return [prompt[-context_length:] for prompt in prompts]
