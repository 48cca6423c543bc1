from __future__ import annotations

from collections import Counter

import pytest
import torch

from dist_trainer.sample.choosing import Choice

LOGITS = torch.tensor([0.0, 2.0, -1.0, 1.0, -torch.tensor(80.0)])


def drawn(choice: Choice, count: int = 4000) -> Counter[int]:
    generator = choice.generator()
    return Counter(choice.next_token(LOGITS, generator) for _ in range(count))


def test_at_temperature_0_the_likeliest_token_is_taken() -> None:
    assert drawn(Choice(temperature=0), 20) == {1: 20}
    assert drawn(Choice(temperature=0, top_k=3), 20) == {1: 20}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_come_as_often_as_the_model_says(temperature: float) -> None:
    shares = torch.softmax(LOGITS / temperature, dim=0)
    found = drawn(Choice(temperature=temperature))
    assert [found[token] / 4000 for token in range(5)] == pytest.approx(shares.tolist(), abs=0.03)


def test_top_k_leaves_the_likeliest_tokens_and_their_shares() -> None:
    found = drawn(Choice(top_k=2))
    assert set(found) == {1, 3}
    assert found[1] / 4000 == pytest.approx(float(torch.sigmoid(torch.tensor(1.0))), abs=0.03)
    assert drawn(Choice(top_k=1), 20) == {1: 20}
    assert set(drawn(Choice(top_k=99))) == {0, 1, 2, 3}


def test_the_smallest_temperature_is_the_likeliest_token() -> None:
    assert drawn(Choice(temperature=5e-324), 20) == {1: 20}
