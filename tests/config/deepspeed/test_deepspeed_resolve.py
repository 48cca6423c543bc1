from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from web_configs import FOUND_ON_THE_WEB

from dist_trainer.config.deepspeed.resolve import Facts, filled, resolve, warnings
from dist_trainer.errors import UserError

FACTS = Facts(world_size=2, hidden_size=768, total_steps=5000, warmup_steps=50)
ONE_RANK = Facts(world_size=1, hidden_size=768, total_steps=5000)


@pytest.mark.parametrize("name", FOUND_ON_THE_WEB)
def test_a_file_from_the_web_works_unchanged(name: str) -> None:
    raw = copy.deepcopy(FOUND_ON_THE_WEB[name])
    resolved = resolve(raw, ONE_RANK, source=name)
    assert raw == FOUND_ON_THE_WEB[name]
    assert '"auto"' not in json.dumps(resolved, allow_nan=False)
    accepted = DeepSpeedConfig(copy.deepcopy(resolved))
    assert accepted.train_batch_size == resolved["train_batch_size"]
    assert resolve(resolved, ONE_RANK, source=name) == resolved


def test_the_oldest_spelling_is_written_in_the_new_one() -> None:
    zero = resolve(FOUND_ON_THE_WEB["oldest"], ONE_RANK, source="old")["zero_optimization"]
    assert zero == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "stage3_prefetch_bucket_size": 10_000_000,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    old = {"train_batch_size": 1, "zero_optimization": True, "allgather_size": 2e8, "bfloat16": {"enabled": True}}
    resolved = resolve(old, ONE_RANK, source="old")
    assert resolved["zero_optimization"] == {"stage": 1, "allgather_bucket_size": 200_000_000}
    assert resolved["bf16"] == {"enabled": True}
    assert set(resolved) & {"bfloat16", "allgather_size"} == set()


def test_every_auto_becomes_what_the_hugging_face_integration_makes_of_it() -> None:
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    class HuggingFace(HfTrainerDeepSpeedConfig):
        """The integration's filling of "auto", over the few methods that it takes from accelerate."""

        def __init__(self, config: dict[str, Any]) -> None:
            self.config, self._dtype, self.mismatches = config, None, []

        def find_config_node(self, path: str) -> tuple[Any, str]:
            *nodes, name = path.split(".")
            node: Any = self.config
            for part in nodes:
                node = node.get(part) if node is not None else None
            return node, name

        def get_value(self, path: str) -> Any:
            node, name = self.find_config_node(path)
            return None if node is None else node.get(name)

        def is_true(self, path: str) -> bool:
            return bool(self.get_value(path))

        def is_zero3(self) -> bool:
            return bool(self.get_value("zero_optimization.stage") == 3)

    for name in ("hf_zero2", "hf_zero3"):
        theirs = HuggingFace(copy.deepcopy(FOUND_ON_THE_WEB[name]))
        arguments = SimpleNamespace(
            world_size=2,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            max_grad_norm=1.0,
            learning_rate=3e-4,
            adam_beta1=0.9,
            adam_beta2=0.95,
            adam_epsilon=1e-8,
            weight_decay=0.1,
            save_on_each_node=False,
            fp16=False,
            fp16_full_eval=False,
            bf16=True,
            bf16_full_eval=False,
            get_warmup_steps=lambda total: 50,
        )
        theirs.trainer_config_process(arguments)
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=768))
        theirs.trainer_config_finalize(arguments, model, 5000)
        assert resolve(FOUND_ON_THE_WEB[name], FACTS, source=name) == theirs.config


def schedule(kind: str, **params: Any) -> dict[str, Any]:
    raw = {
        "train_batch_size": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 6e-4}},
        "scheduler": {"type": kind, "params": params},
    }
    resolved = resolve(raw, FACTS, source="ds.json")
    return dict(resolved["scheduler"]["params"])


def test_a_schedules_autos_follow_the_phases_and_the_optimizer() -> None:
    assert schedule("WarmupCosineLR", total_num_steps="auto", warmup_num_steps="auto") == {
        "total_num_steps": 5000,
        "warmup_num_steps": 50,
    }
    assert schedule(
        "OneCycle",
        cycle_min_lr="auto",
        cycle_max_lr="auto",
        cycle_first_step_size="auto",
        cycle_second_step_size="auto",
    ) == {
        "cycle_min_lr": 6e-4 / 25,
        "cycle_max_lr": 6e-4,
        "cycle_first_step_size": 2500,
        "cycle_second_step_size": 2500,
    }
    assert schedule("WarmupLR", warmup_max_lr="auto", warmup_num_steps=100.0) == {
        "warmup_max_lr": 6e-4,
        "warmup_num_steps": 100,
    }
    assert schedule("CosineAnnealingLR", T_max="auto") == {"T_max": 5000}
    assert schedule("OneCycleLR", max_lr="auto", total_steps="auto") == {"max_lr": 6e-4, "total_steps": 5000}


def test_the_warm_up_is_a_hundredth_of_all_steps_and_never_none() -> None:
    assert Facts(world_size=1, hidden_size=8, total_steps=1000).warmup_num_steps == 10
    assert Facts(world_size=1, hidden_size=8, total_steps=10).warmup_num_steps == 1
    assert Facts(world_size=1, hidden_size=8, total_steps=10, warmup_steps=0).warmup_num_steps == 1


@pytest.mark.parametrize(
    ("raw", "supports_bf16", "fp16", "bf16"),
    [
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}, True, False, True),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}, False, False, False),
        ({"bf16": {"enabled": "auto"}, "fp16": {"enabled": True}}, True, True, False),
        ({"bf16": {"enabled": "auto"}, "torch_autocast": {"enabled": True}}, True, None, False),
    ],
)
def test_precision_autos(raw: dict[str, Any], supports_bf16: bool, fp16: bool | None, bf16: bool) -> None:
    facts = Facts(world_size=1, hidden_size=8, total_steps=10, supports_bf16=supports_bf16)
    resolved = resolve({"train_batch_size": 1, **raw}, facts, source="ds.json")
    assert resolved.get("fp16", {}).get("enabled") is fp16
    assert resolved["bf16"]["enabled"] is bf16


def test_a_contradiction_that_only_the_filled_autos_show() -> None:
    raw = {"train_batch_size": 1, "bf16": {"enabled": "auto"}, "data_types": {"param_dtype": "fp16"}}
    with pytest.raises(UserError) as caught:
        resolve(raw, ONE_RANK, source="ds.json")
    assert caught.value.key == "data_types.param_dtype"


def test_without_an_optimizer_adamw_runs_and_a_scheduler_gets_the_params_deepspeed_unpacks() -> None:
    resolved = resolve({"train_batch_size": 1, "scheduler": {"type": "WarmupLR"}}, ONE_RANK, source="ds.json")
    assert resolved["optimizer"] == {
        "type": "AdamW",
        "params": {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
    }
    assert resolved["scheduler"] == {"type": "WarmupLR", "params": {}}


def test_values_come_out_plain() -> None:
    raw = {
        "train_batch_size": 4.0,
        "steps_per_print": math.inf,
        "bf16": None,
        "zero_optimization": {"stage": "2", "overlap_comm": "no", "reduce_bucket_size": 5e8, "offload_param": None},
    }
    resolved = resolve(raw, ONE_RANK, source="ds.json")
    assert resolved["steps_per_print"] is None
    assert "bf16" not in resolved
    assert resolved["zero_optimization"] == {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 500_000_000}
    assert type(resolved["zero_optimization"]["reduce_bucket_size"]) is int


def notices(raw: dict[str, Any]) -> list[str]:
    full = {"train_batch_size": 2, **raw}
    return warnings(full, resolve(full, FACTS, source="ds.json"), FACTS)


def test_a_schedule_that_does_not_end_with_the_run_is_noticed() -> None:
    cosine = {"type": "WarmupCosineLR", "params": {"total_num_steps": 10_000, "warmup_min_ratio": 0.1}}
    (notice,) = notices({"scheduler": cosine})
    assert "ends at step 10000 and the run at step 5000" in notice
    assert 'say "auto"' in notice
    cosine["params"]["total_num_steps"] = "auto"
    assert notices({"scheduler": cosine}) == []
    (notice,) = notices(
        {
            "scheduler": {
                "type": "OneCycle",
                "params": {"cycle_min_lr": 0.1, "cycle_max_lr": 1, "cycle_first_step_size": 9},
            }
        }
    )
    assert "ends at step 18" in notice


def test_what_does_nothing_here_is_noticed_by_name() -> None:
    raw = {
        "activation_checkpointing": {
            "partition_activations": True,
            "contiguous_memory_optimization": True,
            "profile": True,
            "number_checkpoints": 4,
        },
        "aio": {"thread_count": 4},
        "autotuning": {"enabled": False},
        "data_efficiency": {"enabled": True},
        "dataloader_drop_last": False,
        "zero_optimization": {"stage": 0, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}},
    }
    assert [notice.partition(" does nothing")[0] for notice in notices(raw)] == [
        "activation_checkpointing.partition_activations",
        "activation_checkpointing.contiguous_memory_optimization",
        "activation_checkpointing.profile",
        "aio.thread_count",
        "data_efficiency",
        "zero_optimization.offload_param, offload_optimizer do nothing: zero_optimization.stage is 0",
    ]


def test_a_block_that_switches_checkpointing_on_with_nothing_in_it_switched_on_says_so() -> None:
    for content in ({"partition_activations": False}, {"number_checkpoints": None, "_note": 1}):
        said = [notice for notice in notices({"activation_checkpointing": content}) if "remark" not in notice]
        assert [notice.partition(":")[0] for notice in said] == ["activation_checkpointing"]
    assert notices({"activation_checkpointing": {}}) == []
    assert notices({"activation_checkpointing": {"cpu_checkpointing": True}}) == []


def test_a_remark_is_noticed() -> None:
    assert notices({"_note": "x"}) == ["_note is left out: a key that begins with _ is a remark"]


def test_what_stands_for_each_auto_is_listed_with_its_reason() -> None:
    raw = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 3,
        "gradient_clipping": 0.5,
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "eps": 1e-6}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 2e-3, "warmup_num_steps": "auto"}},
        "bf16": {"enabled": "auto"},
        "data_types": {"keep_in_fp32_modules": "auto"},
        "zero_optimization": {"stage": 3, "prefetch_bucket_size": "auto", "offload_param": {"device": "auto"}},
    }
    assert list(map(str, filled(raw, resolve(raw, FACTS, source="ds.json")))) == [
        "train_batch_size = 6 (micro batch x accumulation x world size)",
        "optimizer.params.lr = 0.002 (the rate that the scheduler says, else 3e-4)",
        "scheduler.params.warmup_num_steps = 50 (a hundredth of all steps, at least 1)",
        "bf16.enabled = true (on where the hardware has bf16 and neither fp16 nor torch_autocast is on)",
        "zero_optimization.stage3_prefetch_bucket_size = 530841 (0.9 x hidden size squared)",
        'zero_optimization.offload_param.device = "none" (no offload unless asked for)',
    ]


@pytest.mark.parametrize("name", FOUND_ON_THE_WEB)
def test_every_auto_of_a_file_from_the_web_is_in_the_list(name: str) -> None:
    raw = FOUND_ON_THE_WEB[name]
    listed = filled(raw, resolve(raw, ONE_RANK, source=name))
    from_the_file = [one for one in listed if "no optimizer" not in one.why]
    without = 4 if "optimizer" not in raw else 0
    assert len(from_the_file) - without == json.dumps(raw).count('"auto"')
    assert all(one.why and one.value != "auto" for one in listed)


def test_an_auto_that_is_left_out_is_in_the_list() -> None:
    raw = {"train_batch_size": 1, "optimizer": {"type": "AdamW"}, "zero_optimization": {"overlap_comm": "auto"}}
    resolved = resolve(raw, ONE_RANK, source="ds.json")
    assert resolved["zero_optimization"] == {}
    assert list(map(str, filled(raw, resolved))) == [
        'zero_optimization.overlap_comm left out (DeepSpeed takes its default for "auto" here)'
    ]


def test_an_optimizer_that_nobody_named_is_in_the_list() -> None:
    raw = {"train_batch_size": 1}
    assert list(map(str, filled(raw, resolve(raw, ONE_RANK, source="ds.json")))) == [
        'optimizer.type = "AdamW" (the file names no optimizer, and DeepSpeed needs one)',
        "optimizer.params.lr = 0.0003 (the rate that the scheduler says, else 3e-4)",
        "optimizer.params.betas = [0.9, 0.95] (the default)",
        "optimizer.params.eps = 1e-08 (the default)",
        "optimizer.params.weight_decay = 0.1 (the default)",
    ]


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ({"type": "WarmupLR"}, "the first 2 updates have a learning rate of 0, and do nothing: "),
        ({"type": "WarmupLR", "params": {"warmup_min_lr": [0, 0]}}, "the first 2 updates have"),
        ({"type": "WarmupLR", "params": {"warmup_min_lr": 1e-6}}, None),
        ({"type": "WarmupDecayLR", "params": {"total_num_steps": 5000, "warmup_min_lr": 0}}, "the first 2 updates"),
        ({"type": "WarmupCosineLR", "params": {"total_num_steps": 5000}}, "the first 2 updates have"),
        (
            {
                "type": "OneCycle",
                "params": {"cycle_min_lr": 0, "cycle_max_lr": 3e-4, "cycle_first_step_size": 2500},
            },
            "the first update has",
        ),
        ({"type": "StepLR", "params": {"step_size": 5}}, None),
    ],
)
def test_updates_at_a_rate_of_0_are_noticed(scheduler: dict[str, Any], said: str | None) -> None:
    found = [notice for notice in notices({"scheduler": scheduler}) if "learning rate of 0" in notice]
    assert [notice.startswith(said or "") for notice in found] == ([True] if said else [])


SHIPPED = sorted((Path(__file__).parents[3] / "ds_configs").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_resolves_and_deepspeed_accepts_it(path: Path) -> None:
    resolved = resolve(json.loads(path.read_text()), ONE_RANK, source=path.name)
    DeepSpeedConfig(copy.deepcopy(resolved))


def test_importing_needs_neither_torch_nor_deepspeed_nor_pydantic() -> None:
    code = (
        "import sys; from dist_trainer.config import adapt, deepspeed, optimisations; "
        "print(sorted({'torch', 'deepspeed', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
