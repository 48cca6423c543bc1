"""Token after token, for several prompts at once; each prompt's tokens are those that it has alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from dist_trainer.errors import UserError
from dist_trainer.model.gpt import GPT
from dist_trainer.model.incremental import Cache, next_logits
from dist_trainer.sample.choosing import Choice

# Rows of every product that reads one token of each text. Always as many, because the rounding of a product depends on
# its shape. On a CPU one row would be faster by a third in fp32; in bf16 four cost as much as one.
_ROWS_ON_A_CPU, _ROWS_ON_A_GPU = 4, 32


@dataclass(frozen=True)
class Ending:
    """When a text ends: at `max_tokens` tokens, or before the token `end_of_text`. Tokens are those of [0, num_ids)."""

    max_tokens: int
    num_ids: int
    end_of_text: int | None = None


@dataclass(frozen=True)
class Continuation:
    """`has_ended`: by the end of the text, which is no part of `tokens`."""

    tokens: tuple[int, ...]
    has_ended: bool


def window_start(num_tokens: int, context_length: int) -> int:
    """The first of so many tokens that the model reads to find the next one.

    It reads all until they are more than its context. Then it goes on with the newer half of a context, until that has
    grown to more than a context again.
    """
    leap = context_length + 1 - max(1, context_length // 2)
    beyond = max(0, num_tokens - context_length)
    return -(-beyond // leap) * leap


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    choice: Choice,
    ending: Ending,
    on_token: Callable[[int], None] = lambda token: None,
) -> list[Continuation]:
    """What follows each prompt, which has at least one token and at most the model's context.

    `on_token` is told each token as it comes. Raises UserError where the model's logits are not finite.
    """
    num_rows = _ROWS_ON_A_GPU if model.token_embedding.weight.is_cuda else _ROWS_ON_A_CPU
    idle = Cache(model, 1)
    done: dict[int, Continuation] = {}
    waiting = iter(enumerate(prompts))
    going: dict[int, _Text] = {}
    while len(done) < len(prompts):
        for number, prompt in islice(waiting, num_rows - len(going)):
            going[number] = _Text(model, prompt, choice, ending)
        logits = _logits(model, list(going.values()), num_rows, idle)
        for (number, text), its_logits in zip(list(going.items()), logits, strict=True):
            token = text.take(its_logits)
            if token is not None:
                on_token(token)
            if text.ended is not None:
                done[number] = text.ended
                del going[number]
    return [done[number] for number in range(len(prompts))]


class _Text:
    """A prompt and what follows it so far. `ended`: the latter, once there will be no more of it."""

    def __init__(self, model: GPT, prompt: Sequence[int], choice: Choice, ending: Ending) -> None:
        assert 0 < len(prompt) <= model.config.context_length
        self.cache = Cache(model, len(prompt) + ending.max_tokens)
        self.ended: Continuation | None = None
        self._tokens = list(prompt)
        self._num_prompt = len(prompt)
        self._start = 0
        self._context_length = model.config.context_length
        self._choice, self._ending = choice, ending
        self._generator = choice.generator()

    def unread(self) -> list[int]:
        """The tokens that the model has to read next. All of the window where it has moved: the same tokens are at
        other positions then, and what was kept of them is of no use.
        """
        start = window_start(len(self._tokens), self._context_length)
        if start != self._start:
            self._start = start
            self.cache.num_tokens = 0
        return self._tokens[start + self.cache.num_tokens :]

    def take(self, logits: Tensor) -> int | None:
        """The next token, which is chosen by these logits; None if the text ends before it."""
        logits = logits[: self._ending.num_ids].float().cpu()
        if not bool(torch.isfinite(logits).all()):
            raise UserError(
                "the model's logits are not finite, so no token can be chosen",
                hint="take an older checkpoint, or --precision fp32",
            )
        token = self._choice.next_token(logits, self._generator)
        if token == self._ending.end_of_text:
            self._end(has_ended=True)
            return None
        self._tokens.append(token)
        if len(self._tokens) - self._num_prompt == self._ending.max_tokens:
            self._end(has_ended=False)
        return token

    def _end(self, *, has_ended: bool) -> None:
        self.ended = Continuation(tuple(self._tokens[self._num_prompt :]), has_ended)


def _logits(model: GPT, texts: Sequence[_Text], num_rows: int, idle: Cache) -> list[Tensor]:
    """Of what follows each text. Those that go on by one token are read together; a window is read by itself."""
    unread = [text.unread() for text in texts]
    steps = [number for number, tokens in enumerate(unread) if len(tokens) == 1]
    found = {
        number: next_logits(model, [tokens], [texts[number].cache])[0]
        for number, tokens in enumerate(unread)
        if len(tokens) > 1
    }
    if steps:
        num_idle = num_rows - len(steps)
        idle.num_tokens = 0
        rows = [unread[number] for number in steps] + [[0]] * num_idle
        logits = next_logits(model, rows, [texts[number].cache for number in steps] + [idle] * num_idle)
        found.update(zip(steps, logits[: len(steps)], strict=True))
    return [found[number] for number in range(len(texts))]
