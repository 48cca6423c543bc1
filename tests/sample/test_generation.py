from __future__ import annotations

import pytest
import torch
from random_gpt import random_gpt

from dist_trainer.config.run import ModelConfig
from dist_trainer.errors import UserError
from dist_trainer.model.gpt import GPT
from dist_trainer.sample.choosing import Choice
from dist_trainer.sample.generation import Continuation, Ending, generate, window_start

CONFIG = ModelConfig(num_layers=2, hidden_size=32, num_heads=4, vocab_size=61, context_length=16)
GREEDY = Choice(temperature=0)
PROMPTS = [[1, 2, 3, 4, 5], [7], [60, 59], list(range(10, 26)), [3, 3, 3], [9, 1], [1, 2, 3]]


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_gpt(CONFIG, std=0.3)


def ending(max_tokens: int, *, end_of_text: int | None = None) -> Ending:
    return Ending(max_tokens, CONFIG.vocab_size, end_of_text)


def without_cache(model: GPT, prompt: list[int], num_tokens: int) -> list[int]:
    """The likeliest tokens, by the forward pass of the training over the whole window each time."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        window = tokens[window_start(len(tokens), CONFIG.context_length) :]
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([window]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_the_likeliest_tokens_are_those_of_the_forward_pass_far_beyond_the_context(model: GPT) -> None:
    found = generate(model, PROMPTS, GREEDY, ending(50))
    assert [list(one.tokens) for one in found] == [without_cache(model, prompt, 50) for prompt in PROMPTS]


@pytest.mark.parametrize("choice", [GREEDY, Choice(seed=3), Choice(temperature=0.7, top_k=5, seed=3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_prompt_gets_the_same_tokens_alone_and_in_any_batch(model: GPT, choice: Choice, dtype: torch.dtype) -> None:
    model = GPT(CONFIG).eval().to(dtype)
    together = generate(model, PROMPTS, choice, ending(24))
    assert together == [generate(model, [prompt], choice, ending(24))[0] for prompt in PROMPTS]
    assert together == generate(model, PROMPTS[::-1], choice, ending(24))[::-1]


def test_a_seed_gives_the_same_tokens_again_and_another_gives_others(model: GPT) -> None:
    first, again, other = (generate(model, PROMPTS[:1], Choice(seed=seed), ending(30)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_text_ends_before_the_end_of_text_and_its_place_is_taken_by_the_next_prompt(model: GPT) -> None:
    whole = generate(model, PROMPTS, GREEDY, ending(20))
    last = whole[0].tokens[4]
    ended = generate(model, PROMPTS, GREEDY, ending(20, end_of_text=last))
    for before, after in zip(whole, ended, strict=True):
        if last in before.tokens:
            assert after == Continuation(before.tokens[: before.tokens.index(last)], True)
        else:
            assert after == before and not after.has_ended


def test_each_token_is_told_as_it_comes(model: GPT) -> None:
    told: list[int] = []
    (found,) = generate(model, [[5]], GREEDY, ending(7), told.append)
    assert tuple(told) == found.tokens


def test_tokens_that_the_tokenizer_does_not_have_are_never_taken(model: GPT) -> None:
    (found,) = generate(model, [[5]], Choice(temperature=50.0), Ending(200, 4))
    assert set(found.tokens) == {0, 1, 2, 3}


def test_a_model_without_finite_logits_is_refused() -> None:
    broken = GPT(CONFIG)
    with torch.no_grad():
        broken.final_norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        generate(broken, [[5]], GREEDY, ending(1))


@pytest.mark.parametrize("context_length", [1, 2, 3, 16, 17])
def test_the_window_holds_the_newest_tokens_from_half_a_context_to_a_whole_one(context_length: int) -> None:
    before = 0
    for num_tokens in range(1, 5 * context_length + 3):
        start = window_start(num_tokens, context_length)
        assert start >= before and 0 < num_tokens - start <= context_length
        if start != before:
            assert num_tokens - 1 - before == context_length and num_tokens - start == max(1, context_length // 2)
        before = start
