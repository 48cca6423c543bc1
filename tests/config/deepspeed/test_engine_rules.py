"""What DeepSpeed's engine breaks off at, by what a file says; tests/train/test_key_pairs.py asks the engine."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from engine_cases import CASES

from dist_trainer.config.deepspeed import params
from dist_trainer.config.deepspeed.check import examine
from dist_trainer.config.deepspeed.engine_rules import ENGINE_RULES, EngineRule, refused_by_the_engine
from dist_trainer.config.deepspeed.resolve import Facts, resolve
from dist_trainer.errors import UserError

PACKAGE = Path(deepspeed.__file__).parent


@pytest.mark.parametrize(("raw", "key", "near"), CASES)
def test_what_the_engine_refuses_is_refused_with_its_key(raw: dict[str, Any], key: str, near: dict[str, Any]) -> None:
    facts = Facts(world_size=1, hidden_size=64, total_steps=10)
    with pytest.raises(UserError) as caught:
        resolve({"train_batch_size": 1, **raw}, facts, source="ds.json")
    assert caught.value.key == key
    assert caught.value.hint
    resolve({"train_batch_size": 1, **near}, facts, source="ds.json")


@pytest.mark.parametrize("rule", ENGINE_RULES, ids=lambda rule: rule.key)
def test_each_row_is_said_in_a_case_and_the_source_bears_it_out(rule: EngineRule) -> None:
    said = [mistake for raw, *_ in CASES for mistake in refused_by_the_engine(examine(raw).config)]
    assert (rule.key, rule.problem) in {(mistake.key, mistake.problem) for mistake in said}
    file, text = rule.source
    assert text in (PACKAGE / file).read_text(encoding="utf-8")


def test_torchs_optimizers_take_what_the_table_says() -> None:
    assert set(params.TORCH_TAKES) == set(params.TORCH_OPTIMIZERS)
    for name, takes in params.TORCH_TAKES.items():
        if hasattr(torch.optim, name):
            assert set(inspect.signature(getattr(torch.optim, name)).parameters) - {"params"} <= takes
