from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.memory.engines.keys import unmodelled
from dist_trainer.memory.engines.settings import read_settings

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[3] / "ds_configs").glob("*.json"))


def config(**more: Any) -> dict[str, Any]:
    return {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, **more}


def test_deepspeeds_defaults_are_filled_in() -> None:
    settings = read_settings(config(zero_optimization={"stage": 3}, bf16={"enabled": True}), cuda=True)
    assert settings.reduce_bucket_size == 500_000_000
    assert settings.overlap_comm
    assert settings.max_live == 1_000_000_000
    assert settings.master_dtype == "fp32"
    assert not read_settings(config(zero_optimization={"stage": 2}), cuda=True).overlap_comm


def test_sixteen_bit_masters_and_states_are_seen() -> None:
    flags = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    settings = read_settings(config(zero_optimization={"stage": 2}, bf16=flags), cuda=True)
    assert (settings.master_bytes, settings.state_bytes) == (2, 4)


@pytest.mark.parametrize(
    ("params", "cuda", "form"),
    [
        ({}, True, "fused"),
        ({"torch_adam": True, "fused": True}, True, "fused"),
        ({"torch_adam": True}, True, "foreach"),
        ({"torch_adam": True}, False, "loop"),
        ({"torch_adam": True, "fused": False}, True, "loop"),
    ],
)
def test_the_form_of_the_update_decides_its_temporaries(params: dict[str, Any], cuda: bool, form: str) -> None:
    assert read_settings(config(optimizer={"type": "AdamW", "params": params}), cuda=cuda).optimizer == form


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_in_a_shipped_file_moves_memory_unseen(name: str) -> None:
    assert tuple(unmodelled(resolve(Request(ds=name), world_size=2, device=ANY_DEVICE).deepspeed)) == ()


@pytest.mark.parametrize(
    ("key", "block"),
    [
        ("leaf_module", {"zero_optimization": {"stage": 3, "leaf_module": {"classes": ["Block"]}}}),
        ("super_offload", {"zero_optimization": {"stage": 3, "offload_optimizer": {"super_offload": True}}}),
        ("zero_quantized_weights", {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}),
        ("flops_profiler", {"flops_profiler": {"enabled": True}}),
        ("Muon", {"optimizer": {"type": "Muon", "params": {}}}),
        ("nvme", {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}),
    ],
)
def test_a_key_that_moves_memory_and_is_not_counted_is_named(key: str, block: dict[str, Any]) -> None:
    assert any(key.lower() in line.lower() for line in unmodelled(config(**block)))
