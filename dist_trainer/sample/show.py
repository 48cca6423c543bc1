"""What is printed: the texts, or a text while it is made."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from dist_trainer.encoding import without_commands
from dist_trainer.sample.generation import Continuation
from dist_trainer.sample.tokenizer import Vocabulary
from dist_trainer.units import counted

_NOT_UTF8 = "\N{REPLACEMENT CHARACTER}"


class LiveText:
    """Prints a text as its tokens come, each character once all of its bytes are there."""

    def __init__(self, vocabulary: Vocabulary, prompt: str, before: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._before = before
        self._tokens: list[int] = []
        self._num_shown = 0
        print(without_commands(prompt), end="", flush=True)

    def add(self, token: int) -> None:
        self._tokens.append(token)
        self._show(self._vocabulary.following(self._before, self._tokens).rstrip(_NOT_UTF8))

    def end(self) -> None:
        self._show(self._vocabulary.following(self._before, self._tokens) + "\n")

    def _show(self, text: str) -> None:
        print(without_commands(text[self._num_shown :]), end="", flush=True)
        self._num_shown = max(self._num_shown, len(text))


def show_texts(texts: Sequence[str]) -> None:
    """Each text, under its number if there are several."""
    for number, text in enumerate(texts, start=1):
        if len(texts) > 1:
            print(f"--- prompt {number}")
        print(without_commands(text))


def show_tokens(found: Sequence[Continuation]) -> None:
    """The ids that follow each prompt, a line each."""
    for one in found:
        print(*one.tokens)


def show_json(facts: dict[str, Any], found: Sequence[Continuation], texts: Sequence[tuple[str, str]] | None) -> None:
    """`texts`: each prompt, and what follows it; None if ids were given."""
    answers: list[dict[str, Any]] = []
    for number, one in enumerate(found):
        answer: dict[str, Any] = {"tokens": list(one.tokens), "has_ended": one.has_ended}
        if texts is not None:
            answer = {"prompt": texts[number][0], "text": texts[number][1], **answer}
        answers.append(answer)
    print(json.dumps({**facts, "samples": answers}, indent=2))


def show_speed(checkpoint: str, num_tokens: int, seconds: float) -> None:
    rate = num_tokens / seconds if seconds > 0 else 0.0
    sys.stdout.flush()
    print(f"{checkpoint}: {counted(num_tokens, 'token')} in {seconds:.1f} s, {rate:.1f} tokens/s", file=sys.stderr)
