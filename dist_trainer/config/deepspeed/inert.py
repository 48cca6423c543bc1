"""Keys that do nothing because of another key: one row for each reason, with the place in DeepSpeed that shows it.

The keys that never do anything here are marked in keys.py (`idle`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from dist_trainer.config.deepspeed.keys import children, table
from dist_trainer.config.deepspeed.params import MUON_RATES, is_adam
from dist_trainer.config.deepspeed.rates import highest, is_rate, overriding_rate
from dist_trainer.config.deepspeed.rules import block, is_bf16_optimizer, offload_device, precision, zero_stage

Config = Mapping[str, Any]
_MISSING: Any = object()


@dataclass(frozen=True)
class Inert:
    """If `when` holds for the resolved configuration, DeepSpeed 0.19.8 does not look at `keys`, or overrides them.

    `why` completes "does nothing: ..." and names what decides; `{stage}`, `{rate_key}` and `{rate}` in it are filled.
    `source` is a file of DeepSpeed's (or torch's) and a piece of its text that shows it. `harmless`: values that ask
    for what happens anyway, in addition to those that ask for nothing (see `_asks`). `in_part`: a part of the value
    does count.
    """

    keys: tuple[str, ...]
    when: Callable[[Config], bool]
    why: str
    source: tuple[str, str]
    harmless: tuple[Any, ...] = ()
    in_part: bool = False


# Booleans that are true by default in DeepSpeed, so that false asks for something.
ON_BY_DEFAULT = frozenset(
    {
        "bf16.check_grad_overflow",
        "comms_logger.prof_all",
        "compile.double_buffer",
        "compile.keep_int_input_tensors",
        "compile.offload_activation_pin_memory",
        "flops_profiler.detailed",
        "optimizer.params.adam_w_mode",
        "scheduler.params.cycle_momentum",
        "timers.throughput.synchronized",
        "zero_optimization.allgather_partitions",
        "zero_optimization.compute_grad_norm",
        "zero_optimization.contiguous_gradients",
        "zero_optimization.ignore_unused_parameters",
        "zero_optimization.load_from_fp32_weights",
        "zero_optimization.memory_efficient_linear",
        "zero_optimization.offload_optimizer.pin_memory",
        "zero_optimization.offload_param.pin_memory",
        "zero_optimization.override_module_apply",
        "zero_optimization.reduce_scatter",
        "zero_optimization.use_multi_rank_bucket_allreduce",
    }
)

_ENGINE = "runtime/engine.py"
_STAGE12 = "runtime/zero/stage_1_and_2.py"
_STAGE3 = "runtime/zero/stage3.py"
_SCHEDULES = "runtime/lr_schedules.py"
_TORCH_SCHEDULES = "torch/optim/lr_scheduler.py"


def _under(path: str, *but: str) -> tuple[str, ...]:
    """The paths of all keys of a block except `but`, in the spelling that check.examine() gives them."""
    return tuple(
        f"{path}.{name}"
        for name, key in children()[path].items()
        if name not in but and key.refused is None and key.alias_of is None
    )


def _zero(*names: str) -> tuple[str, ...]:
    return tuple(f"zero_optimization.{name}" for name in names)


def _value(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _says(config: Config, path: str, default: Any) -> Any:
    value = _value(config, path)
    return default if value is _MISSING else value


def _stage(*stages: int) -> Callable[[Config], bool]:
    return lambda config: zero_stage(config) in stages


def _off(name: str) -> Callable[[Config], bool]:
    """Whether the named block is absent, or its `enabled` is not true."""
    return lambda config: _says(config, f"{name}.enabled", False) is not True


def _optimizer_is(config: Config, *names: str) -> bool:
    return str(block(config, "optimizer").get("type")).lower() in names


def _scheduler_is(*names: str) -> Callable[[Config], bool]:
    return lambda config: block(config, "scheduler").get("type") in names


def _is_overridden(name: str) -> Callable[[Config], bool]:
    """Whether the scheduler replaces this rate of the optimizer's with another one."""

    def overridden(config: Config) -> bool:
        rate, own = overriding_rate(config), _value(config, f"optimizer.params.{name}")
        return rate is not None and is_rate(own) and highest(rate[1]) != own

    return overridden


def _cycles_momentum(config: Config) -> bool:
    kind = block(config, "scheduler").get("type")
    cycles = _says(config, "scheduler.params.cycle_momentum", True) is not False
    return kind in ("OneCycle", "CyclicLR", "OneCycleLR") and cycles


def _nvme_only(what: str, *names: str) -> Inert:
    return Inert(
        _zero(*(f"offload_{what}.{name}" for name in names)),
        lambda config: offload_device(config, what) != "nvme",
        f"zero_optimization.offload_{what}.device is not nvme",
        (_STAGE3, f"offload_{what}_config.device == OffloadDeviceEnum.nvme"),
    )


def _switched(name: str, source: tuple[str, str]) -> Inert:
    return Inert(_under(name, "enabled"), _off(name), f"{name}.enabled is not true", source)


_STAGE3_ONLY = _zero(
    *("offload_param", "sub_group_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
    *("stage3_model_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
    *("stage3_module_granularity_threshold", "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential"),
    *("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients", "memory_efficient_linear"),
    *("log_trace_cache_warnings", "enable_sanity_checks", "save_muon_momentum_buffer_in_memory", "leaf_module"),
    *("offload_optimizer.ratio", "offload_optimizer.super_offload", "offload_optimizer.cpuadam_cores_perc"),
    *("offload_optimizer.nvme_path", "offload_optimizer.buffer_count", "offload_optimizer.fast_init"),
    *("offload_optimizer.pipeline_read", "offload_optimizer.pipeline_write", "cpu_offload_param"),
)
_STAGES12_ONLY = _zero(
    *("use_multi_rank_bucket_allreduce", "allgather_bucket_size", "round_robin_gradients", "parameter_alignment"),
    "ignore_unused_parameters",
)
_DEEPCOMPILE = _under("compile", "deepcompile", "autoep_non_moe")

# The first row that holds for a key is the one that is said: what switches most off stands first.
INERT: tuple[Inert, ...] = (
    # ZeRO
    Inert(
        _under("zero_optimization", "stage"),
        _stage(0),
        "zero_optimization.stage is 0",
        ("runtime/config.py", "self.zero_enabled = self.zero_optimization_stage > 0"),
    ),
    Inert(
        _zero("allgather_partitions"),
        lambda config: True,
        "DeepSpeed 0.19.8 gathers whatever it says",
        (_ENGINE, "def zero_allgather_partitions(self):"),
        harmless=(True,),
    ),
    Inert(
        _STAGE3_ONLY,
        _stage(1, 2),
        "zero_optimization.stage is {stage}, and it is for stage 3",
        (_ENGINE, "Stage3ZeroOptimizer(\n"),
    ),
    Inert(
        _STAGES12_ONLY,
        _stage(3),
        "zero_optimization.stage is 3, and it is for stages 1 and 2",
        (_ENGINE, "Stage1And2ZeroOptimizer(\n"),
    ),
    Inert(
        _zero(
            *("contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce"),
            *("overlap_comm", "round_robin_gradients", "parameter_alignment", "elastic_checkpoint"),
            "ignore_unused_parameters",
        ),
        is_bf16_optimizer,
        "at stage 1 with bf16 and data_types.grad_accum_dtype fp32 DeepSpeed's BF16_Optimizer runs, which has no use "
        "for it",
        (_ENGINE, "optimizer = BF16_Optimizer(optimizer,\n"),
    ),
    Inert(
        _zero("offload_optimizer.device"),
        lambda config: zero_stage(config) in (1, 2) and offload_device(config, "optimizer") == "nvme",
        "zero_optimization.stage is {stage}, where the optimizer goes to the cpu (nvme is for stage 3)",
        (_STAGE12, "offload_optimizer_config.device != OffloadDeviceEnum.none:"),
    ),
    Inert(
        _under("zero_optimization.offload_optimizer", "device"),
        lambda config: offload_device(config, "optimizer") == "none",
        "zero_optimization.offload_optimizer.device is none",
        (_STAGE12, "self.cpu_offload_pin_memory = False"),
    ),
    Inert(
        _under("zero_optimization.offload_param", "device"),
        lambda config: offload_device(config, "param") == "none",
        "zero_optimization.offload_param.device is none",
        (_STAGE3, "offload_param_config.device != OffloadDeviceEnum.none:"),
    ),
    _nvme_only("optimizer", "nvme_path", "buffer_count", "pipeline_read", "pipeline_write", "fast_init"),
    _nvme_only("param", "nvme_path", "buffer_count", "buffer_size", "max_in_cpu"),
    Inert(
        _zero("offload_optimizer.cpuadam_cores_perc"),
        lambda config: not _says(config, "zero_optimization.offload_optimizer.super_offload", False),
        "zero_optimization.offload_optimizer.super_offload is not on",
        ("runtime/superoffload/superoffload_stage3.py", 'kwargs.get("cpuadam_cores_perc", 0.8)'),
    ),
    Inert(
        _zero("cpu_offload_use_pin_memory"),
        lambda config: offload_device(config, "optimizer") == "none" and offload_device(config, "param") == "none",
        "nothing is offloaded",
        ("runtime/zero/config.py", "cpu_offload_use_pin_memory: Optional[bool]"),
    ),
    Inert(
        _zero("contiguous_gradients"),
        lambda config: zero_stage(config) in (1, 2) and offload_device(config, "optimizer") != "none",
        "optimizer offload always has contiguous gradients",
        (_STAGE12, "self.contiguous_gradients = contiguous_gradients or self.cpu_offload"),
        harmless=(True,),
    ),
    Inert(
        _zero("use_multi_rank_bucket_allreduce"),
        lambda config: zero_stage(config) in (1, 2) and not _says(config, "zero_optimization.reduce_scatter", True),
        "zero_optimization.reduce_scatter is false",
        (_STAGE12, "            if not self.reduce_scatter:\n                reduced_tensor"),
    ),
    Inert(
        _zero("ignore_unused_parameters"),
        lambda config: offload_device(config, "optimizer") == "none",
        "it is asked for with optimizer offload alone",
        (_STAGE12, "assert self.ignore_unused_parameters"),
    ),
    Inert(
        _zero("stage3_prefetch_bucket_size"),
        lambda config: bool(_says(config, "zero_optimization.stage3_allgather_sequential", False)),
        "zero_optimization.stage3_allgather_sequential makes it 1",
        (_ENGINE, "self._config.zero_config.prefetch_bucket_size = 1"),
        harmless=(1,),
    ),
    Inert(
        _zero("load_from_fp32_weights"),
        lambda config: zero_stage(config) == 3 and not _says(config, "checkpoint.load_universal", False),
        "at stage 3 it is for universal checkpoints (checkpoint.load_universal)",
        (_STAGE3, "self._load_universal_checkpoint(checkpoint_folder, load_optimizer_states, load_from_fp32_weights)"),
    ),
    Inert(
        _zero("save_muon_momentum_buffer_in_memory"),
        lambda config: not _optimizer_is(config, "muon"),
        "optimizer.type is not Muon",
        (_STAGE3, "if self.use_muon and self.save_muon_momentum_buffer_in_memory:"),
    ),
    Inert(
        _zero("zenflow.auto_ratio"),
        lambda config: isinstance(_says(config, "zero_optimization.zenflow.update_interval", "auto"), int),
        "zero_optimization.zenflow.update_interval is a number",
        ("runtime/zenflow/zenflow_stage_1_and_2.py", "self.auto_ratio = zenflow_config.auto_ratio"),
    ),
    Inert(
        _zero("zenflow.steps_per_epoch"),
        lambda config: _says(config, "zero_optimization.zenflow.select_strategy", "auto") == "step",
        "zero_optimization.zenflow.select_strategy is step",
        ("runtime/zenflow/zenflow_stage_1_and_2.py", "if self.select_strategy == 'epoch':"),
    ),
    Inert(
        ("allgather_size",),
        lambda config: _value(config, "zero_optimization.allgather_bucket_size") is _MISSING,
        "it goes with the old `zero_optimization: true`; its place is zero_optimization.allgather_bucket_size",
        ("runtime/zero/config.py", 'get_scalar_param(param_dict, "allgather_size", 5e8)'),
    ),
    Inert(
        ("aio",),
        lambda config: (
            "nvme" not in (offload_device(config, "optimizer"), offload_device(config, "param"))
            and _says(config, "checkpoint.writer", None) is None
        ),
        "nothing is offloaded to nvme",
        (_STAGE3, "self._configure_tensor_swapping(offload_optimizer_config, aio_config)"),
    ),
    # Gradients
    Inert(
        ("prescale_gradients", "gradient_predivide_factor"),
        lambda config: str(config.get("gradient_allreduce_op", "mean")).lower() == "sum",
        "gradient_allreduce_op is sum",
        (_ENGINE, "if not self.gradient_average:"),
        harmless=(1.0,),
    ),
    Inert(
        ("prescale_gradients", "gradient_predivide_factor"),
        lambda config: (
            zero_stage(config) == 1
            and not is_bf16_optimizer(config)
            and bool(_says(config, "zero_optimization.reduce_scatter", True))
        ),
        "zero_optimization.reduce_scatter divides by the number of ranks before it adds",
        (_STAGE12, "tensor.div_(dist.get_world_size(group=self.dp_process_group)"),
        harmless=(1.0,),
    ),
    Inert(
        ("gradient_predivide_factor",),
        lambda config: bool(config.get("prescale_gradients")),
        "prescale_gradients divides by the number of ranks instead",
        (_ENGINE, "elif self.postscale_gradients():\n            if self.gradient_predivide_factor() != 1.0:"),
        harmless=(1.0,),
    ),
    Inert(
        ("communication_data_type",),
        lambda config: zero_stage(config) > 0 and block(config, "torch_autocast").get("enabled") is True,
        "torch_autocast says in which type gradients are sent",
        (_STAGE12, "comm_dtypes = get_all_comm_dtypes("),
    ),
    Inert(
        ("data_parallel_size",),
        lambda config: "sequence_parallel_size" not in config,
        "DeepSpeed reads it only beside sequence_parallel_size",
        ("__init__.py", 'if "sequence_parallel_size" in config and "data_parallel_size" in config:'),
    ),
    # Precision
    _switched("fp16", (_ENGINE, "return self._config.float16_config.enabled")),
    Inert(
        (
            *("fp16.initial_scale_power", "fp16.loss_scale_window", "fp16.hysteresis"),
            *("fp16.consecutive_hysteresis", "fp16.min_loss_scale"),
        ),
        lambda config: bool(block(config, "fp16").get("loss_scale", 0)),
        "fp16.loss_scale is not 0, so the loss scale stays as it is",
        ("runtime/fp16/loss_scaler.py", "if dtype == torch.half and dynamic_scaling:"),
    ),
    Inert(
        ("fp16.hysteresis", "fp16.consecutive_hysteresis"),
        _stage(0),
        "at ZeRO stage 0 the loss scale falls at the first overflow",
        ("runtime/fp16/loss_scaler.py", "self.cur_scale = dynamic_loss_args[INITIAL_LOSS_SCALE]\n"),
        harmless=(1,),
    ),
    _switched("bf16", (_ENGINE, "return self._config.bfloat16_config.enabled")),
    Inert(
        ("bf16.immediate_grad_update",),
        lambda config: not is_bf16_optimizer(config),
        "it is for ZeRO stage 1 with data_types.grad_accum_dtype fp32",
        ("runtime/bf16_optimizer.py", "self.immediate_grad_update = bfloat16_config.immediate_grad_update"),
    ),
    Inert(
        ("bf16.check_grad_overflow",),
        lambda config: zero_stage(config) not in (1, 2) or is_bf16_optimizer(config),
        "only ZeRO stages 1 and 2 look at it (and not with data_types.grad_accum_dtype fp32 at stage 1)",
        (_STAGE12, "if self.check_grad_overflow:"),
    ),
    _switched("torch_autocast", (_ENGINE, "if self.torch_autocast_enabled():")),
    Inert(
        ("data_types.keep_in_fp32_modules",),
        lambda config: precision(config) == "fp32",
        "everything is in fp32",
        (_ENGINE, "if self.fp16_enabled() or self.bfloat16_enabled():\n            check_dtype"),
        harmless=("auto",),
    ),
    # torch.compile
    Inert(
        ("compile.deepcompile",),
        _stage(0),
        "zero_optimization.stage is 0, where torch.compile runs in DeepCompile's place",
        (_ENGINE, "Currently DeepCompile supports ZeRO stage 1, 2, or 3 only"),
    ),
    Inert(
        _DEEPCOMPILE,
        lambda config: not block(config, "compile").get("deepcompile") or zero_stage(config) == 0,
        "it is for compile.deepcompile, which is not on",
        (_ENGINE, "resolved_backend, schedule = self.get_deepspeed_compile_backend("),
    ),
    Inert(
        ("compile.free_activation", "compile.free_activation_threshold"),
        lambda config: True,
        "DeepCompile does that with another backend than inductor alone",
        ("compile/backend.py", "compile_config.free_activation and not is_backend_inductor(backend)"),
    ),
    Inert(
        (
            *("compile.offload_activation", "compile.offload_activation_pin_memory", "compile.offload_opt_states"),
            *("compile.offload_parameters", "compile.symmetric_memory"),
        ),
        lambda config: zero_stage(config) != 3,
        "zero_optimization.stage is {stage}, and it is for stage 3",
        ("compile/init_z3.py", "if compile_config.symmetric_memory:"),
    ),
    Inert(
        ("compile.offload_activation_pin_memory",),
        lambda config: not block(config, "compile").get("offload_activation"),
        "compile.offload_activation is not on",
        ("compile/config.py", "Pin host buffers used for DeepCompile activation offload."),
    ),
    # The optimizer
    *(
        Inert(
            (f"optimizer.params.{name}",),
            _is_overridden(name),
            "{rate_key} says the rate, {rate}",
            (_SCHEDULES, "self._last_lr = update_lr(self.optimizer.param_groups, self.get_lr())"),
        )
        for name in ("lr", *MUON_RATES)
    ),
    Inert(
        ("optimizer.params.lr",),
        lambda config: (
            _optimizer_is(config, "muon")
            and all(_value(config, f"optimizer.params.{name}") is not _MISSING for name in MUON_RATES)
        ),
        "optimizer.params.muon_lr and adam_lr say the rates",
        (_ENGINE, "with muon_lr / adam_lr overriding the shared lr."),
    ),
    Inert(
        ("optimizer.params.betas",),
        lambda config: _scheduler_is("OneCycle")(config) and _cycles_momentum(config),
        "scheduler OneCycle cycles the betas, unless scheduler.params.cycle_momentum is false",
        (_SCHEDULES, "group['betas'] = momentum"),
    ),
    Inert(
        ("optimizer.params.betas",),
        lambda config: _scheduler_is("CyclicLR", "OneCycleLR")(config) and _cycles_momentum(config),
        "the schedule cycles the first of them, unless scheduler.params.cycle_momentum is false",
        (_TORCH_SCHEDULES, 'group["betas"] = (m_momentum, *group["betas"][1:])'),
        in_part=True,
    ),
    Inert(
        ("optimizer.params.foreach",),
        lambda config: _optimizer_is(config, "muon") and not _says(config, "optimizer.params.torch_adam", False),
        "optimizer.params.torch_adam is not on",
        (_ENGINE, "foreach = optimizer_parameters.pop('foreach', None)"),
    ),
    Inert(
        ("optimizer.params.adam_w_mode",),
        lambda config: _optimizer_is(config, "adamw"),
        "optimizer.type is AdamW",
        (_ENGINE, "self.optimizer_name() == ADAMW_OPTIMIZER or adam_w_mode"),
        harmless=(True,),
    ),
    Inert(
        ("optimizer.params.fp32_optimizer_states",),
        lambda config: (
            (is_adam(config) or _optimizer_is(config, "muon"))
            and (
                bool(_says(config, "optimizer.params.torch_adam", False))
                or offload_device(config, "optimizer") == "none"
                or bool(block(config, "bf16").get("bf16_optimizer_states"))
            )
        ),
        "it is for DeepSpeed's CPU Adam (optimizer offload without torch_adam), and bf16.bf16_optimizer_states wins",
        (_ENGINE, "bf16_optimizer_states is enabled; overriding fp32_optimizer_states"),
    ),
    Inert(
        ("optimizer.legacy_fusion",),
        lambda config: (
            zero_stage(config) > 0
            or precision(config) == "fp32"
            or not is_adam(config)
            or bool(_says(config, "optimizer.params.torch_adam", False))
        ),
        "it is for DeepSpeed's FusedAdam in 16 bit at ZeRO stage 0",
        (_ENGINE, "fused_adam_legacy=self.optimizer_legacy_fusion()"),
    ),
    # Schedules
    Inert(
        tuple(
            f"scheduler.params.{name}"
            for name in ("cycle_min_mom", "cycle_max_mom", "decay_mom_rate", "base_momentum", "max_momentum")
        ),
        lambda config: not _cycles_momentum(config),
        "scheduler.params.cycle_momentum is false",
        (_SCHEDULES, "        if cycle_momentum:\n            self._initialize_momentum("),
    ),
    Inert(
        ("scheduler.params.decay_lr_rate", "scheduler.params.decay_mom_rate"),
        lambda config: _scheduler_is("OneCycle")(config) and not _says(config, "scheduler.params.decay_step_size", 0),
        "scheduler.params.decay_step_size is 0",
        (_SCHEDULES, "if math.isclose(self.decay_step_size, 0):"),
    ),
    Inert(
        ("scheduler.params.decay_step_size",),
        lambda config: (
            not any(
                _says(config, f"scheduler.params.{name}", 0)
                for name in ("decay_lr_rate", *(("decay_mom_rate",) if _cycles_momentum(config) else ()))
            )
        ),
        "scheduler.params.decay_lr_rate is 0",
        (_SCHEDULES, "if math.isclose(self.decay_lr_rate, 0):"),
    ),
    Inert(
        ("scheduler.params.gamma",),
        lambda config: (
            _scheduler_is("CyclicLR")(config) and _says(config, "scheduler.params.mode", "triangular") != "exp_range"
        ),
        "scheduler.params.mode is not exp_range",
        (_TORCH_SCHEDULES, 'elif self.mode == "exp_range":'),
    ),
    Inert(
        ("scheduler.params.scale_mode",),
        _scheduler_is("CyclicLR"),
        "it goes with a function, which JSON cannot say",
        (_TORCH_SCHEDULES, "if self._scale_fn_custom is not None:"),
    ),
    Inert(
        ("scheduler.params.epochs", "scheduler.params.steps_per_epoch"),
        lambda config: isinstance(_value(config, "scheduler.params.total_steps"), int),
        "scheduler.params.total_steps says how long the cycle is",
        (_TORCH_SCHEDULES, "if total_steps is not None:"),
    ),
    # What watches
    *(
        _switched(name, ("monitor/config.py", "enabled: bool = False"))
        for name in ("tensorboard", "csv_monitor", "wandb", "comet")
    ),
    _switched("flops_profiler", (_ENGINE, "return self._config.flops_profiler_config.enabled")),
    _switched("comms_logger", ("comm/comm.py", "        if comms_logger.enabled:")),
    Inert(
        ("comms_logger.prof_ops",),
        lambda config: bool(_says(config, "comms_logger.prof_all", True)),
        "comms_logger.prof_all takes them all",
        ("comm/comm.py", "comms_logger.prof_all\n"),
    ),
    Inert(
        ("timers.throughput.synchronized",),
        lambda config: not _says(config, "timers.throughput.enabled", True),
        "timers.throughput.enabled is false",
        ("utils/timer.py", "if not self.config.enabled:"),
    ),
)


def _asks(value: Any, path: str) -> bool:
    """Whether a value asks for anything: not null, nor an empty list or object, nor a block that says it is off, nor
    false where DeepSpeed takes the key for false anyway."""
    if isinstance(value, Mapping):
        return bool(value) and value.get("enabled") is not False and value.get("device") != "none"
    if value is False:
        return path in ON_BY_DEFAULT
    return value is not None and value != [] and value != "none"


def _asked(said: Config, resolved: Config, path: str) -> Any:
    """The value of a key that the file has, its "auto" filled, if it asks for something; else _MISSING."""
    value = _value(said, path)
    if value is _MISSING:
        return _MISSING
    filled = _value(resolved, path)
    value = value if filled is _MISSING else filled
    return value if _asks(value, path) else _MISSING


def _listed(paths: list[str]) -> str:
    """`a.b.c, d`: the block of the first is that of its followers too, as far as they stand in it."""
    parent, _, _ = paths[0].rpartition(".")
    return ", ".join(
        [
            paths[0],
            *(path.removeprefix(f"{parent}.") if path.rpartition(".")[0] == parent else path for path in paths[1:]),
        ]
    )


def notices(said: Config, resolved: Config) -> list[str]:
    """A line for each reason why keys that were said do nothing. `said` is what check.examine() returned: what the
    user wrote, in plain values; `resolved` is what runs."""
    lines = []
    named: set[str] = set()
    for path, key in table().items():
        if key.idle is not None and _asked(said, resolved, path) is not _MISSING:
            named.add(path)
            lines.append(f"{path} does nothing here: {key.idle}")
    rate_key, rate = overriding_rate(resolved) or ("", 0)
    for rule in INERT:
        found = _found(rule, said, resolved, named) if rule.when(resolved) else []
        if found:
            named.update(found)
            why = rule.why.format(stage=zero_stage(resolved), rate_key=rate_key, rate=rate)
            nothing = "does nothing" if len(found) == 1 else "do nothing"
            lines.append(f"{_listed(found)} {'counts in part' if rule.in_part else nothing}: {why}")
    return lines


def _found(rule: Inert, said: Config, resolved: Config, named: Container[str]) -> list[str]:
    """The row's keys that ask for something, except those that are in `named`, stand in a block that is, or are blocks
    all of whose keys are.
    """
    found = []
    for path in rule.keys:
        value = _asked(said, resolved, path)
        names = path.split(".")
        around = (".".join(names[:count]) for count in range(1, len(names) + 1))
        within = isinstance(value, Mapping) and all(f"{path}.{name}" in named for name in value)
        is_harmless = any(
            value == other and isinstance(value, bool) == isinstance(other, bool) for other in rule.harmless
        )
        if value is not _MISSING and not is_harmless and not within and not any(block in named for block in around):
            found.append(path)
    return found
