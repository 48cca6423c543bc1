"""What each key of a DeepSpeed JSON does to memory: it is counted, it moves nothing, or it is named as not modelled.

Every accepted key is in one of the three collections here, or idle in the table of keys (config/deepspeed/keys.py).
Tests check that none is missing, and compare each row with the plan or with DeepSpeed 0.19.8's own engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dist_trainer.config.deepspeed.keys import table
from dist_trainer.config.deepspeed.rules import block, offload_device, zero_stage
from dist_trainer.memory.engines.settings import STATES

Effect = Literal["counted", "inert", "unmodelled"]


@dataclass(frozen=True)
class Unmodelled:
    """What a key does to memory that no plan counts. It has no effect at a value in `off`, or at a ZeRO stage that is
    not in `stages`, which are empty where another key's line names the effect.
    """

    why: str
    off: tuple[Any, ...] = (None, False, 0, -1, "", {}, [])
    stages: tuple[int, ...] = (0, 1, 2, 3)


def _under(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names)


COUNTED = frozenset(
    {
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
        *("communication_data_type", "optimizer.type", "data_types.grad_accum_dtype"),
        *_under("fp16", "enabled", "fp16_master_weights_and_grads"),
        *_under("bf16", "enabled", "immediate_grad_update", "bf16_master_weights_and_grads", "bf16_optimizer_states"),
        *_under("torch_autocast", "enabled", "dtype"),
        *_under("activation_checkpointing", "number_checkpoints", "cpu_checkpointing"),
        *_under(
            "zero_optimization",
            *("stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size"),
            *("use_multi_rank_bucket_allreduce", "overlap_comm", "sub_group_size"),
            *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
            *("stage3_model_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
            *("stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential", "zero_hpz_partition_size"),
            *("round_robin_gradients", "memory_efficient_linear"),
            *("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"),
            *("offload_param.device", "offload_param.pin_memory"),
            *("offload_optimizer.device", "offload_optimizer.pin_memory"),
        ),
    }
)
# Keys of optimizer.params, of any optimizer. The others are numbers on which no size depends.
COUNTED_PARAMS = frozenset({"torch_adam", "fused", "foreach", "amsgrad", "momentum", "fp32_optimizer_states"})

INERT = frozenset(
    {
        *("managed_gradient_accumulation", "gradient_clipping", "gradient_predivide_factor", "gradient_allreduce_op"),
        *("prescale_gradients", "zero_allow_untested_optimizer", "steps_per_print", "wall_clock_breakdown"),
        *("memory_breakdown", "dump_state", "disable_python_gc", "log_level", "sequence_parallel_size"),
        *("data_parallel_size", "allgather_size", "optimizer.params", "optimizer.legacy_fusion", "scheduler.type"),
        *("scheduler.params", "bf16.check_grad_overflow", "data_types.param_dtype"),
        *_under("fp16", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis"),
        *_under("fp16", "consecutive_hysteresis", "min_loss_scale"),
        "activation_checkpointing.synchronize_checkpoint_boundary",
        *_under(
            "zero_optimization",
            *("allgather_partitions", "allgather_bucket_size", "load_from_fp32_weights", "elastic_checkpoint"),
            "compute_grad_norm",
            *("ignore_unused_parameters", "legacy_stage1", "pipeline_loading_checkpoint"),
            *("log_trace_cache_warnings", "enable_sanity_checks"),
        ),
        *_under("tensorboard", "enabled", "output_path", "job_name"),
        *_under("csv_monitor", "enabled", "output_path", "job_name"),
        *_under("wandb", "enabled", "group", "team", "project"),
        *_under("comet", "enabled", "samples_log_interval", "project", "workspace", "api_key", "experiment_name"),
        *_under("comet", "experiment_key", "online", "mode"),
        *_under("comms_logger", "enabled", "prof_all", "prof_ops", "verbose", "debug"),
        *_under("timers.throughput", "enabled", "synchronized"),
        *_under("checkpoint", "tag_validation", "load_universal", "use_node_local_storage", "checkpoint_serialization"),
    }
)

_NVME = "the buffers between host and NVMe"
UNMODELLED: Mapping[str, Unmodelled] = {
    "zero_optimization.zero_quantized_weights": Unmodelled("quantised gathering", stages=(3,)),
    "zero_optimization.zero_quantized_gradients": Unmodelled("quantised reduction", stages=(3,)),
    "zero_optimization.zenflow": Unmodelled("ZenFlow's own buffers", stages=(1, 2, 3)),
    "zero_optimization.parameter_alignment": Unmodelled("padding between parameters", stages=(1, 2)),
    "zero_optimization.leaf_module": Unmodelled(
        "a module whose parameters are gathered together is counted as if each of its parts had its own", stages=(3,)
    ),
    "zero_optimization.stage3_module_granularity_threshold": Unmodelled(
        "modules whose parameters are gathered together are counted as if each of their parts had its own", stages=(3,)
    ),
    "zero_optimization.offload_optimizer.super_offload": Unmodelled("SuperOffload's own buffers", stages=(3,)),
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": Unmodelled("SuperOffload's own buffers", stages=()),
    "zero_optimization.offload_optimizer.ratio": Unmodelled(
        "counted as if all of it were offloaded", off=(None, 1, 1.0), stages=(3,)
    ),
    **{
        f"zero_optimization.offload_{what}.{name}": Unmodelled(_NVME, stages=())
        for what, names in (
            ("param", ("nvme_path", "buffer_count", "buffer_size", "max_in_cpu")),
            ("optimizer", ("nvme_path", "buffer_count", "pipeline_read", "pipeline_write", "fast_init")),
        )
        for name in names
    },
    "zero_optimization.save_muon_momentum_buffer_in_memory": Unmodelled("Muon's momentum", stages=()),
    "aio": Unmodelled(_NVME, stages=()),
    "torch_autocast.lower_precision_safe_modules": Unmodelled("counted for torch's linear layers, the default"),
    "data_types.keep_in_fp32_modules": Unmodelled("modules kept in fp32", off=(None, "auto", [])),
    "flops_profiler": Unmodelled("the profiler's own memory", stages=()),
    "flops_profiler.enabled": Unmodelled("the profiler's own memory"),
    "compile": Unmodelled("torch.compile", stages=()),
    "compile.deepcompile": Unmodelled("DeepCompile schedules memory by itself"),
    "datastates_ckpt": Unmodelled("DataStates' buffers for checkpoints"),
    "checkpoint.writer": Unmodelled("the writer's buffers while a checkpoint is saved"),
}


def effect(path: str) -> Effect:
    """What an accepted key does to memory. `path`: dotted, without aliases. Raises KeyError if no collection has it."""
    names = path.split(".")
    around = [".".join(names[:count]) for count in range(len(names), 0, -1)]
    for name in around:
        if name in COUNTED:
            return "counted"
        if name in INERT:
            return "inert"
        if name in UNMODELLED:
            return "unmodelled"
        if table()[name].idle is not None:
            return "inert"
    raise KeyError(path)


def unmodelled(config: Mapping[str, Any]) -> Iterator[str]:
    """A line for each key of the configuration that moves memory and that the plan does not count."""
    stage = zero_stage(config)
    for key, row in UNMODELLED.items():
        value: Any = config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if stage in row.stages and not any(value == off and type(value) is type(off) for off in row.off):
            yield f"{key}: {row.why}"
    for what in ("optimizer", "param"):
        if offload_device(config, what) == "nvme" and (stage == 3):
            yield f"zero_optimization.offload_{what}: {_NVME}"
    name = str(block(config, "optimizer").get("type", "adamw"))
    if name.lower() not in STATES and name.lower() != "muon":
        yield f"optimizer.type {name}: counted as if it were Adam's two states"
    if name.lower() == "muon":
        yield f"optimizer.type {name}: its momentum, and what it makes of whole matrices; counted as Adam's two states"
