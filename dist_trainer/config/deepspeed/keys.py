"""The one table of every key that a DeepSpeed 0.19.8 JSON can have.

A row says the key's dotted path, what its value may be, what `"auto"` becomes there, and, where it applies, why
DeepSpeed refuses the key or why it does nothing in this program. `optimizer.params` and `scheduler.params` hold
different names for each `type`: params.py has those rows.

Sources: deepspeed/runtime/config.py and constants.py (top level), and the config module of each block. A key with no
`auto` may not say "auto", unless "auto" is one of DeepSpeed's own values there (`pipeline.stages`), or the key stands
in a block of MODELLED, where DeepSpeed takes its default for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from dist_trainer.config.deepspeed.types import (
    ANYTHING,
    BLOCK,
    BOOL,
    LAX_BOOL,
    NEVER,
    NULL,
    TEXT,
    Type,
    choice,
    either,
    integer,
    list_of,
    number,
    or_null,
)


@dataclass(frozen=True)
class Facts:
    """What follows from the run and fills an "auto". The defaults stand for what nobody said.

    `total_steps` counts optimizer steps over all phases; `warmup_steps` None means a hundredth of them.
    """

    world_size: int
    hidden_size: int
    total_steps: int
    warmup_steps: int | None = None
    supports_bf16: bool = True
    micro_batch: int = 1
    accumulation: int = 1
    gradient_clipping: float = 1.0
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    @property
    def warmup_num_steps(self) -> int:
        """At least 1: DeepSpeed refuses 0."""
        return max(1, self.total_steps // 100 if self.warmup_steps is None else self.warmup_steps)


@dataclass(frozen=True)
class Auto:
    """What "auto" becomes: in words, and as a function of the facts and the configuration filled so far.

    `value` is None for the batch triple, which batch.py derives as a whole.
    """

    says: str
    value: Callable[[Facts, Mapping[str, Any]], Any] | None = None


@dataclass(frozen=True)
class Key:
    """One row. `refused`: why DeepSpeed 0.19.8 rejects the key, and `instead`: what to do; `idle`: why the key, though
    accepted, does nothing here; `alias_of`: the sibling of which it is another spelling, and under which the resolved
    configuration has it.
    """

    type: Type
    auto: Auto | None = None
    refused: str | None = None
    instead: str | None = None
    idle: str | None = None
    alias_of: str | None = None


Rows = Mapping[str, Key]


def _rows(prefix: str, keys: Mapping[str, Type | Key], block: Type | Key = BLOCK) -> dict[str, Key]:
    path = f"{prefix}." if prefix else ""
    rows = {path + name: row if isinstance(row, Key) else Key(row) for name, row in keys.items()}
    if prefix:
        rows[prefix] = block if isinstance(block, Key) else Key(block)
    return rows


def _removed(reason: str, instead: str) -> Key:
    return Key(ANYTHING, refused=f"DeepSpeed 0.19.8 has removed this: {reason}", instead=instead)


def _auto(kind: Type, says: str, value: Callable[[Facts, Mapping[str, Any]], Any] | None = None) -> Key:
    return Key(kind, Auto(says, value))


def _idle(kind: Type, reason: str) -> Key:
    return Key(kind, idle=reason)


def _enabled(config: Mapping[str, Any], block: str) -> bool:
    return (config.get(block) or {}).get("enabled") is True


# Lax, as LAX_BOOL is: for blocks that DeepSpeed reads by pydantic, which takes a number in quotation marks.
_INT = integer(lax=True)
_SIZE = integer(0, lax=True)
_POSITIVE = integer(1, lax=True)
_SHARE = number(0, 1, lax=True)
# Strict: for blocks that DeepSpeed reads as plain dicts.
_COUNT = integer(1)
_DTYPE = choice(
    *("fp32", "float32", "float", "torch.float32", "fp16", "float16", "half", "torch.float16"),
    *("bf16", "bfloat16", "torch.bfloat16"),
)
_COMM_DTYPE = or_null(choice("fp16", "bf16", "fp32", fold_case=True))
_ZENFLOW_CHOOSES = ("select_strategy", "select_interval", "update_interval")
_TEXTS = either(list_of(TEXT), TEXT)
_OWN_LOADER = "this program's own sampler and loader feed the model"
_NO_MODEL_PARALLELISM = "the model is not split over ranks (no model parallelism)"
_NOT_PIPELINED = "the model is not a DeepSpeed PipelineModule"
_NO_EXPERTS = "the model has no experts"
_NO_MODEL_FILE = "this program writes checkpoints, and no file of 16-bit weights beside them"
_NOT_IN_INIT = "it is for models that are made inside deepspeed.zero.Init"
_IGNORED = "DeepSpeed 0.19.8 no longer reads it"


def _top_level() -> dict[str, Key]:
    return _rows(
        "",
        {
            "train_batch_size": _auto(_COUNT, "micro batch x accumulation x world size"),
            "train_micro_batch_size_per_gpu": _auto(_COUNT, "what the other two leave, else 1"),
            "gradient_accumulation_steps": _auto(_COUNT, "what the other two leave, else 1"),
            "managed_gradient_accumulation": BOOL,
            "gradient_clipping": _auto(number(0), "the default", lambda facts, config: facts.gradient_clipping),
            "gradient_predivide_factor": number(0, open_ends=True),
            "gradient_allreduce_op": choice("mean", "sum", fold_case=True),
            "prescale_gradients": BOOL,
            "communication_data_type": _COMM_DTYPE,
            "seq_parallel_communication_data_type": _idle(_COMM_DTYPE, "sequences are not split over ranks"),
            "zero_allow_untested_optimizer": BOOL,
            "zero_force_ds_cpu_optimizer": _idle(BOOL, "it is for an optimizer that a program hands over"),
            "steps_per_print": either(_COUNT, NULL, NEVER),
            "wall_clock_breakdown": BOOL,
            "memory_breakdown": BOOL,
            "dump_state": BOOL,
            "disable_python_gc": BOOL,
            "log_level": or_null(choice("debug", "info", "warning", "error", "critical", fold_case=True)),
            "vocabulary_size": _idle(or_null(integer(1)), "the size is the run file's model.vocab_size"),
            "use_data_before_expert_parallelism": _idle(BOOL, _NO_EXPERTS),
            "sequence_parallel_size": _COUNT,
            "data_parallel_size": _COUNT,
            "dataloader_drop_last": _idle(BOOL, _OWN_LOADER),
            "disable_allgather": _idle(BOOL, _IGNORED),
            "allgather_size": integer(0),
            "fp32_allreduce": _idle(ANYTHING, _IGNORED),
            "allreduce_always_fp32": _idle(ANYTHING, _IGNORED),
            "datastates_ckpt": either(BOOL, BLOCK),
            # DeepSpeed's _REMOVED_TOP_LEVEL_CONFIG_KEYS: it raises for the key itself, even if its value is false.
            "amp": _removed("NVIDIA Apex AMP", 'use "fp16", "bf16" or "torch_autocast"'),
            "nebula": _removed("Nebula checkpoints", "remove it"),
            "compression_training": _removed("the compression library", "remove it"),
            "quantize_training": _removed("Mixture-of-Quantization", "remove it"),
            "eigenvalue": _removed("eigenvalue-based quantization", "remove it"),
            "sparse_gradients": _removed("sparse embedding gradients by flag", "remove it"),
            "sparse_attention": _removed("sparse attention", "remove it"),
            "elasticity": _removed(
                "elastic training",
                "say train_batch_size, train_micro_batch_size_per_gpu or gradient_accumulation_steps",
            ),
            "graph_harvesting": _removed("graph harvesting", "remove it"),
            "curriculum_learning": _removed(
                "the top-level curriculum", "remove it; a run file's phases set the sequence length"
            ),
            "progressive_layer_drop": _removed("progressive layer dropping", "remove it"),
        },
    )


def _training() -> dict[str, Key]:
    bf16: dict[str, Type | Key] = {
        "enabled": _auto(
            LAX_BOOL,
            "on where the hardware has bf16 and neither fp16 nor torch_autocast is on",
            lambda facts, config: (
                facts.supports_bf16 and not _enabled(config, "fp16") and not _enabled(config, "torch_autocast")
            ),
        ),
        "immediate_grad_update": LAX_BOOL,
        "check_grad_overflow": LAX_BOOL,
        "bf16_master_weights_and_grads": LAX_BOOL,
        "bf16_optimizer_states": LAX_BOOL,
    }
    return {
        **_rows("optimizer", {"type": TEXT, "params": BLOCK, "legacy_fusion": BOOL}),
        **_rows("scheduler", {"type": TEXT, "params": BLOCK}),
        **_rows(
            "fp16",
            {
                "enabled": _auto(LAX_BOOL, "off unless asked for", lambda facts, config: False),
                "auto_cast": _idle(LAX_BOOL, "the model is given tokens, which are whole numbers"),
                "loss_scale": number(0, lax=True),
                "initial_scale_power": _INT,
                "loss_scale_window": _INT,
                "hysteresis": _INT,
                "consecutive_hysteresis": LAX_BOOL,
                "min_loss_scale": _INT,
                "fp16_master_weights_and_grads": LAX_BOOL,
            },
        ),
        **_rows("bf16", bf16, or_null(BLOCK)),
        **_rows("bfloat16", bf16, Key(BLOCK, alias_of="bf16")),
        **_rows("torch_autocast", {"enabled": BOOL, "dtype": _DTYPE, "lower_precision_safe_modules": list_of(TEXT)}),
        **_rows(
            "data_types",
            {
                "grad_accum_dtype": or_null(_DTYPE),
                "param_dtype": or_null(_DTYPE),
                "buffer_dtype": _idle(or_null(_DTYPE), "the model has no buffers"),
                "keep_in_fp32_modules": either(choice("auto"), list_of(TEXT)),
            },
        ),
        **_rows(
            "activation_checkpointing",
            {
                "partition_activations": _idle(BOOL, _NO_MODEL_PARALLELISM),
                "contiguous_memory_optimization": _idle(BOOL, _NO_MODEL_PARALLELISM),
                "number_checkpoints": or_null(integer(0)),
                "profile": _idle(BOOL, "the step's time is in the records"),
                "cpu_checkpointing": BOOL,
                "synchronize_checkpoint_boundary": BOOL,
            },
        ),
        **_rows(
            "compile",
            {
                "deepcompile": LAX_BOOL,
                "autoep_non_moe": LAX_BOOL,
                "free_activation": LAX_BOOL,
                "free_activation_threshold": _INT,
                "offload_activation": LAX_BOOL,
                "offload_activation_pin_memory": LAX_BOOL,
                "offload_opt_states": LAX_BOOL,
                "offload_parameters": LAX_BOOL,
                "double_buffer": LAX_BOOL,
                "symmetric_memory": LAX_BOOL,
                "debug_log": LAX_BOOL,
                "sync_before_reduce": LAX_BOOL,
                "sync_after_reduce": LAX_BOOL,
                "sync_before_allgather": LAX_BOOL,
                "sync_after_allgather": LAX_BOOL,
                "keep_int_input_tensors": LAX_BOOL,
                "keep_all_input_tensors": LAX_BOOL,
                "passes": or_null(list_of(choice("z1", "z3", "autosp", "autotp"))),
                "enabled": Key(
                    ANYTHING,
                    refused="DeepSpeed's compile block has no such key",
                    instead="the block's presence switches torch.compile on here; remove the block to switch it off",
                ),
            },
        ),
    }


def _alias(kind: Type, name: str, auto: Auto | None = None, idle: str | None = None) -> dict[str, Key]:
    """ZeRO-3's keys: `stage3_X`, and the bare `X` that DeepSpeed takes as well."""
    return {f"stage3_{name}": Key(kind, auto, idle=idle), name: Key(kind, auto, alias_of=f"stage3_{name}")}


def _zero() -> dict[str, Key]:
    device = choice("none", "cpu", "nvme")
    no_offload = Auto("no offload unless asked for", lambda facts, config: "none")
    hidden_squared = Auto("hidden size squared", lambda facts, config: facts.hidden_size**2)
    prefetch = Auto("0.9 x hidden size squared", lambda facts, config: int(0.9 * facts.hidden_size * facts.hidden_size))
    persistence = Auto("10 x hidden size", lambda facts, config: 10 * facts.hidden_size)
    gather = Auto("the default", lambda facts, config: False)
    zero: dict[str, Type | Key] = {
        "stage": _auto(integer(0, 3, lax=True), "accelerate's default", lambda facts, config: 2),
        "contiguous_gradients": LAX_BOOL,
        "reduce_scatter": LAX_BOOL,
        "reduce_bucket_size": Key(_POSITIVE, hidden_squared),
        "use_multi_rank_bucket_allreduce": LAX_BOOL,
        "allgather_partitions": LAX_BOOL,
        "allgather_bucket_size": _SIZE,
        "overlap_comm": or_null(LAX_BOOL),
        "compute_grad_norm": LAX_BOOL,
        "load_from_fp32_weights": LAX_BOOL,
        "elastic_checkpoint": LAX_BOOL,
        "sub_group_size": _SIZE,
        **_alias(_SIZE, "prefetch_bucket_size", prefetch),
        **_alias(_SIZE, "param_persistence_threshold", persistence),
        **_alias(_SIZE, "model_persistence_threshold"),
        **_alias(_SIZE, "max_live_parameters"),
        **_alias(_SIZE, "max_reuse_distance"),
        **_alias(LAX_BOOL, "gather_16bit_weights_on_model_save", gather, idle=_NO_MODEL_FILE),
        **_alias(_INT, "module_granularity_threshold"),
        **_alias(LAX_BOOL, "use_all_reduce_for_fetch_params"),
        **_alias(LAX_BOOL, "allgather_sequential"),
        "stage3_gather_fp16_weights_on_model_save": Key(
            LAX_BOOL, gather, alias_of="stage3_gather_16bit_weights_on_model_save"
        ),
        # The old spelling of the offload blocks; resolve() writes the blocks.
        "cpu_offload": or_null(LAX_BOOL),
        "cpu_offload_param": or_null(LAX_BOOL),
        "cpu_offload_use_pin_memory": or_null(LAX_BOOL),
        "ignore_unused_parameters": LAX_BOOL,
        "legacy_stage1": LAX_BOOL,
        "round_robin_gradients": LAX_BOOL,
        "parameter_alignment": LAX_BOOL,
        "zero_hpz_partition_size": _SIZE,
        "zero_quantized_weights": LAX_BOOL,
        "zero_quantized_nontrainable_weights": _idle(LAX_BOOL, "every weight is trained"),
        "zero_quantized_gradients": LAX_BOOL,
        "memory_efficient_linear": LAX_BOOL,
        "pipeline_loading_checkpoint": LAX_BOOL,
        "override_module_apply": _idle(LAX_BOOL, _NOT_IN_INIT),
        "log_trace_cache_warnings": LAX_BOOL,
        "enable_sanity_checks": LAX_BOOL,
        "save_muon_momentum_buffer_in_memory": LAX_BOOL,
        "mics_shard_size": _removed("MiCS sharding", "remove it"),
        "mics_hierarchical_params_gather": _removed("MiCS sharding", "remove it"),
        "zeropp_loco_param": _removed("LoCo-ZeRO++", "remove it"),
    }
    offload: dict[str, Type | Key] = {
        "device": Key(device, no_offload),
        "nvme_path": or_null(TEXT),
        "buffer_count": _SIZE,
        "pin_memory": LAX_BOOL,
    }
    interval = either(choice("auto"), _POSITIVE)
    return {
        **_rows("zero_optimization", zero, either(BOOL, BLOCK)),
        **_rows(
            "zero_optimization.offload_param", {**offload, "buffer_size": _SIZE, "max_in_cpu": _SIZE}, or_null(BLOCK)
        ),
        **_rows(
            "zero_optimization.offload_optimizer",
            {
                **offload,
                "pipeline_read": LAX_BOOL,
                "pipeline_write": LAX_BOOL,
                "fast_init": LAX_BOOL,
                "ratio": _SHARE,
                "super_offload": LAX_BOOL,
                "cpuadam_cores_perc": _SHARE,
            },
            or_null(BLOCK),
        ),
        **_rows(
            "zero_optimization.zenflow",
            {
                "topk_ratio": number(0, 1, open_ends=True, lax=True),
                "select_strategy": choice("auto", "step", "epoch"),
                "select_interval": interval,
                "update_interval": interval,
                "overlap_step": LAX_BOOL,
                "offload": LAX_BOOL,
                "auto_ratio": _SHARE,
                "full_warm_up_rounds": _INT,
                "pt_reserved_cores_perc": _SHARE,
                "steps_per_epoch": or_null(_INT),
            },
            or_null(BLOCK),
        ),
        **_rows(
            "zero_optimization.leaf_module",
            {"classes": _TEXTS, "names": _TEXTS, "name_suffixes": _TEXTS},
            or_null(BLOCK),
        ),
        **_rows(
            "aio",
            {
                "block_size": _COUNT,
                "queue_depth": _COUNT,
                "intra_op_parallelism": _COUNT,
                "single_submit": BOOL,
                "overlap_events": BOOL,
                "use_gds": BOOL,
                "thread_count": _idle(ANYTHING, _IGNORED + "; its place is aio.intra_op_parallelism"),
            },
            or_null(BLOCK),
        ),
    }


def _watching() -> dict[str, Key]:
    return {
        **_rows("tensorboard", {"enabled": LAX_BOOL, "output_path": TEXT, "job_name": TEXT}),
        **_rows("csv_monitor", {"enabled": LAX_BOOL, "output_path": TEXT, "job_name": TEXT}),
        **_rows("wandb", {"enabled": LAX_BOOL, "group": or_null(TEXT), "team": or_null(TEXT), "project": TEXT}),
        **_rows(
            "comet",
            {
                "enabled": LAX_BOOL,
                "samples_log_interval": _INT,
                "project": or_null(TEXT),
                "workspace": or_null(TEXT),
                "api_key": or_null(TEXT),
                "experiment_name": or_null(TEXT),
                "experiment_key": or_null(TEXT),
                "online": or_null(LAX_BOOL),
                "mode": or_null(TEXT),
            },
        ),
        **_rows(
            "comms_logger",
            {
                "enabled": LAX_BOOL,
                "prof_all": LAX_BOOL,
                "prof_ops": list_of(TEXT),
                "verbose": LAX_BOOL,
                "debug": LAX_BOOL,
            },
        ),
        **_rows(
            "flops_profiler",
            {
                "enabled": BOOL,
                "recompute_fwd_factor": number(0),
                "profile_step": integer(0),
                "module_depth": integer(-1),
                "top_modules": _COUNT,
                "detailed": BOOL,
                "output_file": or_null(TEXT),
            },
        ),
        **_rows("timers", {}),
        **_rows("timers.throughput", {"enabled": LAX_BOOL, "synchronized": LAX_BOOL}),
        **_rows(
            "checkpoint",
            {
                "tag_validation": choice("WARN", "IGNORE", "FAIL", fold_case=True),
                "load_universal": BOOL,
                "use_node_local_storage": BOOL,
                "checkpoint_serialization": BOOL,
            },
        ),
        **_rows("checkpoint.parallel_write", {"pipeline_stage": _idle(BOOL, _NOT_PIPELINED)}),
        **_rows(
            "checkpoint.writer",
            {
                "type": or_null(choice("MOCK", "PYTHON", "FAST", fold_case=True)),
                "io_buffer_size": _COUNT,
                "io_buffer_double": BOOL,
                "show_statistics": BOOL,
                "data_parallel": or_null(choice("REPLICA", "SOCKET", "MACHINE", fold_case=True)),
                "decoupled": BOOL,
                "io_multiplier": _COUNT,
            },
            or_null(BLOCK),
        ),
        **_rows(
            "autotuning",
            {
                "enabled": BOOL,
                "fast": BOOL,
                "results_dir": TEXT,
                "exps_dir": TEXT,
                "overwrite": BOOL,
                "start_profile_step": integer(0),
                "end_profile_step": integer(0),
                "metric": choice("latency", "throughput", "flops", "forward", "step"),
                "metric_path": or_null(TEXT),
                "tuner_type": choice("gridsearch", "random", "model_based"),
                "tuner_early_stopping": integer(0),
                "tuner_num_trials": integer(0),
                "arg_mappings": or_null(BLOCK),
                "model_info_path": or_null(TEXT),
                "mp_size": _COUNT,
                "max_train_batch_size": or_null(_COUNT),
                "min_train_batch_size": _COUNT,
                "max_train_micro_batch_size_per_gpu": _COUNT,
                "min_train_micro_batch_size_per_gpu": _COUNT,
                "num_tuning_micro_batch_sizes": _COUNT,
            },
            Key(BLOCK, idle="`deepspeed --autotuning` reads it, this program does not"),
        ),
        **_rows(
            "autotuning.model_info",
            {
                "profile": BOOL,
                "num_params": or_null(_COUNT),
                "hidden_size": or_null(_COUNT),
                "num_layers": or_null(_COUNT),
            },
            or_null(BLOCK),
        ),
    }


def _model_parallelism() -> dict[str, Key]:
    return {
        **_rows(
            "tensor_parallel",
            {
                "dtype": Key(ANYTHING, refused="DeepSpeed takes a torch dtype here, which JSON cannot say"),
                "autotp_size": _INT,
                "tp_overlap_comm": LAX_BOOL,
                "vocab_parallel_lm_head": or_null(LAX_BOOL),
                "vocab_parallel_ce_backend": choice("torch", "liger"),
                "injection_policy_tuple": or_null(list_of(TEXT)),
                "partition_config": or_null(BLOCK),
                "preset_model": or_null(TEXT),
                "keep_module_on_host": LAX_BOOL,
                "kernel_inject": LAX_BOOL,
                "replace_with_kernel_inject": Key(LAX_BOOL, alias_of="kernel_inject"),
                "tensor_parallel": Key(BLOCK, alias_of="tp"),
            },
            Key(BLOCK, idle=_NO_MODEL_PARALLELISM),
        ),
        **_rows("tensor_parallel.tp", {"tp_size": _INT, "tp_grain_size": _INT, "mpu": NULL, "tp_group": NULL}),
        **_rows(
            "pipeline",
            {
                "stages": either(choice("auto"), _COUNT),
                "partition": TEXT,
                "seed_layers": BOOL,
                "activation_checkpoint_interval": integer(0),
                "pipe_partitioned": BOOL,
                "grad_partitioned": BOOL,
                "use_reentrant": or_null(BOOL),
            },
            Key(BLOCK, idle=_NOT_PIPELINED),
        ),
        **_rows(
            "hybrid_engine",
            {
                "enabled": LAX_BOOL,
                "max_out_tokens": _POSITIVE,
                "inference_tp_size": _INT,
                "release_inference_cache": LAX_BOOL,
                "pin_parameters": LAX_BOOL,
                "tp_gather_partition_size": _INT,
                "enable_cuda_graph": LAX_BOOL,
            },
            Key(BLOCK, idle="nothing is generated while training"),
        ),
        **_rows(
            "weight_quantization",
            {
                "enabled": LAX_BOOL,
                "num_bits": _INT,
                "q_type": choice("asymmetric", "symmetric"),
                "q_groups": _INT,
                "quantized_initialization": BLOCK,
                "post_init_quant": BLOCK,
            },
            Key(BLOCK, idle=_NOT_IN_INIT),
        ),
        **_rows(
            "expert_parallel",
            {
                "enabled": BOOL,
                "autoep_size": _COUNT,
                "expert_tensor_parallel_size": _COUNT,
                "validate_folding_routing": BOOL,
                "async_split_plan": BOOL,
                "use_grouped_mm": BOOL,
                "disable_triton_grouped_mm": BOOL,
                "route_norm": or_null(BOOL),
                "route_scale": number(),
                "routed_scaling_factor": either(choice("auto"), number()),
                "score_apply": choice("auto", "pre", "post"),
                "score_func": choice("auto", "softmax", "sigmoid"),
                "combine_impl": choice("auto", "weighted_sum", "fused_weighted_sum", "legacy_bmm"),
                "row_weighting_impl": choice("auto", "eager", "fused"),
                "gate_up_impl": choice("separate", "fused"),
                "comm_backend": choice("comm", "deepep"),
                "comm_num_sm": _COUNT,
                "comm_qp_margin": integer(0),
                "comm_max_tokens_per_rank": integer(0),
                "num_expert_groups": or_null(_COUNT),
                "num_limited_groups": or_null(_COUNT),
                "top_k": either(choice("auto"), _COUNT),
                "load_balance_coeff": NULL,
                "has_shared_experts": or_null(BOOL),
                "expert_activation": or_null(choice("swiglu", "geglu_tanh", "swiglu_clamped")),
                **{
                    name: or_null(TEXT)
                    for name in (
                        *("preset_model", "moe_layer_pattern", "expert_pattern", "router_pattern", "expert_w1"),
                        *("expert_w2", "expert_w3", "num_experts_attr", "top_k_attr", "shared_experts_pattern"),
                        "shared_experts_gate_pattern",
                    )
                },
            },
            Key(BLOCK, idle=_NO_EXPERTS),
        ),
    }


def _data_efficiency() -> dict[str, Key]:
    return {
        **_rows("data_efficiency", {"enabled": BOOL, "seed": integer()}, Key(BLOCK, idle=_OWN_LOADER)),
        **_rows(
            "data_efficiency.data_sampling",
            {"enabled": BOOL, "num_epochs": _COUNT, "num_workers": integer(0), "pin_memory": BOOL},
        ),
        **_rows(
            "data_efficiency.data_sampling.curriculum_learning",
            {"enabled": BOOL, "data_cluster_path": TEXT, "curriculum_metrics": BLOCK},
        ),
        **_rows(
            "data_efficiency.data_sampling.dynamic_batching",
            {
                "enabled": BOOL,
                "metrics_path": TEXT,
                "lr_scaling_method": choice("linear", "sqrt", "none"),
                "min_batch_size": _COUNT,
                "max_batch_size": _COUNT,
                "sequence_picking_order": choice("random", "seqlen", "dataloader"),
                "max_tokens": _COUNT,
                "verbose": BOOL,
            },
        ),
        **_rows("data_efficiency.data_routing", {"enabled": BOOL}),
        **_rows(
            "data_efficiency.data_routing.random_ltd",
            {
                "enabled": BOOL,
                "model_mask_name": or_null(TEXT),
                "model_type": TEXT,
                "micro_batch_size": _COUNT,
                "global_batch_size": _COUNT,
                "sample_idx": BOOL,
                "attention_mask": BOOL,
                "hidden_state_order": TEXT,
                "random_ltd_layer_num": integer(0),
                "random_ltd_layer_id": list_of(integer(0)),
                "total_layer_num": _COUNT,
                "layer_token_lr_schedule": BLOCK,
                "random_ltd_schedule": BLOCK,
            },
        ),
    }


# Blocks that DeepSpeed reads by its own pydantic models. These drop every field that says "auto", which so has its
# default, and refuse null for a field that is not optional.
MODELLED = frozenset(
    {
        *("fp16", "bf16", "bfloat16", "compile", "comms_logger", "tensorboard", "csv_monitor", "wandb", "comet"),
        *("timers.throughput", "tensor_parallel", "tensor_parallel.tp", "hybrid_engine", "weight_quantization"),
        *("zero_optimization", "zero_optimization.offload_param", "zero_optimization.offload_optimizer"),
        *("zero_optimization.zenflow", "zero_optimization.leaf_module"),
    }
)
# Keys in these blocks for which "auto" is a value like any other.
MEANS_AUTO = frozenset(f"zero_optimization.zenflow.{name}" for name in _ZENFLOW_CHOOSES)

# Objects whose insides DeepSpeed hands on unread, or reads by names that are the user's own.
FREE_FORM = frozenset(
    {
        "datastates_ckpt",
        "autotuning.arg_mappings",
        "tensor_parallel.partition_config",
        "tensor_parallel.tensor_parallel",
        "weight_quantization.quantized_initialization",
        "weight_quantization.post_init_quant",
        "data_efficiency.data_sampling.curriculum_learning.curriculum_metrics",
        "data_efficiency.data_routing.random_ltd.layer_token_lr_schedule",
        "data_efficiency.data_routing.random_ltd.random_ltd_schedule",
    }
)


@cache
def table() -> Rows:
    """Every key by its dotted path, but for the insides of `optimizer.params` and `scheduler.params`."""
    return {
        **_top_level(),
        **_training(),
        **_zero(),
        **_watching(),
        **_model_parallelism(),
        **_data_efficiency(),
    }


@cache
def children() -> Mapping[str, Rows]:
    """The rows of the table by the block they stand in; '' is the top level."""
    tree: dict[str, dict[str, Key]] = {"": {}}
    for path, key in table().items():
        parent, _, name = path.rpartition(".")
        tree.setdefault(parent, {})[name] = key
    return tree
