"""The settings of a DeepSpeed JSON that a plan depends on, with DeepSpeed's defaults; keys.py says which keys count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dist_trainer.config.deepspeed.rules import (
    block,
    dtype_family,
    offload_device,
    precision,
    zero_stage,
)

Optimizer = Literal["fused", "foreach", "loop", "host"]

BYTES_OF = {"fp32": 4, "bf16": 2, "fp16": 2}

# Optimizer states per parameter, by the optimizer's name in lower case.
STATES = {
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
    optimizer: Optimizer
    optimizer_name: str
    states_per_parameter: int
    deepspeed_fused: bool
    reduce_bucket_size: int
    overlap_comm: bool
    contiguous_gradients: bool
    reduce_scatter: bool
    multi_rank_allreduce: bool
    immediate_grad_update: bool
    memory_efficient_linear: bool
    round_robin: bool
    sub_group_size: int
    max_live: int
    max_reuse: int
    prefetch_bucket_size: int
    allgather_sequential: bool
    fetches_by_allreduce: bool
    secondary_partition_size: int
    persistence_threshold: int
    model_persistence_threshold: int
    offload_optimizer: str
    offload_param: str
    states_dtype: str
    pins_optimizer: bool
    pins_param: bool
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
    def comm_bytes(self) -> int:
        """Bytes of an element in which most gradients are reduced: under autocast, those of the linear layers."""
        return BYTES_OF[self.autocast or self.comm_dtype]

    @property
    def master_bytes(self) -> int:
        return BYTES_OF[self.master_dtype]

    @property
    def state_bytes(self) -> int:
        """Bytes of all optimizer states together, per element of the parameters."""
        return self.states_per_parameter * BYTES_OF[self.states_dtype]


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
    is_sequential = bool(zero.get("stage3_allgather_sequential", False))
    low_master = any(block(config, kind).get(f"{kind}_master_weights_and_grads") for kind in ("bf16", "fp16"))
    master = dtype if low_master else "fp32"
    offload, offload_param = offload_device(config, "optimizer"), offload_device(config, "param")
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
        optimizer=_optimizer(name, params, offload=offload, cuda=cuda),
        optimizer_name=name,
        states_per_parameter=_states(name, params),
        deepspeed_fused=name in ("adam", "adamw") and not params.get("torch_adam"),
        reduce_bucket_size=int(zero.get("reduce_bucket_size", 5e8)),
        overlap_comm=stage == 3 if overlap is None else bool(overlap),
        contiguous_gradients=bool(zero.get("contiguous_gradients", True)) or offload != "none",
        reduce_scatter=bool(zero.get("reduce_scatter", True)),
        multi_rank_allreduce=bool(zero.get("use_multi_rank_bucket_allreduce", True)),
        immediate_grad_update=bool(block(config, "bf16").get("immediate_grad_update", False)),
        memory_efficient_linear=bool(zero.get("memory_efficient_linear", True)),
        round_robin=bool(zero.get("round_robin_gradients", False)),
        sub_group_size=int(zero.get("sub_group_size", 1e9)),
        max_live=int(zero.get("stage3_max_live_parameters", 1e9)),
        max_reuse=int(zero.get("stage3_max_reuse_distance", 1e9)),
        prefetch_bucket_size=1 if is_sequential else int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        allgather_sequential=is_sequential,
        fetches_by_allreduce=bool(zero.get("stage3_use_all_reduce_for_fetch_params", False)),
        secondary_partition_size=int(zero.get("zero_hpz_partition_size", 1)),
        persistence_threshold=int(zero.get("stage3_param_persistence_threshold", 1e5)),
        model_persistence_threshold=int(zero.get("stage3_model_persistence_threshold", 2**62)),
        offload_optimizer=offload,
        offload_param=offload_param,
        states_dtype=states_dtype,
        pins_optimizer=offload != "none" and bool(block(zero, "offload_optimizer").get("pin_memory", True)),
        pins_param=offload_param != "none" and bool(block(zero, "offload_param").get("pin_memory", True)),
        checkpointing=activation is not None,
        num_checkpoints=(activation or {}).get("number_checkpoints"),
        cpu_checkpointing=bool((activation or {}).get("cpu_checkpointing", False)),
        compiles="compile" in config,
    )


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
    count = STATES.get(name, 2)
    if name == "sgd" and params.get("momentum"):
        count = 1
    return count + (1 if params.get("amsgrad") else 0)
