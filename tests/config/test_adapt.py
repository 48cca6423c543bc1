from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from dist_trainer.config.adapt import DeviceFacts, adapt
from dist_trainer.config.deepspeed.resolve import Facts, resolve
from dist_trainer.errors import UserError

CPU = DeviceFacts(kind="cpu", supports_bf16=True, supports_fp16=False, has_compiler=True, name="CPU")
BARE_CPU = dataclasses.replace(CPU, has_compiler=False)
A100 = DeviceFacts(kind="cuda", supports_bf16=True, supports_fp16=True, has_compiler=True, name="NVIDIA A100")
V100 = dataclasses.replace(A100, supports_bf16=False, name="Tesla V100")
FACTS = Facts(world_size=1, hidden_size=64, total_steps=100)
OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


def adapted(raw: dict[str, Any], device: DeviceFacts) -> tuple[dict[str, Any], list[str]]:
    resolved = resolve({"train_batch_size": 1, **raw}, FACTS, source="ds.json")
    before = copy.deepcopy(resolved)
    result, lines = adapt(resolved, device)
    assert resolved == before
    assert adapt(result, device) == (result, [])
    DeepSpeedConfig(copy.deepcopy(result))
    resolve(result, FACTS, source="ds.json")
    return result, lines


def refused(raw: dict[str, Any], device: DeviceFacts) -> UserError:
    resolved = resolve({"train_batch_size": 1, **raw}, FACTS, source="ds.json")
    with pytest.raises(UserError) as caught:
        adapt(resolved, device)
    return caught.value


def optimizer(kind: str, **params: Any) -> dict[str, Any]:
    return {"optimizer": {"type": kind, "params": params}}


def test_what_applies_is_left_alone() -> None:
    raw = {**optimizer("AdamW"), "fp16": {"enabled": True}, "compile": {"deepcompile": True}}
    result, lines = adapted(raw, A100)
    assert lines == []
    assert result["fp16"] == {"enabled": True}
    assert adapted({**optimizer("AdamW"), "bf16": {"enabled": True}, "compile": {}}, CPU)[1] == []


def test_fp16_on_the_cpu_becomes_bf16_and_leaves_no_loss_scale() -> None:
    raw = {
        "fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 12, "fp16_master_weights_and_grads": True},
        "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}},
        "data_types": {"grad_accum_dtype": "fp16", "param_dtype": "fp16"},
    }
    result, lines = adapted(raw, CPU)
    assert lines == ["fp16 is not supported by DeepSpeed on the CPU: bf16 runs instead"]
    assert result["bf16"] == {"enabled": True, "bf16_master_weights_and_grads": True}
    assert "fp16" not in result
    assert result["data_types"] == {}


def test_fp16_on_a_cpu_that_has_it_stays() -> None:
    assert adapted({"fp16": {"enabled": True}}, dataclasses.replace(CPU, supports_fp16=True))[1] == []


def test_bf16_on_an_older_gpu_becomes_fp16() -> None:
    result, lines = adapted({"bf16": {"enabled": True}}, V100)
    assert lines == ["bf16 is not supported by Tesla V100: fp16 runs instead"]
    assert result["fp16"] == {"enabled": True}
    assert "bf16" not in result
    result, lines = adapted({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, V100)
    assert result["torch_autocast"]["dtype"] == "fp16"
    assert len(lines) == 1


def test_neither_half_precision_leaves_fp32() -> None:
    result, lines = adapted({"bf16": {"enabled": True}}, dataclasses.replace(V100, supports_fp16=False))
    assert lines == ["bf16 is not supported by Tesla V100: fp32 runs instead"]
    assert not {"fp16", "bf16"} & set(result)


@pytest.mark.parametrize("device", [BARE_CPU, dataclasses.replace(A100, has_compiler=False)])
def test_without_a_compiler_torchs_fused_adam_stands_in(device: DeviceFacts) -> None:
    result, lines = adapted(optimizer("AdamW", lr=1e-3, bias_correction=True, set_grad_none=True), device)
    assert result["optimizer"]["params"] == {"lr": 1e-3, "torch_adam": True, "fused": True}
    (line,) = lines
    assert "torch's fused AdamW runs instead" in line
    (line,) = adapted(optimizer("Adam", adam_w_mode=False), device)[1]
    assert "torch's fused Adam runs instead" in line
    assert adapted(optimizer("AdamW", torch_adam=True), device)[1] == []
    assert adapted(optimizer("SGD"), device)[1] == []
    assert refused(optimizer("AdamW", bias_correction=False), device).key == "optimizer.params.bias_correction"


def test_muon_without_a_compiler() -> None:
    result, lines = adapted(optimizer("Muon", lr=1e-3), BARE_CPU)
    assert result["optimizer"]["params"]["torch_adam"] is True
    assert len(lines) == 1


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "Lion", "Adagrad"])
def test_offload_without_a_compiler_is_refused(kind: str) -> None:
    error = refused({**optimizer(kind, lr=1e-3), **OFFLOAD}, BARE_CPU)
    assert error.key == "zero_optimization.offload_optimizer.device"
    assert "g++" in str(error.hint)


def test_offload_of_torchs_adam_needs_no_compiler() -> None:
    assert adapted({**optimizer("AdamW", torch_adam=True), **OFFLOAD}, BARE_CPU)[1] == []


def test_what_deepspeed_lacks_on_the_cpu() -> None:
    assert refused(optimizer("Lamb"), CPU).key == "optimizer.type"
    assert refused(optimizer("Lion"), CPU).key == "optimizer.type"
    assert adapted({**optimizer("Lion"), **OFFLOAD}, CPU)[1] == []
    for name in ("zero_quantized_weights", "zero_quantized_nontrainable_weights"):
        raw = {"zero_optimization": {"stage": 3, name: True}}
        assert refused(raw, CPU).key == f"zero_optimization.{name}"
        assert adapted(raw, A100)[1] == []


def test_compile_without_a_compiler_is_dropped() -> None:
    result, lines = adapted({**optimizer("SGD"), "compile": {}}, BARE_CPU)
    assert "compile" not in result
    (line,) = lines
    assert "runs uncompiled" in line


def test_deepcompile_on_the_cpu_becomes_torch_compile() -> None:
    result, lines = adapted({"compile": {"deepcompile": True}}, CPU)
    assert result["compile"] == {"deepcompile": False}
    assert lines == ["DeepCompile needs CUDA: torch.compile runs instead"]


def test_gpu_direct_storage_on_the_cpu() -> None:
    result, lines = adapted({"aio": {"use_gds": True}}, CPU)
    assert result["aio"]["use_gds"] is False
    assert len(lines) == 1


def test_nvme_needs_what_reads_and_writes_it() -> None:
    without = dataclasses.replace(A100, has_async_io=False)
    for what in ("param", "optimizer"):
        raw = {"zero_optimization": {"stage": 3, f"offload_{what}": {"device": "nvme", "nvme_path": "/nvme"}}}
        assert adapted(raw, A100)[1] == []
        with pytest.raises(UserError, match="libaio") as caught:
            adapted(raw, without)
        assert (caught.value.key, caught.value.found) == (f"zero_optimization.offload_{what}.device", "nvme")
    # There the optimizer goes to the CPU.
    assert adapted(
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/n"}}}, without
    )


def test_compile_under_zero_3_runs_uncompiled_on_the_cpu() -> None:
    raw = {**optimizer("AdamW"), "zero_optimization": {"stage": 3}, "compile": {"deepcompile": True}}
    result, lines = adapted(raw, CPU)
    assert "compile" not in result
    assert lines == ["torch.compile does not go with ZeRO stage 3 on the CPU: the model runs uncompiled"]
    assert "compile" in adapted(raw, A100)[0]
    assert "compile" in adapted({**raw, "zero_optimization": {"stage": 2}}, CPU)[0]


def test_autocast_takes_the_type_of_16_bit_weights_on_the_cpu() -> None:
    raw = {"bf16": {"enabled": True}, "torch_autocast": {"enabled": True, "dtype": "fp16"}}
    result, lines = adapted(raw, CPU)
    assert result["torch_autocast"]["dtype"] == "bf16"
    assert lines == ["torch_autocast: fp16 does not go with bf16 weights on the CPU: bf16 runs instead"]
    assert adapted(raw, A100)[1] == []
    assert adapted({"bf16": {"enabled": True}, "torch_autocast": {"enabled": True}}, CPU)[1] == []


def test_what_needs_cuda_is_refused_at_the_stage_where_it_counts() -> None:
    raw = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "super_offload": True}}}
    with pytest.raises(UserError, match="SuperOffload") as caught:
        adapted(raw, CPU)
    assert caught.value.key == "zero_optimization.offload_optimizer.super_offload"
    assert adapted(raw, A100)
    raw["zero_optimization"]["stage"] = 2
    assert adapted(raw, CPU)


def test_16_bit_masters_that_fp16_has_no_optimizer_for_are_left_out() -> None:
    masters = {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}
    result, _ = adapted({**masters, "zero_optimization": {"stage": 2}}, V100)
    assert result["fp16"] == {"enabled": True}
    offloaded = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    result, _ = adapted({**masters, "zero_optimization": offloaded}, V100)
    assert result["fp16"] == {"enabled": True, "fp16_master_weights_and_grads": True}
