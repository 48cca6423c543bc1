"""Two checkpoints are compared by the values of their states, whatever ranks and dtypes they were written by."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gpt_checkpoints
import pytest
import torch
from torch import Tensor

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.find import Found
from dist_trainer.exchange import compare as comparing
from dist_trainer.exchange.compare import compare, position_differences

GPT = gpt_checkpoints.model()
States = dict[str, dict[str, Tensor]]


def states() -> States:
    of = gpt_checkpoints.states_of(GPT)
    return {name: {state: tensor.clone() for state, tensor in of[name].items()} for name in of}


def saved(folder: Path, states: States, **how: Any) -> Found:
    written = gpt_checkpoints.write(folder, GPT, states, **how)
    return Found(written, index.read(written))


def test_the_same_states_of_other_ranks_and_stages_are_the_same(tmp_path: Path) -> None:
    found = compare(
        saved(tmp_path / "a", states(), num_ranks=1, stage=0), saved(tmp_path / "b", states(), num_ranks=3, stage=3)
    )
    assert found.is_same
    assert found.num_same == 2 * len(states())


@pytest.mark.parametrize("block_elements", [13, 2**22])
def test_by_how_much_a_state_differs_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_elements: int
) -> None:
    monkeypatch.setattr(comparing, "_BLOCK_ELEMENTS", block_elements)
    other = states()
    flat = other["final_norm.weight"]["exp_avg"]
    ours = states()
    ours["final_norm.weight"]["exp_avg"][[3, 40]] = torch.tensor([1.0, 8.0])
    flat[[3, 40]] = torch.tensor([2.0, 6.0])
    found = compare(saved(tmp_path / "a", ours), saved(tmp_path / "b", other, num_ranks=1))
    (difference,) = found.differences
    assert str(difference) == ("final_norm.weight's exp_avg: 2 of 48 elements, by 2 at most, relatively by 0.5")
    assert not found.is_same


def test_what_is_no_number_differs_without_bound_from_a_number_and_not_from_itself(tmp_path: Path) -> None:
    ours, theirs = states(), states()
    for of in (ours, theirs):
        of["final_norm.bias"]["weight"][0] = math.nan
        of["final_norm.bias"]["weight"][1] = math.inf
    assert compare(saved(tmp_path / "a", ours), saved(tmp_path / "b", theirs)).is_same
    theirs["final_norm.bias"]["weight"][0] = 1.0
    (difference,) = compare(saved(tmp_path / "a", ours), saved(tmp_path / "c", theirs)).differences
    assert (difference.num_different, difference.max_absolute) == (1, math.inf)


def test_shapes_states_and_parameters_that_only_one_has_are_named(tmp_path: Path) -> None:
    theirs = states()
    theirs["position_embedding.weight"] = {
        state: tensor[:16].clone() for state, tensor in theirs["position_embedding.weight"].items()
    }
    del theirs["final_norm.bias"]
    del theirs["final_norm.weight"]["exp_avg"]
    found = compare(saved(tmp_path / "a", states()), saved(tmp_path / "b", theirs))
    assert found.not_comparable == (
        "position_embedding.weight has shape [32, 48] in A, and [16, 48] in B",
        "final_norm.weight's exp_avg is only in A",
        "final_norm.bias is only in A",
    )
    assert not found.is_same


def test_a_state_in_another_dtype_is_compared_by_value_and_told(tmp_path: Path) -> None:
    ours, theirs = states(), states()
    ours["final_norm.bias"]["weight"] = ours["final_norm.bias"]["weight"].bfloat16().float()
    theirs["final_norm.bias"]["weight"] = ours["final_norm.bias"]["weight"].bfloat16()
    found = compare(saved(tmp_path / "a", ours), saved(tmp_path / "b", theirs))
    assert found.is_same
    assert found.other_dtypes == ("final_norm.bias's weight is F32 in A, and BF16 in B",)


def test_positions_differ_by_what_a_run_would_go_on_from(tmp_path: Path) -> None:
    first = saved(tmp_path / "a", states(), num_ranks=1)
    assert list(position_differences(first.index, saved(tmp_path / "b", states()).index)) == []
    lines = list(position_differences(first.index, saved(tmp_path / "c", states(), step=9).index))
    assert lines[0] == "step is 8 in A, and 9 in B"
    assert "phase short: tokens is 512 in A, and 576 in B" in lines
