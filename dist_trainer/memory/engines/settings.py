"""What of a DeepSpeed JSON moves memory, with DeepSpeed's own defaults filled in; and what does but is not modelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dist_trainer.config.deepspeed.rules import block, dtype_family, gradient_clipping, offload_device, precision, zero_stage

Optimizer = Literal["fused", "foreach", "loop", "host"]

BYTES_OF = {"fp32": 4, "bf16": 2, "fp16": 2}

# Optimizer states a parameter, by the lowered name of the optimizer.
_STATES = {
    "adam": 2,
    "adamw": 2,
    "lamb": 2,
    "lion": 1,
    "adagrad": 1,
    "rmsprop": 1,
    "nadam": 2,
    "radam": 2,
    "adamax": 2,
    "adadelta": 2,
    "sgd": 0,
}
# Keys that move memory and that no plan counts yet, with why.
_UNMODELLED = {
    "zero_optimization.zero_hpz_partition_size": "a second copy of the parameters within a node",
    "zero_optimization.zero_quantized_weights": "quantised gathering",
    "zero_optimization.zero_quantized_gradients": "quantised reduction",
    "zero_optimization.zero_quantized_nontrainable_weights": "quantised weights",
    "zero_optimization.mics_shard_size": "MiCS shards over part of the ranks",
    "zero_optimization.zenflow": "ZenFlow's own buffers",
    "zero_optimization.parameter_alignment": "padding between parameters",
    "zero_optimization.super_offload": "SuperOffload's own buffers",
    "sparse_gradients": "sparse gradients",
    "tensor_parallel.autotp_size": "tensor parallel shards",
    "pipeline": "pipeline stages",
    "data_efficiency.enabled": "other sequence lengths and dropped tokens",
    "curriculum_learning.enabled": "other sequence lengths: the plan is for the longest",
    "progressive_layer_drop.enabled": "layers left out: the plan is for all of them",
    "compression_training": "compression",
    "flops_profiler.enabled": "the profiler's own memory",
    "sequence_parallel_size": "sequence parallel shards",
    "amp.enabled": "apex",
    "eigenvalue.enabled": "the eigenvalue's own passes",
    "compile.deepcompile": "DeepCompile schedules memory by itself",
}


@dataclass(frozen=True)
class Settings:
    """Sizes of buckets and thresholds are in elements, as DeepSpeed has them; dtypes are 'fp32', 'bf16', 'fp16'."""

    stage: int
    dtype: str
    grad_accum_dtype: str
    comm_dtype: str
    master_dtype: str
    autocast: str | None
    micro_batch: int
    accumulation: int
    clips: bool
    optimizer: Optimizer
    optimizer_name: str
    states_per_parameter: int
    deepspeed_fused: bool
    reduce_bucket_size: int
    overlap_comm: bool
    contiguous_gradients: bool
    reduce_scatter: bool
    memory_efficient_linear: bool
    round_robin: bool
    sub_group_size: int
    max_live: int
    max_reuse: int
    prefetch_bucket_size: int
    persistence_threshold: int
    model_persistence_threshold: int
    offload_optimizer: str
    offload_param: str
    offload_states_dtype: str
    pin_memory: bool
    checkpointing: bool
    num_checkpoints: int | None
    cpu_checkpointing: bool
    compiles: bool

    @property
    def weight_bytes(self) -> int:
        return BYTES_OF[self.dtype]

    @property
    def accum_bytes(self) -> int:
        return BYTES_OF[self.grad_accum_dtype]

    @property
    def reduction_bytes(self) -> int:
        """ZeRO reduces the gradients of what autocast runs in 16-bit in 16-bit too."""
        return BYTES_OF[self.autocast or self.comm_dtype]

    @property
    def master_bytes(self) -> int:
        return BYTES_OF[self.master_dtype]

    @property
    def state_bytes(self) -> int:
        """Bytes of all optimizer states of one parameter."""
        return self.states_per_parameter * BYTES_OF[self.offload_states_dtype]


def read_settings(config: Mapping[str, Any], *, cuda: bool) -> Settings:
    """Reads a resolved configuration (nothing in it says "auto")."""
    zero, stage, dtype = block(config, "zero_optimization"), zero_stage(config), precision(config)
    optimizer = block(config, "optimizer")
    params = block(optimizer, "params")
    name = str(optimizer.get("type", "adamw")).lower()
    accum = block(config, "data_types").get("grad_accum_dtype")
    comm = config.get("communication_data_type")
    autocast = block(config, "torch_autocast")
    activation = config.get("activation_checkpointing")
    overlap = zero.get("overlap_comm")
    low_master = any(block(config, kind).get(f"{kind}_master_weights_and_grads") for kind in ("bf16", "fp16"))
    master = dtype if low_master else "fp32"
    offload = offload_device(config, "optimizer")
    states_dtype = master
    if offload != "none":
        low_states = block(config, "bf16").get("bf16_optimizer_states") or params.get("fp32_optimizer_states") is False
        states_dtype = dtype if low_states else "fp32"
    return Settings(
        stage=stage,
        dtype=dtype,
        grad_accum_dtype=dtype_family(accum) if accum else dtype,
        comm_dtype=dtype_family(comm) if comm else dtype,
        master_dtype=master,
        autocast=dtype_family(autocast.get("dtype", "bfloat16")) if autocast.get("enabled") else None,
        micro_batch=int(config["train_micro_batch_size_per_gpu"]),
        accumulation=int(config["gradient_accumulation_steps"]),
        clips=bool(gradient_clipping(config)),
        optimizer=_optimizer(name, params, offload=offload, cuda=cuda),
        optimizer_name=name,
        states_per_parameter=_states(name, params),
        deepspeed_fused=name in ("adam", "adamw") and not params.get("torch_adam"),
        reduce_bucket_size=int(zero.get("reduce_bucket_size", 5e8)),
        overlap_comm=stage == 3 if overlap is None else bool(overlap),
        contiguous_gradients=bool(zero.get("contiguous_gradients", True)) or offload != "none",
        reduce_scatter=bool(zero.get("reduce_scatter", True)),
        memory_efficient_linear=bool(zero.get("memory_efficient_linear", True)),
        round_robin=bool(zero.get("round_robin_gradients", False)),
        sub_group_size=int(zero.get("sub_group_size", 1e9)),
        max_live=int(zero.get("stage3_max_live_parameters", 1e9)),
        max_reuse=int(zero.get("stage3_max_reuse_distance", 1e9)),
        prefetch_bucket_size=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        persistence_threshold=int(zero.get("stage3_param_persistence_threshold", 1e5)),
        model_persistence_threshold=int(zero.get("stage3_model_persistence_threshold", 2**62)),
        offload_optimizer=offload,
        offload_param=offload_device(config, "param"),
        offload_states_dtype=states_dtype,
        pin_memory=bool(block(zero, "offload_optimizer").get("pin_memory", False)),
        checkpointing=activation is not None,
        num_checkpoints=(activation or {}).get("number_checkpoints"),
        cpu_checkpointing=bool((activation or {}).get("cpu_checkpointing", False)),
        compiles="compile" in config,
    )


def unmodelled(config: Mapping[str, Any]) -> tuple[str, ...]:
    """A line for each key of the configuration that moves memory and that the plan does not count."""
    lines = []
    for key, why in _UNMODELLED.items():
        value: Any = config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        off: tuple[Any, ...] = (None, False, 0, 1, -1, {}) if key.endswith("_size") else (None, False, 0, -1, {})
        if value not in off:
            lines.append(f"{key}: {why}")
    name = str(block(config, "optimizer").get("type", "adamw")).lower()
    if name not in _STATES:
        lines.append(
            f"optimizer.type {block(config, 'optimizer').get('type')}: counted as if it were Adam's two states"
        )
    for what in ("optimizer", "param"):
        if offload_device(config, what) == "nvme":
            lines.append(f"zero_optimization.offload_{what}: the buffers between host and NVMe")
    if block(block(config, "zero_optimization"), "offload_optimizer").get("ratio", 1.0) < 1.0:
        lines.append("zero_optimization.offload_optimizer.ratio: counted as if all of it were offloaded")
    return tuple(lines)


def _optimizer(name: str, params: Mapping[str, Any], *, offload: str, cuda: bool) -> Optimizer:
    """How the update runs: it decides which temporaries it needs."""
    if offload != "none":
        return "host"
    if name in ("adam", "adamw") and not params.get("torch_adam"):
        return "fused"
    if name in ("lamb", "lion") or params.get("fused"):
        return "fused"
    foreach = params.get("foreach")
    return "foreach" if foreach or (foreach is None and params.get("fused") is None and cuda) else "loop"


def _states(name: str, params: Mapping[str, Any]) -> int:
    count = _STATES.get(name, 2)
    if name == "sgd" and params.get("momentum"):
        count = 1
    return count + (1 if params.get("amsgrad") else 0)
