"""Adapts a resolved DeepSpeed configuration to the device, and says each thing it changes in one line.

Nothing is dropped silently, and what has no substitute is a UserError. Established with DeepSpeed 0.19.8's CPU
accelerator: it refuses fp16 (except on CPUs with fp16 arithmetic), builds its Adam, Lion and Adagrad with a C++
compiler at run time, and has no Lamb, no Lion without offload, and no weight quantiser.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dist_trainer.config.deepspeed.engine_rules import runs_cpu_adam
from dist_trainer.config.deepspeed.params import is_adam
from dist_trainer.config.deepspeed.rules import block, dtype_family, offload_device, precision, zero_stage
from dist_trainer.config.optimisations import set_precision, use_torch_adam
from dist_trainer.config.request import Precision
from dist_trainer.errors import UserError


@dataclass(frozen=True)
class DeviceFacts:
    """What a rank's device supports, according to DeepSpeed's accelerator and to PATH. `name` is for people.

    `has_async_io`: DeepSpeed can build the op that reads and writes NVMe; also True if that was not asked.
    """

    kind: Literal["cpu", "cuda"]
    supports_bf16: bool
    supports_fp16: bool
    has_compiler: bool
    name: str
    has_async_io: bool = True


# A device that supports everything: to find mistakes in the files when the real device cannot be asked (yet).
ANY_DEVICE = DeviceFacts(kind="cuda", supports_bf16=True, supports_fp16=True, has_compiler=True, name="any")


def adapt(resolved: Mapping[str, Any], device: DeviceFacts) -> tuple[dict[str, Any], list[str]]:
    """The configuration as it runs on this device (a new dict), and a line for each thing that was changed.

    Raises UserError, naming the key, for a setting that this device cannot run and that has no substitute.
    """
    config = copy.deepcopy(dict(resolved))
    if device.kind == "cpu":
        _refuse_what_the_cpu_lacks(config)
    if not device.has_async_io:
        _refuse_nvme(config)
    return config, [
        *_precision(config, device),
        *_autocast(config, device),
        *_optimizer(config, device),
        *_compile(config, device),
        *_direct_storage(config, device),
    ]


def _refuse_what_the_cpu_lacks(config: Mapping[str, Any]) -> None:
    kind = str(block(config, "optimizer").get("type"))
    offloaded = offload_device(config, "optimizer") != "none"
    if kind.lower() == "lamb" or (kind.lower() == "lion" and not offloaded):
        raise UserError(
            f"DeepSpeed has no {kind} for the CPU" + (" without optimizer offload" if kind.lower() == "lion" else ""),
            key="optimizer.type",
            found=kind,
            hint='use "AdamW"' + (", or offload_optimizer to the cpu" if kind.lower() == "lion" else ""),
        )
    if zero_stage(config) != 3:
        # The settings below have no effect under stage 3.
        return
    if block(block(config, "zero_optimization"), "offload_optimizer").get("super_offload"):
        raise UserError(
            "DeepSpeed's SuperOffload needs CUDA",
            key="zero_optimization.offload_optimizer.super_offload",
            found=True,
            hint="remove it",
        )
    for name in ("zero_quantized_weights", "zero_quantized_nontrainable_weights"):
        if block(config, "zero_optimization").get(name):
            raise UserError(
                "DeepSpeed has no weight quantiser for the CPU", key=f"zero_optimization.{name}", hint="remove it"
            )


def offloads_to_nvme(config: Mapping[str, Any]) -> str | None:
    """'optimizer' or 'param', whichever is offloaded to NVMe; None if neither. Only stage 3 can do that."""
    if zero_stage(config) != 3:
        return None
    return next((what for what in ("optimizer", "param") if offload_device(config, what) == "nvme"), None)


def _refuse_nvme(config: Mapping[str, Any]) -> None:
    what = offloads_to_nvme(config)
    if what is not None:
        raise UserError(
            "offload to NVMe runs DeepSpeed's async_io, which is built with libaio, and there is none",
            key=f"zero_optimization.offload_{what}.device",
            found="nvme",
            hint='install libaio-dev (or libaio-devel) and a C++ compiler, or write "cpu"',
        )


def _precision(config: dict[str, Any], device: DeviceFacts) -> list[str]:
    asked = precision(config)
    supported = {"fp32": True, "fp16": device.supports_fp16, "bf16": device.supports_bf16}
    if supported[asked]:
        return []
    other: Precision = "bf16" if asked == "fp16" else "fp16"
    instead: Precision = other if supported[other] else "fp32"
    master = block(config, asked).get(f"{asked}_master_weights_and_grads")
    set_precision(config, instead)
    # Without its CPU Adam DeepSpeed refuses 16-bit master weights, except bf16 ones beside bf16 optimizer states;
    # there are no fp16 states.
    if master is not None and instead != "fp32" and (not master or runs_cpu_adam(config)):
        config[instead][f"{instead}_master_weights_and_grads"] = master
    who = "DeepSpeed on the CPU" if device.kind == "cpu" else device.name
    return [f"{asked} is not supported by {who}: {instead} runs instead"]


def _autocast(config: dict[str, Any], device: DeviceFacts) -> list[str]:
    autocast = config.get("torch_autocast")
    if not autocast or not autocast.get("enabled"):
        return []
    weights = precision(config)
    if device.kind == "cpu" and weights != "fp32":
        # The CPU's LayerNorm refuses a mix of two 16-bit types, and without a dtype torch's autocast there is bf16.
        asked = dtype_family(autocast.get("dtype", "bf16"))
        if asked not in ("fp32", weights):
            autocast["dtype"] = weights
            return [f"torch_autocast: {asked} does not go with {weights} weights on the CPU: {weights} runs instead"]
    if device.supports_bf16 or "dtype" not in autocast or dtype_family(autocast["dtype"]) != "bf16":
        return []
    autocast["dtype"] = "fp16"
    return [f"torch_autocast: bf16 is not supported by {device.name}: fp16 runs instead"]


def _optimizer(config: dict[str, Any], device: DeviceFacts) -> list[str]:
    """Replaces DeepSpeed's own optimizers, which it compiles at first use, where there is no compiler."""
    kind = str(block(config, "optimizer").get("type"))
    params = config.get("optimizer", {}).get("params", {})
    if device.has_compiler or params.get("torch_adam"):
        return []
    if offload_device(config, "optimizer") != "none":
        if is_adam(config) or kind.lower() in ("lion", "adagrad"):
            name = "Adam" if is_adam(config) else kind.capitalize()
            raise UserError(
                f"optimizer offload runs DeepSpeedCPU{name}, which is built with a C++ compiler, and there is none",
                key="zero_optimization.offload_optimizer.device",
                found=offload_device(config, "optimizer"),
                hint="install g++" + (', or add "torch_adam": true to optimizer.params' if name == "Adam" else ""),
            )
        return []
    if kind.lower() == "muon":
        params["torch_adam"] = True
        return ["Muon: DeepSpeed's FusedAdam is built with a compiler, and there is none: torch's AdamW runs beside it"]
    if not is_adam(config):
        return []
    if params.get("bias_correction") is False:
        raise UserError(
            "only DeepSpeed's FusedAdam can leave the bias uncorrected; it is built with a compiler, and there is none",
            key="optimizer.params.bias_correction",
            found=False,
            hint="install g++, or remove it",
        )
    use_torch_adam(params, fused=True)
    decoupled = kind.lower() == "adamw" or params.get("adam_w_mode", True)
    return [
        "DeepSpeed's FusedAdam is built with a compiler, and there is none: "
        f"torch's fused {'AdamW' if decoupled else 'Adam'} runs instead"
    ]


def _compile(config: dict[str, Any], device: DeviceFacts) -> list[str]:
    if "compile" not in config:
        return []
    if not device.has_compiler:
        del config["compile"]
        return ["torch.compile needs a C++ compiler, and there is none: the model runs uncompiled"]
    if device.kind == "cpu" and zero_stage(config) == 3:
        # torch.compile's tracer would look at weights that ZeRO-3 has not gathered.
        del config["compile"]
        return ["torch.compile does not go with ZeRO stage 3 on the CPU: the model runs uncompiled"]
    if device.kind == "cpu" and block(config, "compile").get("deepcompile"):
        config["compile"]["deepcompile"] = False
        return ["DeepCompile needs CUDA: torch.compile runs instead"]
    return []


def _direct_storage(config: dict[str, Any], device: DeviceFacts) -> list[str]:
    if device.kind == "cuda" or not block(config, "aio").get("use_gds"):
        return []
    config["aio"]["use_gds"] = False
    return ["aio.use_gds needs CUDA: plain asynchronous I/O runs instead"]
