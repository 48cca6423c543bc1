from __future__ import annotations

import torch
from random_gpt import random_gpt

from dist_trainer.config.run import ModelConfig
from dist_trainer.model.incremental import Cache, next_logits

CONFIG = ModelConfig(num_layers=3, hidden_size=48, num_heads=4, vocab_size=211, context_length=32, pad_vocab=True)


def test_logits_token_by_token_are_those_of_the_forward_pass() -> None:
    model = random_gpt(CONFIG, std=0.2)
    tokens = torch.randint(0, CONFIG.vocab_size, (CONFIG.context_length,)).tolist()
    with torch.no_grad():
        whole = model(torch.tensor([tokens]))[0]
    for num_first in (1, 2, 31, 32):
        cache = Cache(model, 99)
        found = [next_logits(model, [tokens[:num_first]], [cache])[0]]
        found += [next_logits(model, [[token]], [cache])[0] for token in tokens[num_first:]]
        torch.testing.assert_close(torch.stack(found), whole[num_first - 1 :], atol=1e-5, rtol=1e-5)
        assert cache.num_tokens == cache.max_tokens == CONFIG.context_length


def test_rows_of_different_lengths_have_the_logits_of_each_alone() -> None:
    model = random_gpt(CONFIG, std=0.2)
    rows = [torch.randint(0, CONFIG.vocab_size, (length,)).tolist() for length in (5, 1, 20)]
    caches = [Cache(model, 32) for _ in rows]
    first = next_logits(model, rows, caches)
    second = next_logits(model, [[7], [8], [9]], caches)
    with torch.no_grad():
        for number, (row, token) in enumerate(zip(rows, (7, 8, 9), strict=True)):
            whole = model(torch.tensor([[*row, token]]))[0]
            torch.testing.assert_close(torch.stack([first[number], second[number]]), whole[-2:], atol=1e-5, rtol=1e-5)


def test_a_cache_takes_no_more_memory_than_its_tokens_need() -> None:
    model = random_gpt(CONFIG, std=0.2)
    assert Cache(model, 5).max_tokens == 5
    assert Cache(model, 10**9).max_tokens == CONFIG.context_length
