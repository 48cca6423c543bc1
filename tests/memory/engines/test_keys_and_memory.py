"""Of every key that is accepted: it moves the plan, or it moves nothing, or a plan names it as not modelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dist_trainer.benchmark import plan_error
from dist_trainer.benchmark.measure import measure_apart
from dist_trainer.benchmark.plan_error import Case, Model
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.deepspeed.keys import children, table
from dist_trainer.config.deepspeed.params import optimizer_params
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.memory.engines.keys import COUNTED, COUNTED_PARAMS, INERT, UNMODELLED, effect, unmodelled
from dist_trainer.memory.planner.planner import PlannedDevice, make_plan

ACCEPTED = sorted(
    path
    for path, key in table().items()
    if key.refused is None and key.alias_of is None and path not in children() and not path.startswith("bfloat16.")
)
Z = "zero_optimization."
SQUAT = ("model.num_layers=3", "model.hidden_size=256", "model.num_heads=4", "model.vocab_size=2048")
SMALL = (f"{Z}reduce_bucket_size=100000", "train_micro_batch_size_per_gpu=2", "gradient_accumulation_steps=2")
STAGE0, STAGE1, STAGE2, STAGE3 = ((f"{Z}stage={stage}", *SMALL) for stage in range(4))
TIGHT = (f"{Z}stage3_max_live_parameters=100000", f"{Z}stage3_max_reuse_distance=100000")
ON_HOST = (f"{Z}offload_optimizer.device=cpu",)
PARAMS_ON_HOST = (*ON_HOST, f"{Z}offload_param.device=cpu")
FP32_SUMS = ("data_types.grad_accum_dtype=fp32",)
CHECKPOINTING = ("activation_checkpointing.number_checkpoints=null",)
# What is in force before, and the key's other value.
MOVES: dict[str, tuple[tuple[str, ...], str]] = {
    "train_batch_size": (("train_batch_size=4", "gradient_accumulation_steps=1"), "16"),
    "train_micro_batch_size_per_gpu": (STAGE2, "4"),
    "gradient_accumulation_steps": (("train_micro_batch_size_per_gpu=2", "gradient_accumulation_steps=1"), "4"),
    "communication_data_type": (STAGE0, "fp32"),
    "optimizer.type": (STAGE2, "Lion"),
    "data_types.grad_accum_dtype": (STAGE1, "fp32"),
    "fp16.enabled": (("bf16.enabled=false", *STAGE2), "true"),
    "fp16.fp16_master_weights_and_grads": (("bf16.enabled=false", "fp16.enabled=true", *STAGE2, *ON_HOST), "true"),
    "bf16.enabled": (STAGE2, "false"),
    "bf16.immediate_grad_update": ((*STAGE1, *FP32_SUMS), "true"),
    "bf16.bf16_master_weights_and_grads": ((*STAGE2, *ON_HOST), "true"),
    "bf16.bf16_optimizer_states": ((*STAGE2, *ON_HOST, "bf16.bf16_master_weights_and_grads=true"), "true"),
    "torch_autocast.enabled": (("bf16.enabled=false", *STAGE2), "true"),
    "torch_autocast.dtype": (("bf16.enabled=false", *STAGE2, "torch_autocast.enabled=true"), "float32"),
    "activation_checkpointing.number_checkpoints": ((*STAGE2, *CHECKPOINTING), "1"),
    "activation_checkpointing.cpu_checkpointing": ((*STAGE2, *CHECKPOINTING), "true"),
    f"{Z}stage": (STAGE2, "3"),
    f"{Z}contiguous_gradients": (STAGE2, "false"),
    f"{Z}reduce_scatter": ((*STAGE2, f"{Z}reduce_bucket_size=3000000"), "false"),
    f"{Z}reduce_bucket_size": (STAGE2, "200000"),
    f"{Z}use_multi_rank_bucket_allreduce": ((*STAGE2, f"{Z}reduce_bucket_size=3000000"), "false"),
    f"{Z}overlap_comm": (STAGE2, "true"),
    f"{Z}sub_group_size": (
        (*STAGE3, "optimizer.params.torch_adam=true", "model.vocab_size=128"),
        "20000",
    ),
    f"{Z}stage3_prefetch_bucket_size": ((*STAGE3, f"{Z}stage3_prefetch_bucket_size=0"), "1000000"),
    f"{Z}stage3_param_persistence_threshold": ((*STAGE3, *TIGHT), "0"),
    f"{Z}stage3_model_persistence_threshold": ((*STAGE3, *TIGHT), "0"),
    f"{Z}stage3_max_live_parameters": ((*STAGE3, f"{Z}stage3_max_reuse_distance=0"), "0"),
    f"{Z}stage3_max_reuse_distance": ((*STAGE3, f"{Z}stage3_prefetch_bucket_size=0"), "0"),
    f"{Z}stage3_use_all_reduce_for_fetch_params": (STAGE3, "true"),
    f"{Z}stage3_allgather_sequential": (STAGE3, "true"),
    f"{Z}zero_hpz_partition_size": (STAGE3, "2"),
    f"{Z}round_robin_gradients": (STAGE2, "true"),
    f"{Z}memory_efficient_linear": ((*STAGE3, *TIGHT), "false"),
    f"{Z}cpu_offload": (STAGE2, "true"),
    f"{Z}cpu_offload_param": (STAGE3, "true"),
    f"{Z}offload_param.device": ((*STAGE3, *ON_HOST), "cpu"),
    f"{Z}offload_optimizer.device": (STAGE2, "cpu"),
    "optimizer.params.torch_adam": (STAGE0, "true"),
    "optimizer.params.fused": ((*STAGE2, "optimizer.params.torch_adam=true"), "true"),
    "optimizer.params.foreach": ((*STAGE2, "optimizer.params.torch_adam=true"), "false"),
    "optimizer.params.amsgrad": ((*STAGE2, "optimizer.params.torch_adam=true"), "true"),
    "optimizer.params.momentum": (
        (*STAGE2, "optimizer.type=SGD", "optimizer.params.lr=0.1", "zero_allow_untested_optimizer=true"),
        "0.9",
    ),
    "optimizer.params.fp32_optimizer_states": (
        (*STAGE2, *ON_HOST, "bf16.bf16_master_weights_and_grads=true"),
        "false",
    ),
}
# Whether the host's memory is pinned moves what torch's allocator of pinned memory holds.
PINNED = {
    f"{Z}offload_optimizer.pin_memory": ((*STAGE2, *ON_HOST), "false"),
    f"{Z}offload_param.pin_memory": ((*STAGE3, *PARAMS_ON_HOST), "false"),
    f"{Z}cpu_offload_use_pin_memory": ((*STAGE2, f"{Z}cpu_offload=true"), "false"),
}


@pytest.fixture(autouse=True, scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ds") / "bare.json"
    path.write_text('{"bf16": {"enabled": true}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}')
    return str(path)


def bytes_of(bare: str, settings: tuple[str, ...]) -> list[int]:
    resolved = resolve(Request(ds=bare, settings=(*SQUAT, *settings)), world_size=4, device=ANY_DEVICE)
    rank = make_plan(resolved, world_size=4, device=PlannedDevice("cuda"), ranks=(0,), sequence_length=32).worst
    return [*(phase.allocated_bytes for phase in rank.phases), rank.host_bytes]


@pytest.mark.parametrize("path", ACCEPTED)
def test_of_every_key_it_is_decided_what_it_does_to_memory(path: str) -> None:
    assert effect(path) in ("counted", "inert", "unmodelled")


def test_the_table_has_no_key_that_is_none_and_none_twice() -> None:
    named = [*COUNTED, *INERT, *UNMODELLED]
    assert len(named) == len(set(named))
    assert set(named) <= set(table())
    assert all(effect(path) == "counted" for path in COUNTED)


@pytest.mark.parametrize("path", [*sorted(COUNTED), *(f"optimizer.params.{name}" for name in sorted(COUNTED_PARAMS))])
def test_a_counted_key_moves_the_plan(bare: str, path: str) -> None:
    before, value = {**MOVES, **PINNED}[path]
    assert bytes_of(bare, before) != bytes_of(bare, (*before, f"{path}={value}"))


NVME = tuple(
    f"{Z}offload_{what}.{key}" for what in ("optimizer", "param") for key in ("device=nvme", "nvme_path=/nvme")
)
# A setting of each key that is not modelled; those that count with another key alone bring that.
ASKED: dict[str, dict[str, Any]] = {
    f"{Z}zero_quantized_weights": {"stage": 3, "zero_quantized_weights": True},
    f"{Z}zero_quantized_gradients": {"stage": 3, "zero_quantized_gradients": True},
    f"{Z}zenflow": {"stage": 2, "zenflow": {"topk_ratio": 0.1}},
    f"{Z}parameter_alignment": {"stage": 2, "parameter_alignment": True},
    f"{Z}leaf_module": {"stage": 3, "leaf_module": {"classes": ["Block"]}},
    f"{Z}stage3_module_granularity_threshold": {"stage": 3, "stage3_module_granularity_threshold": 1000},
    f"{Z}offload_optimizer.super_offload": {"stage": 3, "offload_optimizer": {"device": "cpu", "super_offload": True}},
    f"{Z}offload_optimizer.ratio": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}},
}
ASKED_AT_THE_TOP: dict[str, dict[str, Any]] = {
    "torch_autocast.lower_precision_safe_modules": {
        "torch_autocast": {"lower_precision_safe_modules": ["torch.nn.Linear"]}
    },
    "data_types.keep_in_fp32_modules": {"data_types": {"keep_in_fp32_modules": ["LayerNorm"]}},
    "flops_profiler.enabled": {"flops_profiler": {"enabled": True}},
    "compile.deepcompile": {"compile": {"deepcompile": True}},
    "datastates_ckpt": {"datastates_ckpt": True},
    "checkpoint.writer": {"checkpoint": {"writer": {"type": "FAST"}}},
}


@pytest.mark.parametrize("path", [path for path, row in sorted(UNMODELLED.items()) if row.stages])
def test_a_key_that_is_not_modelled_is_named(path: str) -> None:
    config = ASKED_AT_THE_TOP[path] if path in ASKED_AT_THE_TOP else {"zero_optimization": ASKED[path]}
    assert [line for line in unmodelled(config) if line.startswith(f"{path}: ")]


def test_what_counts_beside_nvme_or_muon_alone_is_named_with_it() -> None:
    nvme = {"device": "nvme", "nvme_path": "/nvme", "buffer_count": 9}
    lines = list(unmodelled({"zero_optimization": {"stage": 3, "offload_optimizer": nvme, "offload_param": nvme}}))
    assert [line.partition(":")[0] for line in lines] == [f"{Z}offload_optimizer", f"{Z}offload_param"]
    assert "Muon" in "".join(unmodelled({"optimizer": {"type": "Muon"}, "zero_optimization": {"stage": 2}}))


def test_what_does_nothing_at_a_stage_is_not_named_there() -> None:
    assert not list(unmodelled({"zero_optimization": {**ASKED[f"{Z}leaf_module"], "stage": 2}}))


# Values that the engine runs with on a CPU, all at once; keys of stage 0 to 3 together.
HARMLESS = {
    "gradient_clipping": "0.5",
    "gradient_allreduce_op": "mean",
    "prescale_gradients": "true",
    "zero_allow_untested_optimizer": "true",
    "steps_per_print": "1",
    "wall_clock_breakdown": "true",
    "memory_breakdown": "true",
    "dump_state": "true",
    "disable_python_gc": "true",
    "log_level": "info",
    "bf16.check_grad_overflow": "false",
    "data_types.param_dtype": "bf16",
    "activation_checkpointing.synchronize_checkpoint_boundary": "true",
    f"{Z}allgather_partitions": "false",
    f"{Z}allgather_bucket_size": "1000",
    f"{Z}elastic_checkpoint": "true",
    f"{Z}load_from_fp32_weights": "false",
    f"{Z}ignore_unused_parameters": "false",
    f"{Z}pipeline_loading_checkpoint": "true",
    f"{Z}log_trace_cache_warnings": "true",
    "comms_logger.enabled": "true",
    "comms_logger.prof_all": "false",
    "comms_logger.verbose": "true",
    "comms_logger.debug": "false",
    "comms_logger.prof_ops": '["all_reduce"]',
    "timers.throughput.enabled": "false",
    "timers.throughput.synchronized": "false",
    "checkpoint.tag_validation": "IGNORE",
    "checkpoint.use_node_local_storage": "true",
    "checkpoint.checkpoint_serialization": "false",
    "optimizer.params.lr": "0.01",
    "optimizer.params.betas": "[0.8,0.9]",
    "optimizer.params.eps": "1e-6",
    "optimizer.params.weight_decay": "0.2",
    "scheduler.type": "WarmupLR",
    "scheduler.params.warmup_num_steps": "3",
    "csv_monitor.enabled": "true",
    "csv_monitor.job_name": "job",
    "csv_monitor.output_path": "",
}
# With why no CPU shows that they move nothing.
NOT_RUN = {
    "gradient_predivide_factor": "DeepSpeed refuses it with reduce_scatter at stages 2 and 3",
    "managed_gradient_accumulation": "this program has it true",
    **dict.fromkeys(("sequence_parallel_size", "data_parallel_size"), "more than 1 is refused"),
    "allgather_size": "of the old form `zero_optimization: true`",
    "optimizer.legacy_fusion": "DeepSpeed's FusedAdam is CUDA's",
    f"{Z}legacy_stage1": "true is refused",
    f"{Z}compute_grad_norm": "false is refused with clipping; it has a test of its own",
    f"{Z}enable_sanity_checks": "it compares ranks, of which there is one",
    "checkpoint.load_universal": "of a checkpoint that is loaded",
    **{path: "fp16 is refused on a CPU" for path in INERT if path.startswith("fp16.")},
    **{path: "asks a service" for path in INERT if path.startswith(("wandb.", "comet."))},
    **{path: "writes as csv_monitor does" for path in INERT if path.startswith("tensorboard.")},
}


def test_every_key_that_is_inert_is_run_or_it_is_said_why_not() -> None:
    ran = {path for path in HARMLESS if not path.startswith(("optimizer.params.", "scheduler.params."))}
    assert ran | set(NOT_RUN) | {"optimizer.params", "scheduler.params"} == INERT


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_keys_that_are_inert_move_no_byte_of_the_engine(stage: int, tmp_path: Path) -> None:
    mite = Model("mite", "tiny", 32, 2, ("model.num_layers=2", "model.hidden_size=64", "model.vocab_size=512"))
    case = Case(model=mite, stage=stage, world_size=2, bucket=100_000)
    said = {**HARMLESS, "csv_monitor.output_path": str(tmp_path)}
    # Stages 2 and 3 refuse it with reduce_scatter.
    refused = ("prescale_gradients",) if stage > 1 else ()
    settings = tuple(f"{path}={value}" for path, value in said.items() if path not in refused)
    plain = measure_apart(plan_error.spec_of(case))
    assert measure_apart(plan_error.spec_of(case, settings=settings)).peaks_bytes == plain.peaks_bytes


@pytest.mark.parametrize("stage", [1, 2])
def test_the_norm_of_the_gradients_moves_no_byte_of_the_engine(stage: int) -> None:
    mite = Model("mite", "tiny", 32, 2, ("model.num_layers=2", "model.hidden_size=64", "model.vocab_size=512"))
    case = Case(model=mite, stage=stage, world_size=2, bucket=100_000)
    with_norm, without = (
        measure_apart(plan_error.spec_of(case, settings=("gradient_clipping=0", f"{Z}compute_grad_norm={said}")))
        for said in ("true", "false")
    )
    # But for the norms themselves, a few scalars.
    assert without.peaks_bytes == pytest.approx(with_norm.peaks_bytes, abs=64)


def test_parameters_of_optimizers_that_are_counted_are_among_those_there_are() -> None:
    known = {*optimizer_params("adamw").rows, *optimizer_params("muon").rows, *optimizer_params("adagrad").rows}
    assert known >= COUNTED_PARAMS
