from __future__ import annotations

import copy
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from dist_trainer.config.deepspeed.resolve import Facts, check, resolve
from dist_trainer.config.optimisations import apply, describe, set_path
from dist_trainer.config.request import Switches
from dist_trainer.errors import UserError

FACTS = Facts(world_size=1, hidden_size=64, total_steps=100)

FILE: dict[str, Any] = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 8,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "bias_correction": True}},
    "fp16": {"enabled": True, "initial_scale_power": 12},
    "torch_autocast": {"enabled": True, "dtype": "bf16"},
    "activation_checkpointing": {"cpu_checkpointing": True},
    "compile": {"free_activation": False},
}
OFFLOAD = {"stage": 2, "offload_optimizer": {"device": "cpu"}}


def switched(raw: dict[str, Any], **switches: Any) -> dict[str, Any]:
    """Applies, and holds the result against the real DeepSpeed and the input against itself."""
    before = copy.deepcopy(raw)
    result = apply(raw, Switches(**switches))
    assert raw == before
    check(result, source="ds.json")
    DeepSpeedConfig(resolve(result, FACTS, source="ds.json"))
    return result


def test_nothing_asked_changes_nothing() -> None:
    result = switched(FILE)
    assert result == FILE
    assert result["optimizer"]["params"] is not FILE["optimizer"]["params"]


def test_a_micro_batch_and_an_accumulation_replace_the_total() -> None:
    result = switched(FILE, micro_batch=2, accumulation=16)
    assert "train_batch_size" not in result
    assert (result["train_micro_batch_size_per_gpu"], result["gradient_accumulation_steps"]) == (2, 16)
    assert "train_batch_size" not in switched(FILE, accumulation=2)
    assert "train_batch_size" not in switched(FILE, micro_batch=2)


def test_an_accumulation_over_a_total_alone_keeps_the_total() -> None:
    result = switched({"train_batch_size": 32}, accumulation=4)
    assert result == {"train_batch_size": 32, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize("switches", [Switches(micro_batch=0), Switches(accumulation=-1)])
def test_a_size_below_one_is_the_switchs_fault(switches: Switches) -> None:
    with pytest.raises(UserError) as caught:
        apply(FILE, switches)
    assert str(caught.value.where).startswith("--")


def test_precision() -> None:
    assert set(switched(FILE, precision="fp32")) & {"fp16", "bf16", "torch_autocast"} == set()
    half = switched(FILE, precision="fp16")
    assert half["fp16"] == {"enabled": True, "initial_scale_power": 12}
    assert "torch_autocast" not in half
    brain = switched(FILE, precision="bf16")
    assert brain["bf16"] == {"enabled": True}
    assert "fp16" not in brain
    off = {"train_batch_size": 1, "bf16": {"enabled": False, "check_grad_overflow": False}}
    assert switched(off, precision="bf16")["bf16"] == {"enabled": True, "check_grad_overflow": False}


def test_precision_over_the_old_spelling_and_data_types() -> None:
    old = {"train_batch_size": 1, "bfloat16": {"enabled": False, "immediate_grad_update": True}}
    assert switched(old, precision="bf16")["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert "bfloat16" not in switched(old, precision="fp16")
    typed = {
        "train_batch_size": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
        "data_types": {"param_dtype": "bf16", "grad_accum_dtype": "bf16"},
    }
    assert switched(typed, precision="fp16")["data_types"] == {}
    typed["data_types"]["grad_accum_dtype"] = "fp32"
    assert switched(typed, precision="fp16")["data_types"] == {"grad_accum_dtype": "fp32"}


def test_checkpointing_and_compile_are_blocks_that_are_there_or_not() -> None:
    bare = {"train_batch_size": 1}
    assert switched(bare, checkpointing=True)["activation_checkpointing"] == {}
    assert switched(bare, compile=True)["compile"] == {"deepcompile": False}
    assert switched(FILE, checkpointing=True, compile=True) == FILE
    assert set(FILE) - set(switched(FILE, checkpointing=False, compile=False)) == {
        "activation_checkpointing",
        "compile",
    }
    assert switched(bare, checkpointing=False, compile=False) == bare


def test_fused_and_unfused_are_torchs_adamw() -> None:
    assert switched(FILE, fused=True)["optimizer"]["params"] == {"lr": 1e-3, "torch_adam": True, "fused": True}
    assert switched(FILE, fused=False)["optimizer"]["params"] == {"lr": 1e-3, "torch_adam": True, "fused": False}
    foreach = {"train_batch_size": 1, "optimizer": {"type": "Adam", "params": {"torch_adam": True, "foreach": True}}}
    assert switched(foreach, fused=True)["optimizer"]["params"] == {"torch_adam": True, "fused": True}


def test_fused_with_offload_is_deepspeeds_cpu_adam() -> None:
    torch_adam = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True, "fused": False}}
    raw = {"train_batch_size": 1, "optimizer": torch_adam, "zero_optimization": OFFLOAD}
    assert switched(raw, fused=True)["optimizer"]["params"] == {"lr": 1e-3}
    assert switched(raw, fused=False)["optimizer"] == torch_adam


def test_fused_without_an_optimizer_block_makes_one() -> None:
    assert switched({"train_batch_size": 1}, fused=True)["optimizer"]["params"]["fused"] is True


def test_fused_is_for_adam() -> None:
    with pytest.raises(UserError) as caught:
        apply({"optimizer": {"type": "SGD"}}, Switches(fused=True))
    assert (caught.value.where, caught.value.key) == ("--fused", "optimizer.type")


def rates(raw: dict[str, Any], rate: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the optimizer and the scheduler say with the switch in force."""
    result = switched({"train_batch_size": 1, **raw}, learning_rate=rate)
    return result["optimizer"]["params"], result.get("scheduler", {}).get("params", {})


def with_rates(kind: str, schedule: dict[str, Any], **given: Any) -> dict[str, Any]:
    return {
        "optimizer": {"type": "AdamW", "params": given},
        "scheduler": {"type": kind, "params": {"total_num_steps": 9, **schedule} if "Cycle" not in kind else schedule},
    }


def test_the_learning_rate_is_set_wherever_the_file_says_it() -> None:
    assert rates({}, 2e-3)[0]["lr"] == 2e-3
    assert rates({"optimizer": {"type": "SGD"}}, 2e-3)[0] == {"lr": 2e-3}
    warmup = with_rates("WarmupDecayLR", {"warmup_min_lr": 6e-6, "warmup_max_lr": 6e-4}, lr=6e-4)
    assert rates(warmup, 3e-4) == (
        {"lr": 3e-4},
        {"total_num_steps": 9, "warmup_min_lr": 3e-6, "warmup_max_lr": 3e-4},
    )
    cycle = with_rates("OneCycle", {"cycle_min_lr": 6e-5, "cycle_max_lr": 6e-4})
    assert rates(cycle, 3e-4) == ({"lr": 3e-4}, {"cycle_min_lr": 3e-5, "cycle_max_lr": 3e-4})
    groups = with_rates("OneCycle", {"cycle_min_lr": [1e-5, 2e-5], "cycle_max_lr": [1e-3, 2e-3]}, lr=7.0)
    assert rates(groups, 4e-3) == ({"lr": 4e-3}, {"cycle_min_lr": [2e-5, 4e-5], "cycle_max_lr": [2e-3, 4e-3]})


def test_a_rate_that_follows_the_optimizers_is_left_to_follow() -> None:
    follows = with_rates("WarmupDecayLR", {"warmup_max_lr": "auto", "warmup_min_lr": "auto"}, lr="auto")
    assert rates(follows, 3e-4)[1] == {"total_num_steps": 9, "warmup_max_lr": "auto", "warmup_min_lr": "auto"}
    cosine = with_rates("WarmupCosineLR", {"warmup_min_ratio": 0.01}, lr=6e-4)
    assert rates(cosine, 3e-4) == ({"lr": 3e-4}, {"total_num_steps": 9, "warmup_min_ratio": 0.01})


def test_a_peak_that_deepspeed_takes_from_nowhere_is_set_too() -> None:
    assert rates(with_rates("WarmupDecayLR", {}, lr=6e-4), 3e-4)[1] == {"total_num_steps": 9, "warmup_max_lr": 3e-4}
    test = {"scheduler": {"type": "LRRangeTest"}}
    assert rates(test, 3e-4)[1] == {"lr_range_test_min_lr": 3e-4}


def test_muons_rates_keep_their_proportion() -> None:
    muon = {"optimizer": {"type": "Muon", "params": {"muon_lr": 0.02, "adam_lr": 3e-4}}}
    assert rates(muon, 0.01)[0] == {"lr": 0.01, "muon_lr": 0.01, "adam_lr": 1.5e-4}
    muon["optimizer"]["params"]["lr"] = 1e-3
    assert rates(muon, 2e-3)[0] == {"lr": 2e-3, "muon_lr": 0.04, "adam_lr": 6e-4}


def test_a_broken_file_is_left_for_check_to_complain_of() -> None:
    adam = {"type": "Adam", "params": {}}
    for broken in (
        {"optimizer": 3},
        {"optimizer": {"type": "Adam", "params": 3}},
        {"zero_optimization": 3},
        {"optimizer": adam, "scheduler": 3},
        {"optimizer": adam, "scheduler": {"type": "WarmupLR", "params": 3}},
        {"optimizer": adam, "scheduler": {"type": "WarmupDecayLR", "params": None}},
    ):
        result = apply(broken, Switches(fused=True, micro_batch=1, precision="bf16", compile=True, learning_rate=1e-3))
        with pytest.raises(UserError):
            check(result, source="ds.json")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e7", 5e7),
        ("2", 2),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ('"2"', "2"),
        ("cpu", "cpu"),
        ("/a/b=c", "/a/b=c"),
        ("", ""),
    ],
)
def test_a_set_value_is_json_or_else_text(text: str, value: object) -> None:
    assert set_path({"a": {"b": 0, "c": 1}}, "a.b", text) == {"a": {"b": value, "c": 1}}


def test_set_makes_the_objects_on_the_way_and_leaves_its_input() -> None:
    config: dict[str, Any] = {"zero_optimization": {"stage": 2}}
    result = set_path(config, "zero_optimization.offload_optimizer.device", "cpu")
    assert result == {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    assert config == {"zero_optimization": {"stage": 2}}


def test_set_through_a_value_and_a_path_that_is_none() -> None:
    with pytest.raises(UserError) as caught:
        set_path({"a": {"b": 1}}, "a.b.c", "1")
    assert caught.value.key == "a.b"
    for path in ("", "a..b", ".a", "a."):
        with pytest.raises(UserError, match="dotted path"):
            set_path({}, path, "1")
    with pytest.raises(UserError, match="said twice"):
        set_path({}, "a", '{"x": 1, "x": 2}')


def test_set_reaches_into_a_list_by_the_items_number() -> None:
    phases = {"phases": [{"steps": 1}, {"steps": 2}], "betas": [0.9, 0.95]}
    assert set_path(phases, "phases.1.steps", "5")["phases"] == [{"steps": 1}, {"steps": 5}]
    assert set_path(phases, "betas.0", "0.8")["betas"] == [0.8, 0.95]
    for path in ("phases.2.steps", "phases.first.steps", "betas.2"):
        with pytest.raises(UserError, match="no such item"):
            set_path(phases, path, "5")


def described(raw: dict[str, Any]) -> dict[str, str]:
    return describe(resolve({"train_batch_size": 4, **raw}, FACTS, source="ds.json"))


def test_describe_names_all_eight() -> None:
    assert described({"optimizer": {"type": "AdamW", "params": {"torch_adam": True, "lr": 6e-4}}}) == {
        "accumulation": "1",
        "precision": "fp32",
        "checkpointing": "off",
        "fused optimizer": "no (torch's AdamW)",
        "compile": "off",
        "learning rate": "0.0006",
        "scheduler": "none (constant rate)",
        "zero stage": "0",
        "offload": "none",
    }
    everything = {
        "gradient_accumulation_steps": 2,
        "fp16": {"enabled": True},
        "activation_checkpointing": {},
        "compile": {},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 2e-3}},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
    }
    assert described(everything) == {
        "accumulation": "2",
        "precision": "fp16, dynamic loss scale",
        "checkpointing": "on",
        "fused optimizer": "yes (DeepSpeed's CPUAdam)",
        "compile": "torch.compile",
        "learning rate": "0.002",
        "scheduler": "WarmupLR",
        "zero stage": "3",
        "offload": "optimizer to cpu and parameters to cpu",
    }


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ({"type": "Adam", "params": {}}, "yes (DeepSpeed's FusedAdam)"),
        ({"type": "Adam", "params": {"torch_adam": True, "adam_w_mode": False, "fused": True}}, "yes (torch's Adam)"),
        ({"type": "Lamb", "params": {}}, "yes (DeepSpeed's FusedLamb)"),
        ({"type": "SGD", "params": {"lr": 1}}, "no (SGD)"),
        ({"type": "SGD", "params": {"lr": 1, "fused": True}}, "yes (torch's SGD)"),
    ],
)
def test_describe_says_whose_optimizer_it_is(optimizer: dict[str, Any], said: str) -> None:
    assert described({"optimizer": optimizer})["fused optimizer"] == said


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("optimizer.params.lr", "9" * 5000),
        ("optimizer.params.lr", "1e999"),
        ("optimizer.params.betas", "[" * 300 + "]" * 300),
        ("optimizer.params.betas", "[" * 200_000),
        ("a" + ".a" * 5000, "1"),
        ("phases.²", "1"),
        ("phases." + "9" * 5000, "1"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_setting_that_no_value_comes_of_is_refused(path: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        set_path({"phases": [1]}, path, text)
    assert str(caught.value.where).startswith("--set")
