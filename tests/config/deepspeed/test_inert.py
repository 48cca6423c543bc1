"""The table of keys that do nothing beside others: that it is whole, that DeepSpeed's source bears it out, and that
each row is said where it applies and nowhere else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import deepspeed
import pytest
from pydantic import BaseModel
from test_keys import PYDANTIC

from dist_trainer.config.deepspeed import inert, params
from dist_trainer.config.deepspeed.check import examine
from dist_trainer.config.deepspeed.keys import Facts, children, table
from dist_trainer.config.deepspeed.resolve import resolve

FACTS = Facts(world_size=2, hidden_size=64, total_steps=100)
SITE = Path(deepspeed.__file__).parents[1]

# Every key that counts whatever the other keys say: switches, what is refused where it would not count, and what is
# read on its own.
ALWAYS_COUNT = {
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("managed_gradient_accumulation", "gradient_clipping", "gradient_allreduce_op", "sequence_parallel_size"),
    # A permission: it does nothing where it is not needed, and says so by its name.
    "zero_allow_untested_optimizer",
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "disable_python_gc", "log_level"),
    *("datastates_ckpt", "optimizer.type", "scheduler.type", "fp16.enabled", "bf16.enabled", "torch_autocast.enabled"),
    *("data_types.grad_accum_dtype", "data_types.param_dtype"),
    *(f"activation_checkpointing.{name}" for name in ("number_checkpoints", "cpu_checkpointing")),
    "activation_checkpointing.synchronize_checkpoint_boundary",
    *("compile.autoep_non_moe", "zero_optimization.stage", "comms_logger.enabled", "flops_profiler.enabled"),
    *(f"{name}.enabled" for name in ("tensorboard", "csv_monitor", "wandb", "comet", "timers.throughput")),
    *(f"checkpoint.{name}" for name in ("tag_validation", "load_universal", "use_node_local_storage")),
    "checkpoint.checkpoint_serialization",
    *(f"checkpoint.writer.{name}" for name in children()["checkpoint.writer"]),
    *(f"optimizer.params.{name}" for name in ("eps", "weight_decay", "torch_adam", "amsgrad", "bias_correction")),
    *(f"optimizer.params.{name}" for name in ("set_grad_none", "fused", "maximize", "capturable", "differentiable")),
    *(f"optimizer.params.{name}" for name in ("eps_inside_sqrt", "max_coeff", "min_coeff", "lr_decay")),
    *(f"optimizer.params.{name}" for name in ("initial_accumulator_value", "momentum", "ns_method")),
}
COUNT_IN_THEIR_SCHEDULE = {
    *("last_batch_iteration", "last_epoch", "cycle_momentum", "total_num_steps", "total_iters", "total_steps"),
    *("lr_range_test_min_lr", "lr_range_test_step_size", "lr_range_test_step_rate", "lr_range_test_staircase"),
    *("cycle_min_lr", "cycle_max_lr", "cycle_first_step_size", "cycle_second_step_size"),
    *("cycle_first_stair_count", "cycle_second_stair_count", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps"),
    *("warmup_type", "warmup_min_ratio", "cos_min_ratio", "step_size", "milestones", "factor", "start_factor"),
    *("end_factor", "T_max", "eta_min", "base_lr", "max_lr", "step_size_up", "step_size_down", "mode", "T_0"),
    *("T_mult", "pct_start", "anneal_strategy", "div_factor", "final_div_factor", "three_phase", "power"),
}


def every_key() -> set[str]:
    """All keys that a configuration can have, in the spelling that check.examine() gives them; no blocks."""
    of_table = {
        path
        for path, key in table().items()
        if path not in children() and not any(table()[at].refused or table()[at].alias_of for at in around(path))
    }
    optimizers = {name for kind in params.DEEPSPEED_OPTIMIZERS for name in params.optimizer_params(kind).rows}
    schedules = {name for kind in params.scheduler_table().values() for name in kind.rows}
    return (
        (of_table - {"optimizer.params", "scheduler.params"})
        | {f"optimizer.params.{name}" for name in optimizers - {"max_grad_norm"}}
        | {f"scheduler.params.{name}" for name in schedules}
    )


def around(path: str) -> list[str]:
    """The key and the blocks around it."""
    names = path.split(".")
    return [".".join(names[:count]) for count in range(1, len(names) + 1)]


def test_every_key_of_the_table_is_answered_for() -> None:
    ruled = {key for rule in inert.INERT for key in rule.keys}
    idle = {path for path, key in table().items() if key.idle is not None}
    always = ALWAYS_COUNT | {f"scheduler.params.{name}" for name in COUNT_IN_THEIR_SCHEDULE}
    open_keys = {path for path in every_key() if not (set(around(path)) & (ruled | idle | always))}
    assert open_keys == set()
    assert always <= every_key()
    assert {key for key in ruled if key not in every_key()} <= set(children())
    assert not always & ruled


@pytest.mark.parametrize("rule", inert.INERT, ids=lambda rule: rule.keys[0])
def test_the_source_has_the_text_that_a_row_rests_on(rule: inert.Inert) -> None:
    file, text = rule.source
    place = SITE / file if file.startswith("torch/") else SITE / "deepspeed" / file
    assert text in place.read_text(encoding="utf-8")


def test_what_is_on_by_default_is_so_in_deepspeed() -> None:
    for path in inert.ON_BY_DEFAULT:
        parent, _, name = path.rpartition(".")
        model: type[BaseModel] | None = PYDANTIC.get(parent)
        if model is not None:
            assert model.model_fields[name].default is True
    booleans = {
        f"{parent}.{name}"
        for parent, model in PYDANTIC.items()
        for name, field in model.model_fields.items()
        if field.default is True and any(f"{parent}.{name}" in rule.keys for rule in inert.INERT)
    }
    assert booleans <= inert.ON_BY_DEFAULT


def said(raw: dict[str, Any]) -> list[str]:
    full = {"train_batch_size": 4, **copy.deepcopy(raw)}
    seen = examine(full)
    assert not seen.mistakes
    return inert.notices(seen.config, resolve(full, FACTS, source="ds.json"))


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **keys}}


def adamw(**given: Any) -> dict[str, Any]:
    return {"optimizer": {"type": "AdamW", "params": given}}


def schedule(kind: str, **given: Any) -> dict[str, Any]:
    return {"scheduler": {"type": kind, "params": given}}


BF16 = {"bf16": {"enabled": True}}
SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}
NVME = {"device": "nvme", "nvme_path": "/x"}
CYCLE = {"cycle_min_lr": 1e-4, "cycle_max_lr": 1e-3}

# One for each row of the table: what is said, and which keys do nothing.
CASES: list[tuple[dict[str, Any], str]] = [
    (zero(0, overlap_comm=True, reduce_bucket_size=5e8), "zero_optimization.reduce_bucket_size, overlap_comm do"),
    (zero(2, allgather_partitions=False), "zero_optimization.allgather_partitions does"),
    (zero(2, stage3_max_live_parameters=1e9), "zero_optimization.stage3_max_live_parameters does"),
    (zero(2, prefetch_bucket_size=1e7), "zero_optimization.stage3_prefetch_bucket_size does"),
    (zero(1, offload_param={"device": "cpu"}), "zero_optimization.offload_param does"),
    (zero(2, cpu_offload_param=True), "zero_optimization.cpu_offload_param does"),
    (zero(3, allgather_bucket_size=2e8), "zero_optimization.allgather_bucket_size does"),
    ({**zero(1, overlap_comm=True), **BF16, **SUMS}, "zero_optimization.overlap_comm does"),
    (zero(1, offload_optimizer=NVME), "zero_optimization.offload_optimizer.nvme_path does"),
    (zero(1, offload_optimizer=NVME), "zero_optimization.offload_optimizer.device does"),
    (zero(2, offload_optimizer={"pin_memory": True}), "zero_optimization.offload_optimizer.pin_memory does"),
    (zero(3, offload_param={"pin_memory": False}), "zero_optimization.offload_param.pin_memory does"),
    (
        zero(3, offload_optimizer={"device": "cpu", "buffer_count": 4, "fast_init": True}),
        "zero_optimization.offload_optimizer.buffer_count, fast_init do",
    ),
    (zero(3, offload_param={"device": "cpu", "max_in_cpu": 1e9}), "zero_optimization.offload_param.max_in_cpu does"),
    (
        zero(3, offload_optimizer={"device": "cpu", "cpuadam_cores_perc": 0.5}),
        "zero_optimization.offload_optimizer.cpuadam_cores_perc does",
    ),
    (zero(2, cpu_offload_use_pin_memory=True), "zero_optimization.cpu_offload_use_pin_memory does"),
    (
        zero(2, offload_optimizer={"device": "cpu"}, contiguous_gradients=False),
        "zero_optimization.contiguous_gradients does",
    ),
    (
        zero(2, reduce_scatter=False, use_multi_rank_bucket_allreduce=True),
        "zero_optimization.use_multi_rank_bucket_allreduce does",
    ),
    (zero(2, ignore_unused_parameters=False), "zero_optimization.ignore_unused_parameters does"),
    (
        zero(3, stage3_allgather_sequential=True, stage3_prefetch_bucket_size=5e6),
        "zero_optimization.stage3_prefetch_bucket_size does",
    ),
    (zero(3, load_from_fp32_weights=False), "zero_optimization.load_from_fp32_weights does"),
    (zero(3, save_muon_momentum_buffer_in_memory=True), "zero_optimization.save_muon_momentum_buffer_in_memory does"),
    (
        zero(2, zenflow={"update_interval": 4, "auto_ratio": 0.9}, offload_optimizer={"device": "cpu"}),
        "zero_optimization.zenflow.auto_ratio does",
    ),
    (
        zero(
            2,
            zenflow={"select_strategy": "step", "select_interval": 4, "steps_per_epoch": 9},
            offload_optimizer={"device": "cpu"},
        ),
        "zero_optimization.zenflow.steps_per_epoch does",
    ),
    ({**zero(2), "allgather_size": 1e8}, "allgather_size does"),
    ({**zero(2), "aio": {"block_size": 1048576}}, "aio does"),
    ({"gradient_allreduce_op": "sum", "prescale_gradients": True}, "prescale_gradients does"),
    ({**zero(1), "gradient_predivide_factor": 2.0}, "gradient_predivide_factor does"),
    ({"prescale_gradients": True, "gradient_predivide_factor": 2.0}, "gradient_predivide_factor does"),
    (
        {**zero(2), "torch_autocast": {"enabled": True}, "communication_data_type": "fp32"},
        "communication_data_type does",
    ),
    ({"data_parallel_size": 2}, "data_parallel_size does"),
    ({"fp16": {"loss_scale": 128, "initial_scale_power": 12}}, "fp16.loss_scale, initial_scale_power do"),
    (
        {**zero(1), "fp16": {"enabled": True, "loss_scale": 128, "initial_scale_power": 12}},
        "fp16.initial_scale_power does",
    ),
    ({"fp16": {"enabled": True, "hysteresis": 2}}, "fp16.hysteresis does"),
    ({"bf16": {"enabled": False, "immediate_grad_update": True}}, "bf16.immediate_grad_update does"),
    ({**zero(2), "bf16": {"enabled": True, "immediate_grad_update": True}}, "bf16.immediate_grad_update does"),
    ({**zero(3), "bf16": {"enabled": True, "check_grad_overflow": True}}, "bf16.check_grad_overflow does"),
    ({"torch_autocast": {"dtype": "bf16"}}, "torch_autocast.dtype does"),
    ({"data_types": {"keep_in_fp32_modules": ["norm"]}}, "data_types.keep_in_fp32_modules does"),
    ({"compile": {"deepcompile": True}}, "compile.deepcompile does"),
    ({**zero(1), "compile": {"offload_activation": True}}, "compile.offload_activation does"),
    ({**zero(3), "compile": {"deepcompile": True, "free_activation": True}}, "compile.free_activation does"),
    ({**zero(1), "compile": {"deepcompile": True, "offload_parameters": True}}, "compile.offload_parameters does"),
    (
        {**zero(3), "compile": {"deepcompile": True, "offload_activation_pin_memory": False}},
        "compile.offload_activation_pin_memory does",
    ),
    ({**adamw(lr=1e-2), **schedule("OneCycle", **CYCLE, cycle_momentum=False)}, "optimizer.params.lr does"),
    ({**adamw(lr=1e-2), **schedule("WarmupLR", warmup_max_lr=1e-3)}, "optimizer.params.lr does"),
    ({**adamw(lr=1e-2), **schedule("WarmupDecayLR", total_num_steps=9)}, "optimizer.params.lr does"),
    ({**adamw(lr=1e-2), **schedule("LRRangeTest")}, "optimizer.params.lr does"),
    (
        {
            "optimizer": {"type": "Muon", "params": {"muon_lr": 0.02}},
            **schedule("WarmupLR", warmup_max_lr=1e-3),
        },
        "optimizer.params.muon_lr does",
    ),
    (
        {
            "optimizer": {"type": "Muon", "params": {"adam_lr": 0.02}},
            **schedule("WarmupLR", warmup_max_lr=1e-3),
        },
        "optimizer.params.adam_lr does",
    ),
    (
        {"optimizer": {"type": "Muon", "params": {"lr": 1e-3, "muon_lr": 0.02, "adam_lr": 3e-4}}},
        "optimizer.params.lr does",
    ),
    ({**adamw(betas=[0.9, 0.95]), **schedule("OneCycle", **CYCLE)}, "optimizer.params.betas does"),
    (
        {**adamw(betas=[0.9, 0.95]), **schedule("OneCycleLR", max_lr=3e-4, total_steps=100)},
        "optimizer.params.betas counts",
    ),
    ({"optimizer": {"type": "Muon", "params": {"foreach": True}}}, "optimizer.params.foreach does"),
    (adamw(adam_w_mode=False), "optimizer.params.adam_w_mode does"),
    (adamw(fp32_optimizer_states=True), "optimizer.params.fp32_optimizer_states does"),
    ({"optimizer": {"type": "SGD", "params": {"lr": 1}, "legacy_fusion": True}}, "optimizer.legacy_fusion does"),
    (
        schedule("OneCycle", **CYCLE, cycle_momentum=False, cycle_min_mom=0.8, cycle_max_mom=0.9),
        "scheduler.params.cycle_min_mom, cycle_max_mom do",
    ),
    (schedule("OneCycle", **CYCLE, decay_lr_rate=0.1), "scheduler.params.decay_lr_rate does"),
    (schedule("OneCycle", **CYCLE, decay_step_size=10), "scheduler.params.decay_step_size does"),
    (schedule("CyclicLR", base_lr=1e-5, max_lr=1e-3, gamma=0.9), "scheduler.params.gamma does"),
    (schedule("CyclicLR", base_lr=1e-5, max_lr=1e-3, scale_mode="cycle"), "scheduler.params.scale_mode does"),
    (schedule("OneCycleLR", max_lr=1e-3, total_steps=100, epochs=3), "scheduler.params.epochs does"),
    ({"tensorboard": {"output_path": "x"}}, "tensorboard.output_path does"),
    ({"csv_monitor": {"enabled": False, "job_name": "x"}}, "csv_monitor.job_name does"),
    ({"wandb": {"project": "x"}}, "wandb.project does"),
    ({"comet": {"project": "x"}}, "comet.project does"),
    ({"flops_profiler": {"profile_step": 3}}, "flops_profiler.profile_step does"),
    ({"comms_logger": {"prof_all": True}}, "comms_logger.prof_all does"),
    ({"comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]}}, "comms_logger.prof_ops does"),
    ({"timers": {"throughput": {"enabled": False, "synchronized": False}}}, "timers.throughput.synchronized does"),
]


@pytest.mark.parametrize(("raw", "start"), CASES, ids=[start for _, start in CASES])
def test_what_does_nothing_is_named_with_the_key_that_decides(raw: dict[str, Any], start: str) -> None:
    found = [notice for notice in said(raw) if notice.startswith(start)]
    assert len(found) == 1
    assert found[0].partition(": ")[2]


def test_every_row_is_said_in_a_case() -> None:
    spoken = {notice.partition(": ")[2] for raw, _ in CASES for notice in said(raw)}
    for rule in inert.INERT:
        before_what_varies = rule.why.partition("{")[0]
        assert any(why.startswith(before_what_varies) for why in spoken), rule.why


@pytest.mark.parametrize(
    "raw",
    [
        zero(2, overlap_comm=True, reduce_bucket_size=5e8, allgather_bucket_size=5e8, allgather_partitions=True),
        zero(3, stage3_max_live_parameters=1e9, offload_param={"device": "cpu", "pin_memory": True}),
        zero(3, offload_optimizer={**NVME, "buffer_count": 5, "fast_init": True}, offload_param={**NVME}),
        {**zero(3, offload_optimizer=NVME), "aio": {"block_size": 1048576}},
        zero(0, overlap_comm=False, offload_param={"device": "none"}, offload_optimizer=None),
        zero(2, round_robin_gradients=False, zero_quantized_weights=False),
        zero(2, offload_optimizer={"device": "cpu"}, contiguous_gradients=True, ignore_unused_parameters=False),
        {"fp16": {"enabled": True, "initial_scale_power": 12, "hysteresis": 1}},
        {**zero(2), "fp16": {"enabled": True, "hysteresis": 2, "loss_scale": 0}},
        {**zero(2), "bf16": {"enabled": True, "check_grad_overflow": False}},
        {**zero(1), "bf16": {"enabled": True, "immediate_grad_update": True}, **SUMS},
        {"prescale_gradients": False, "gradient_predivide_factor": 1.0, "communication_data_type": None},
        {**adamw(lr=1e-3), **schedule("OneCycle", **CYCLE, cycle_momentum=False)},
        {**adamw(lr=1e-2), **schedule("WarmupLR", warmup_max_lr=None)},
        {**adamw(lr=1e-2), **schedule("WarmupLR", warmup_max_lr="auto")},
        {**adamw(lr="auto"), **schedule("WarmupLR", warmup_max_lr=7e-3)},
        {**adamw(lr=1e-2), **schedule("WarmupCosineLR", total_num_steps=9)},
        schedule("OneCycle", **CYCLE, decay_lr_rate=0.1, decay_step_size=10, cycle_min_mom=0.8),
        {"compile": {"deepcompile": False, "free_activation": False}},
        {"tensorboard": {"enabled": True, "output_path": "x"}, "comms_logger": {"enabled": False}},
        {"optimizer": {"type": "AdamW", "params": {"fp32_optimizer_states": True}}}
        | zero(2, offload_optimizer={"device": "cpu"}),
    ],
    ids=str,
)
def test_what_counts_is_not_named(raw: dict[str, Any]) -> None:
    assert said(raw) == []


def test_a_key_is_named_once_for_the_first_reason() -> None:
    (notice,) = said(zero(0, offload_optimizer={"device": "nvme", "nvme_path": "/x", "buffer_count": 4}))
    assert notice == "zero_optimization.offload_optimizer does nothing: zero_optimization.stage is 0"


def test_the_rate_that_counts_is_in_the_notice() -> None:
    (notice,) = said({**adamw(lr=1e-2), **schedule("WarmupLR", warmup_max_lr=1e-3)})
    assert notice == "optimizer.params.lr does nothing: scheduler.params.warmup_max_lr says the rate, 0.001"
