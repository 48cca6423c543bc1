"""A checkpoint goes to any number of ranks, ZeRO stage, precision and offload, and comes back to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

from dist_trainer.checkpoints import index as indices
from dist_trainer.checkpoints.verify import check_sizes, damages
from dist_trainer.exchange.reading import DTYPES, Reader

pytestmark = pytest.mark.integration

RANK = str(Path(__file__).with_name("travelling_rank.py"))


def leg(source: str | None, to: str, stage: int, precision: str = "fp32", **more: Any) -> dict[str, Any]:
    return {"from": source, "to": to, "stage": stage, "precision": precision, **more}


def travel(folder: Path, world_size: int, *legs: dict[str, Any]) -> dict[str, list[float]]:
    """The losses of each leg's steps."""
    ended = run_ranks([RANK, str(folder), json.dumps(legs)], cwd=folder, world_size=world_size)
    assert ended.status == 0, ended.output
    losses: dict[str, list[float]] = json.loads((folder / f"losses-{world_size}.json").read_text())
    return losses


def content(folder: Path) -> dict[str, torch.Tensor]:
    """Every state of every parameter, in fp32."""
    saved = folder / "step-8"
    index = indices.read(saved)
    check_sizes(saved, index)
    assert list(damages(saved, index)) == []
    found = {}
    with Reader(saved, index) as reader:
        for name, parameter in index.parameters.items():
            for state, kept in parameter.states.items():
                assert DTYPES[kept.dtype] == torch.float32
                tensor = torch.empty(parameter.shape)
                reader.read_into(tensor, name, state, 0)
                found[f"{name} {state}"] = tensor
    return found


def assert_same(folder: Path, *names: str) -> None:
    first, *others = (content(folder / name) for name in names)
    assert any(key.endswith(" exp_avg_sq") for key in first)
    for other in others:
        assert first.keys() == other.keys()
        assert [key for key in first if not torch.equal(first[key], other[key])] == []


def test_masters_and_moments_are_the_same_bits_through_any_ranks_and_stages(tmp_path: Path) -> None:
    travel(tmp_path, 1, leg(None, "a", 0, steps=3))
    travel(
        tmp_path,
        2,
        leg("a", "b", 1),
        leg("b", "c", 2, "bf16"),
        leg("c", "d", 3, "fp16"),
        leg("d", "e", 2, offload=True, params={"lr": 0.003}),
        leg("e", "f", 3, "bf16", offload=True, params={"lr": 0.003}),
    )
    travel(
        tmp_path,
        4,
        leg("f", "g", 3, "bf16", settings=["zero_optimization.sub_group_size=100"]),
        leg("g", "h", 2, settings=["zero_optimization.round_robin_gradients=true"]),
        leg("h", "i", 0, "bf16"),
        leg("i", "j", 1, "bf16", settings=["data_types.grad_accum_dtype=fp32"]),
    )
    travel(tmp_path, 1, leg("j", "k", 3), leg("k", "l", 0, "fp16"), leg("l", "m", 0, "bf16"), leg("m", "n", 0))
    assert_same(tmp_path, *"abcdefghijklmn")


def test_losses_go_on_as_if_nothing_had_changed(tmp_path: Path) -> None:
    undisturbed = travel(tmp_path, 1, leg(None, "through", 0, steps=9), leg(None, "a", 0, steps=3))["through"]
    (tmp_path / "a-2").symlink_to(tmp_path / "a")
    on_two = travel(tmp_path, 2, leg("a", "b", 2, steps=2), leg("b", "c", 3, steps=2), leg("a", "same", 0, steps=6))
    last = travel(tmp_path, 1, leg("c", "d", 1, steps=2), leg("a", "again", 0, steps=6))
    resumed = [*on_two["b"], *on_two["c"], *last["d"]]
    assert resumed == pytest.approx(undisturbed[3:], abs=1e-5)
    assert last["again"] == undisturbed[3:], "to the bit where ranks, stage and precision are the same"
