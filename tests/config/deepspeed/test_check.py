from __future__ import annotations

import math
import re
from typing import Any

import pytest

from dist_trainer.config.deepspeed.check import Examined, examine, params_at
from dist_trainer.config.deepspeed.resolve import DeepSpeedFileError, Mistake, check

SOURCE = "ds.json"


def mistakes(raw: dict[str, Any]) -> dict[str, Mistake]:
    """All mistakes by key; none is an empty dict."""
    try:
        check(raw, source=SOURCE)
    except DeepSpeedFileError as error:
        return {mistake.key: mistake for mistake in error.mistakes}
    return {}


def only(raw: dict[str, Any]) -> Mistake:
    found = mistakes(raw)
    assert len(found) == 1, found
    return next(iter(found.values()))


@pytest.mark.parametrize(
    ("raw", "key", "hint"),
    [
        ({"train_batchsize": 8}, "train_batchsize", 'did you mean "train_batch_size"?'),
        ({"micro_batch_size": 8}, "micro_batch_size", 'did you mean "train_micro_batch_size_per_gpu"?'),
        ({"zero_optimisation": {}}, "zero_optimisation", 'did you mean "zero_optimization"?'),
        ({"zero_optimization": {"stge": 2}}, "zero_optimization.stge", 'did you mean "stage"?'),
        ({"stage": 2}, "stage", "this key belongs at zero_optimization.stage"),
        ({"lr": 1e-3}, "lr", "this key belongs at optimizer.params.lr"),
        (
            {"offload_optimizer": {"device": "cpu"}},
            "offload_optimizer",
            "this key belongs at zero_optimization.offload_optimizer",
        ),
        (
            {"activation_checkpointing": {"partitioned_activations": True}},
            "activation_checkpointing.partitioned_activations",
            'did you mean "partition_activations"?',
        ),
        (
            {"optimizer": {"type": "AdamW", "params": {"learning_rate": 1}}},
            "optimizer.params.learning_rate",
            None,
        ),
        (
            {"optimizer": {"type": "AdamW", "params": {"weight_decy": 1}}},
            "optimizer.params.weight_decy",
            'did you mean "weight_decay"?',
        ),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"total_num_steps": 9}}},
            "scheduler.params.total_num_steps",
            None,
        ),
        ({"wholly_unheard_of": 1}, "wholly_unheard_of", None),
        ({"//": "for the A100s"}, "//", 'write it as a comment, # or //, or begin its name with "_"'),
        ({"fp16": {"comment": "slow"}}, "fp16.comment", 'write it as a comment, # or //, or begin its name with "_"'),
    ],
)
def test_an_unknown_key_and_the_nearest_known_one(raw: dict[str, Any], key: str, hint: str | None) -> None:
    mistake = only(raw)
    assert (mistake.key, mistake.problem) == (key, "unknown key")
    if hint is not None:
        assert mistake.hint == hint


@pytest.mark.parametrize(
    ("raw", "key", "expected"),
    [
        ({"train_batch_size": "8"}, "train_batch_size", "a whole number >= 1"),
        ({"train_batch_size": 0}, "train_batch_size", "a whole number >= 1"),
        ({"train_batch_size": 1.5}, "train_batch_size", "a whole number >= 1"),
        ({"train_batch_size": True}, "train_batch_size", "a whole number >= 1"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage", "a whole number between 0 and 3"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "zero_optimization.reduce_bucket_size", None),
        ({"fp16": {"enabled": "maybe"}}, "fp16.enabled", "true or false"),
        ({"wall_clock_breakdown": "false"}, "wall_clock_breakdown", "true or false"),
        ({"fp16": None}, "fp16", "an object"),
        ({"fp16": True}, "fp16", "an object"),
        ({"optimizer": []}, "optimizer", "an object"),
        ({"optimizer": {"type": "AdamW", "params": {"betas": [0.9]}}}, "optimizer.params.betas", None),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "fast"}}}, "optimizer.params.lr", "a number >= 0"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": math.nan}}}, "optimizer.params.lr", "a number >= 0"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "gpu"}}},
            "zero_optimization.offload_optimizer.device",
            'one of "none", "cpu", "nvme"',
        ),
    ],
)
def test_a_wrong_value_says_what_was_expected(raw: dict[str, Any], key: str, expected: str | None) -> None:
    mistake = only(raw)
    assert mistake.key == key
    assert mistake.expected
    if expected is not None:
        assert mistake.expected == expected


@pytest.mark.parametrize(
    "raw",
    [
        {"zero_optimization": {"stage": "2", "reduce_bucket_size": 5e8, "overlap_comm": None, "sub_group_size": 1e9}},
        {"zero_optimization": {"stage": 2.0, "overlap_comm": "true", "offload_param": None}},
        {"zero_optimization": True, "allgather_size": 5e8},
        {"steps_per_print": math.inf},
        {"steps_per_print": None},
        {"bf16": None, "aio": None},
        {"wall_clock_breakdown": 1},
        {"pipeline": {"stages": "auto"}, "data_types": {"keep_in_fp32_modules": "auto"}},
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "zenflow": {"update_interval": 4}}},
        {"optimizer": {"type": "adamw"}},
        {"optimizer": {"type": "SGD", "params": {"nesterov": True, "momentum": 0.9, "lr": "auto"}}},
        {"communication_data_type": "FP16"},
        {"aio": {"thread_count": 1}},
    ],
)
def test_what_deepspeed_accepts_is_accepted(raw: dict[str, Any]) -> None:
    assert mistakes(raw) == {}


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ("", "warmup_ratio"),
        ("optimizer.params", "warmup_num_step"),
        ("zero_optimization", "train_batch_sizes"),
        ("fp16", "bf16_master_weights_and_grad"),
        ("scheduler.params", "stage3_max_live_parameter"),
    ],
)
def test_a_hint_names_no_likeness_in_another_block(block: str, name: str) -> None:
    raw: dict[str, Any] = {"optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupLR"}}
    place = raw
    for part in filter(None, block.split(".")):
        place = place.setdefault(part, {})
    place[name] = 1
    hint = only(raw).hint or ""
    assert "belongs at" not in hint
    if hint:
        assert re.fullmatch(r'did you mean "(\w+)"\?', hint)[1] in params_at(block, raw["scheduler"]).rows  # type: ignore[index]


def test_a_null_in_the_place_of_a_number_says_nothing() -> None:
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    raw = {**dict.fromkeys(sizes), "vocabulary_size": None, "flops_profiler": {"profile_step": None}}
    assert examine(raw) == Examined(config={"vocabulary_size": None, "flops_profiler": {}})
    # DeepSpeed's models take none, nor do optimizers and schedules.
    assert only({"zero_optimization": {"reduce_bucket_size": None}}).problem == "null is not accepted here"
    assert only({"optimizer": {"type": "AdamW", "params": {"lr": None}}}).problem == "null is not accepted here"
    # It might mean that nothing is clipped, and nothing said is 1.0.
    assert only({"gradient_clipping": None}).problem == "null is not accepted here"
    assert only({"wall_clock_breakdown": None}).problem == "null is not accepted here"


def test_a_key_that_begins_with_an_underscore_is_a_remark() -> None:
    raw = {"_note": "for 8 GPUs", "fp16": {"_why": {"a": 1}}, "optimizer": {"type": "SGD", "params": {"_x": "auto"}}}
    seen = examine(raw)
    assert seen.remarks == ["_note", "fp16._why", "optimizer.params._x"]
    assert (seen.config, seen.mistakes) == ({"fp16": {}, "optimizer": {"type": "SGD", "params": {}}}, [])


def test_an_auto_is_left_out_where_deepspeed_leaves_it_out() -> None:
    raw = {
        "zero_optimization": {"stage": "auto", "sub_group_size": "auto", "zenflow": {"select_strategy": "auto"}},
        "csv_monitor": {"enabled": True, "output_path": "auto"},
    }
    seen = examine(raw)
    assert seen.left_out == ["zero_optimization.sub_group_size", "csv_monitor.output_path"]
    assert seen.config == {
        "zero_optimization": {"stage": "auto", "zenflow": {"select_strategy": "auto"}},
        "csv_monitor": {"enabled": True},
    }
    nvme = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "auto"}}}
    assert only(nvme).key == "zero_optimization.offload_optimizer.nvme_path"


def test_an_auto_that_nothing_fills() -> None:
    mistake = only({"wall_clock_breakdown": "auto"})
    assert mistake.key == "wall_clock_breakdown"
    assert mistake.problem == 'nothing fills this "auto"'
    assert only({"optimizer": {"type": "SGD", "params": {"momentum": "auto"}}}).key == "optimizer.params.momentum"


@pytest.mark.parametrize(
    ("raw", "key", "hint"),
    [
        ({"amp": {"enabled": False}}, "amp", "torch_autocast"),
        ({"elasticity": {}}, "elasticity", "train_batch_size"),
        ({"curriculum_learning": {}}, "curriculum_learning", "phases"),
        ({"zero_optimization": {"mics_shard_size": 8}}, "zero_optimization.mics_shard_size", "remove"),
        ({"optimizer": {"type": "Adam", "params": {"max_grad_norm": 1}}}, "optimizer.params.max_grad_norm", "clipping"),
        ({"compile": {"enabled": True}}, "compile.enabled", "presence"),
        ({"optimizer": {"type": "OneBitAdam", "params": {}}}, "optimizer.type", "AdamW"),
        ({"optimizer": {"type": "AdmaW"}}, "optimizer.type", "AdamW"),
        ({"scheduler": {"type": "warmuplr"}}, "scheduler.type", "WarmupLR"),
    ],
)
def test_what_deepspeed_has_removed_and_what_to_use_instead(raw: dict[str, Any], key: str, hint: str) -> None:
    mistake = only(raw)
    assert mistake.key == key
    assert hint in str(mistake.hint)


def adamw(**params: Any) -> dict[str, Any]:
    return {"optimizer": {"type": "AdamW", "params": params}}


def under_zero(optimizer: str, *, stage: int = 1, **zero: Any) -> dict[str, Any]:
    allowed = {"zero_allow_untested_optimizer": True}
    return {"optimizer": {"type": optimizer}, "zero_optimization": {"stage": stage, **zero}, **allowed}


def offloaded(raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "bf16.enabled"),
        ({"bf16": {"enabled": True}, "bfloat16": {"enabled": True}}, "bfloat16"),
        (
            {"zero_optimization": {"prefetch_bucket_size": 1, "stage3_prefetch_bucket_size": 1}},
            "zero_optimization.prefetch_bucket_size",
        ),
        ({"fp16": {"enabled": True, "loss_scale_window": 0}}, "fp16.loss_scale_window"),
        ({"fp16": {"fp16_master_weights_and_grads": True}}, "fp16.fp16_master_weights_and_grads"),
        ({"data_types": {"param_dtype": "bf16"}}, "data_types.param_dtype"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype"),
        ({"zero_optimization": {"stage": 3, "compute_grad_norm": False}}, "zero_optimization.compute_grad_norm"),
        ({"zero_optimization": {"stage": 1, "legacy_stage1": True}}, "zero_optimization.legacy_stage1"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            "zero_optimization.offload_optimizer.ratio",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.nvme_path",
        ),
        (
            {"zero_optimization": {"stage": 2, "cpu_offload": False, "offload_optimizer": {}}},
            "zero_optimization.cpu_offload",
        ),
        ({"zero_optimization": {"stage": 3}, "gradient_allreduce_op": "sum"}, "gradient_allreduce_op"),
        ({"zero_optimization": {"stage": 1}, "optimizer": {"type": "SGD"}}, "zero_allow_untested_optimizer"),
        ({"optimizer": {"type": "LBFGS"}}, "optimizer.type"),
        ({"optimizer": {"type": "SparseAdam"}}, "optimizer.type"),
        ({"optimizer": {"type": "MuAdamW"}}, "optimizer.type"),
        (under_zero("Lamb"), "optimizer.type"),
        (under_zero("Adafactor"), "optimizer.type"),
        (under_zero("Adagrad"), "optimizer.type"),
        ({"optimizer": {"type": "Adagrad"}, "bf16": {"enabled": True}}, "optimizer.type"),
        ({**under_zero("Muon", stage=3), "gradient_clipping": 0}, "zero_optimization.reduce_scatter"),
        ({**under_zero("Muon"), "gradient_clipping": 1.0}, "gradient_clipping"),
        (under_zero("Muon"), "gradient_clipping"),
        (adamw(fused=True), "optimizer.params.fused"),
        (adamw(torch_adam=True, fused=True, foreach=True), "optimizer.params.foreach"),
        (adamw(torch_adam=True, bias_correction=True), "optimizer.params.bias_correction"),
        (adamw(amsgrad=True), "optimizer.params.amsgrad"),
        (offloaded(adamw(set_grad_none=True)), "optimizer.params.set_grad_none"),
        ({"optimizer": {"params": {}}}, "optimizer.type"),
        ({"scheduler": {"params": {}}}, "scheduler.type"),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {}}}, "scheduler.params.total_num_steps"),
        ({"scheduler": {"type": "LambdaLR", "params": {}}}, "scheduler.type"),
        ({"scheduler": {"type": "ReduceLROnPlateau", "params": {}}}, "scheduler.type"),
        ({"scheduler": {"type": "OneCycleLR", "params": {"max_lr": 1}}}, "scheduler.params.total_steps"),
        ({"scheduler": {"type": "OneCycleLR", "params": {"max_lr": 1, "epochs": 3}}}, "scheduler.params.total_steps"),
        *(
            (
                {
                    "optimizer": {"type": optimizer, "params": {"lr": 1}},
                    "scheduler": {"type": "CyclicLR", "params": {"base_lr": 1, "max_lr": 2}},
                },
                "scheduler.params.cycle_momentum",
            )
            for optimizer in ("Adagrad", "Adadelta", "Adafactor", "ASGD", "Muon", "Rprop")
        ),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size"),
        ({"tensor_parallel": {"autotp_size": 4}}, "tensor_parallel.autotp_size"),
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation"),
        ({"hybrid_engine": {"enabled": True}}, "hybrid_engine.enabled"),
    ],
)
def test_keys_that_contradict_each_other(raw: dict[str, Any], key: str) -> None:
    assert only(raw).key == key


@pytest.mark.parametrize(
    "raw",
    [
        adamw(torch_adam=True, fused=True),
        adamw(bias_correction=False, set_grad_none=True),
        offloaded(adamw(amsgrad=True, fp32_optimizer_states=False)),
        {"zero_optimization": {"stage": 1}, "optimizer": {"type": "SGD"}, "zero_allow_untested_optimizer": True},
        {"fp16": {"enabled": True, "loss_scale": 128, "loss_scale_window": 0}},
        {"optimizer": {"type": "Adafactor"}, "bf16": {"enabled": True}},
        {"optimizer": {"type": "Lamb"}, "fp16": {"enabled": True}},
        {"optimizer": {"type": "Adagrad"}},
        {"optimizer": {"type": "Muon"}, "gradient_clipping": 1.0},
        offloaded({"optimizer": {"type": "Adagrad"}, "bf16": {"enabled": True}}),
        {**under_zero("Muon", stage=3, reduce_scatter=False), "gradient_clipping": 0},
        {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": {"stage": 1}},
    ],
)
def test_keys_that_go_together(raw: dict[str, Any]) -> None:
    assert mistakes(raw) == {}


def test_one_error_lists_all_mistakes_the_first_in_detail() -> None:
    raw = {
        "wall_clock_breakdown": None,
        "zero_optimization": {"stge": 2},
        "amp": {},
        "optimizer": {"type": "AdamW", "params": {"lr": "fast"}},
    }
    with pytest.raises(DeepSpeedFileError) as caught:
        check(raw, source=SOURCE)
    assert str(caught.value) == "\n".join(
        [
            "null is not accepted here (the first of 4 mistakes)",
            "  where:    ds.json: wall_clock_breakdown",
            "  found:    null",
            "  expected: true or false",
            '  also:     zero_optimization.stge: unknown key; did you mean "stage"?',
            "            amp: DeepSpeed 0.19.8 has removed this: NVIDIA Apex AMP; "
            'use "fp16", "bf16" or "torch_autocast"',
            '            optimizer.params.lr: not a value this key can have; found "fast"; expected a number >= 0',
        ]
    )
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("kind", "params", "key"),
    [
        ("WarmupLR", {"last_batch_iteration": 5}, "last_batch_iteration"),
        ("StepLR", {"step_size": 1, "last_epoch": 5}, "last_epoch"),
        ("StepLR", {"step_size": 1, "gamma": -1}, "gamma"),
        ("ConstantLR", {"factor": 0}, "factor"),
        ("LinearLR", {"start_factor": 0}, "start_factor"),
        ("LinearLR", {"end_factor": 2}, "end_factor"),
        ("OneCycleLR", {"max_lr": 1, "total_steps": 9, "pct_start": 1}, "pct_start"),
    ],
)
def test_what_a_schedule_breaks_at_is_no_value_of_its_keys(kind: str, params: dict[str, Any], key: str) -> None:
    assert only({"scheduler": {"type": kind, "params": params}}).key == f"scheduler.params.{key}"
