"""Files that DeepSpeed's engine refuses, each with the key that is to blame and the next thing to it that is fine."""

from __future__ import annotations

from typing import Any

OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
TORCH_ADAM = {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **keys}}


def bf16(**keys: Any) -> dict[str, Any]:
    return {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, **keys}}


def fp16(**keys: Any) -> dict[str, Any]:
    return {"fp16": {"enabled": True, "fp16_master_weights_and_grads": True, **keys}}


def zenflow(**keys: Any) -> dict[str, Any]:
    return zero(2, **OFFLOADED, zenflow=keys)


FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}
CASES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    (
        {**zero(2), **fp16()},
        "fp16.fp16_master_weights_and_grads",
        {**zero(2, **OFFLOADED), **fp16()},
    ),
    (
        {**zero(2, **OFFLOADED), **fp16(), **TORCH_ADAM},
        "fp16.fp16_master_weights_and_grads",
        {**zero(2, **OFFLOADED), **fp16(fp16_master_weights_and_grads=False), **TORCH_ADAM},
    ),
    (
        {**zero(2), **bf16()},
        "bf16.bf16_master_weights_and_grads",
        {**zero(2), **bf16(bf16_optimizer_states=True)},
    ),
    (
        {**zero(3, **OFFLOADED), **bf16(bf16_optimizer_states=True), **TORCH_ADAM},
        "bf16.bf16_master_weights_and_grads",
        {**zero(3, **OFFLOADED), **bf16(bf16_optimizer_states=True)},
    ),
    (
        {**zero(1), **bf16()},
        "bf16.bf16_master_weights_and_grads",
        {**zero(1), **bf16(), **FP32_SUMS},
    ),
    (
        {**zero(2, **OFFLOADED), **bf16(), "fp16": {"fp16_master_weights_and_grads": True}},
        "fp16.fp16_master_weights_and_grads",
        {**zero(2, **OFFLOADED), **bf16(), "fp16": {"fp16_master_weights_and_grads": False}},
    ),
    (
        {**zero(2), "prescale_gradients": True},
        "prescale_gradients",
        {**zero(2, reduce_scatter=False), "prescale_gradients": True},
    ),
    (
        {**zero(3), "gradient_predivide_factor": 2.0},
        "gradient_predivide_factor",
        {**zero(1), "gradient_predivide_factor": 2.0},
    ),
    (
        zero(1, compute_grad_norm=False),
        "zero_optimization.compute_grad_norm",
        {**zero(1, compute_grad_norm=False), "gradient_clipping": 0.0},
    ),
    (
        {**zero(2, compute_grad_norm=False, **OFFLOADED), "gradient_clipping": 0},
        "zero_optimization.compute_grad_norm",
        zero(2, compute_grad_norm=True, **OFFLOADED),
    ),
    (
        {**zero(2, compute_grad_norm=False, zenflow={}, **OFFLOADED), "gradient_clipping": 0},
        "zero_optimization.compute_grad_norm",
        zero(2, zenflow={}, **OFFLOADED),
    ),
    (
        {**zero(1, compute_grad_norm=False), "bf16": {"enabled": True}, **FP32_SUMS, "gradient_clipping": 0},
        "zero_optimization.compute_grad_norm",
        {**zero(1, compute_grad_norm=False), "bf16": {"enabled": True}, "gradient_clipping": 0},
    ),
    (
        {**zero(3, offload_optimizer={"device": "cpu", "ratio": 0.5}), **TORCH_ADAM},
        "zero_optimization.offload_optimizer.ratio",
        zero(3, offload_optimizer={"device": "cpu", "ratio": 0.5}),
    ),
    (
        {"optimizer": {"type": "Lamb"}, "fp16": {"enabled": True, "loss_scale": 128}},
        "fp16.loss_scale",
        {"optimizer": {"type": "Lamb"}, "fp16": {"enabled": True, "loss_scale": 0}},
    ),
    ({"compile": {"autoep_non_moe": True}}, "compile.autoep_non_moe", {"compile": {"autoep_non_moe": False}}),
    (zero(2, zenflow={}), "zero_optimization.zenflow", zero(2, zenflow={}, **OFFLOADED)),
    (
        {
            **zenflow(update_interval=1, full_warm_up_rounds=1),
            "optimizer": {"type": "SGD"},
            "zero_allow_untested_optimizer": True,
        },
        "optimizer.type",
        {**zenflow(update_interval=1), "optimizer": {"type": "Adam"}},
    ),
    (zero(0, zenflow={}), "zero_optimization.zenflow", zero(0)),
    (zero(3, zenflow={}, **OFFLOADED), "zero_optimization.zenflow", zero(3, **OFFLOADED)),
    (
        zero(2, zenflow={}, reduce_scatter=False, **OFFLOADED),
        "zero_optimization.reduce_scatter",
        zero(2, zenflow={}, reduce_scatter=True, **OFFLOADED),
    ),
    (
        {"optimizer": {"type": "Adagrad", "params": {"fused": True, "foreach": True}}},
        "optimizer.params.foreach",
        {"optimizer": {"type": "Adagrad", "params": {"fused": True, "foreach": False}}},
    ),
    (
        zero(3, zero_quantized_gradients=True, reduce_scatter=False),
        "zero_optimization.zero_quantized_gradients",
        zero(3, zero_quantized_gradients=True),
    ),
    (
        {**zero(1, zero_quantized_weights=True), "torch_autocast": {"enabled": True}},
        "zero_optimization.zero_quantized_weights",
        {**zero(1, zero_quantized_weights=True), "torch_autocast": {"enabled": False}},
    ),
    (
        {"fp16": {"enabled": True}, "torch_autocast": {"enabled": True}},
        "torch_autocast.enabled",
        {"bf16": {"enabled": True}, "torch_autocast": {"enabled": True}},
    ),
    (zenflow(select_interval=4), "zero_optimization.zenflow.select_interval", zenflow(select_interval="auto")),
    (
        zenflow(select_strategy="step"),
        "zero_optimization.zenflow.select_interval",
        zenflow(select_strategy="step", select_interval=4),
    ),
    (
        zenflow(select_strategy="step", select_interval=4, update_interval=5),
        "zero_optimization.zenflow.select_interval",
        zenflow(select_strategy="step", select_interval=5, update_interval=5),
    ),
    (
        zenflow(select_strategy="epoch", select_interval=1, steps_per_epoch=4, update_interval=5),
        "zero_optimization.zenflow.select_interval",
        zenflow(select_strategy="epoch", select_interval=1, update_interval=5),
    ),
    (
        zenflow(offload=True),
        "zero_optimization.zenflow.offload",
        zero(2, **OFFLOADED, zenflow={"offload": True}, overlap_comm=True),
    ),
    (
        {**zenflow(), "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "adam_w_mode": True}}},
        "optimizer.params.adam_w_mode",
        {**zenflow(), "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "amsgrad": True}}},
    ),
    (
        {"optimizer": {"type": "RMSprop", "params": {"torch_adam": True}}},
        "optimizer.params.torch_adam",
        {"optimizer": {"type": "RMSprop", "params": {"alpha": 0.9}}},
    ),
]
