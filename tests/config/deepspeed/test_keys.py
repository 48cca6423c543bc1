"""The table against the real DeepSpeed: it lists all that DeepSpeed knows, and nothing else."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.compile.config import CompileConfig
from deepspeed.inference.config import WeightQuantConfig
from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
from deepspeed.runtime import config as real
from deepspeed.runtime import lr_schedules
from deepspeed.runtime.data_pipeline import constants as data_constants
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.tensor_parallel.config import TPConfig, TPTrainingConfig
from deepspeed.runtime.zenflow.zenflow_config import ZenFlowConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

from dist_trainer.config.deepspeed import params, rules
from dist_trainer.config.deepspeed.check import examine
from dist_trainer.config.deepspeed.keys import MODELLED, Facts, Key, children, table
from dist_trainer.config.deepspeed.types import Type

PYDANTIC = {
    "fp16": DeepSpeedFP16Config,
    "bf16": DeepSpeedBF16Config,
    "bfloat16": DeepSpeedBF16Config,
    "compile": CompileConfig,
    "comms_logger": CommsLoggerConfig,
    "tensorboard": TensorBoardConfig,
    "wandb": WandbConfig,
    "csv_monitor": CSVConfig,
    "comet": CometConfig,
    "timers.throughput": DeepSpeedThroughputTimerConfig,
    "tensor_parallel": TPTrainingConfig,
    "tensor_parallel.tp": TPConfig,
    "hybrid_engine": real.HybridEngineConfig,
    "weight_quantization": WeightQuantConfig,
    "zero_optimization": DeepSpeedZeroConfig,
    "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
    "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    "zero_optimization.zenflow": ZenFlowConfig,
    "zero_optimization.leaf_module": DeepSpeedZeroLeafModuleConfig,
}
PARAMS = {"optimizer.params", "scheduler.params"}
# Read outside DeepSpeedConfig: by deepspeed.initialize and compile/custom_ops/sp_dp_registry.py.
READ_ELSEWHERE = {"": {"sequence_parallel_size", "data_parallel_size"}}


def known(path: str) -> dict[str, Key]:
    """The rows of a block that stand for something DeepSpeed still reads."""
    retired = "no longer reads"
    return {
        name: key
        for name, key in children()[path].items()
        if key.refused is None and (key.idle is None or retired not in key.idle)
    }


class Recorder(dict[str, Any]):
    """A dict that remembers which keys were asked of it, also through its copies."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        self.asked.add(key)
        return super().pop(key, *default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def keys(self) -> Any:
        return RecordedKeys(self)

    def __copy__(self) -> Recorder:
        twin = Recorder(self)
        twin.asked = self.asked
        return twin


class RecordedKeys:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __contains__(self, key: object) -> bool:
        return key in self.recorder

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self.recorder)


def asked_of_plain_blocks() -> dict[str, set[str]]:
    """Which keys the real DeepSpeedConfig asks of each block that it reads by hand."""
    content: dict[str, Any] = {
        "optimizer": {"type": "AdamW", "params": {}},
        "scheduler": {"type": "WarmupLR", "params": {}},
        "torch_autocast": {"enabled": True, "dtype": "bf16", "lower_precision_safe_modules": []},
        "activation_checkpointing": {},
        "flops_profiler": {},
        "aio": {},
        "data_types": {},
        "checkpoint": {"parallel_write": Recorder({}), "writer": Recorder({})},
        "autotuning": {"model_info": Recorder({})},
        "timers": {"throughput": {}},
        "expert_parallel": {"enabled": False},
        "data_efficiency": {
            "enabled": True,
            "data_sampling": Recorder(
                {
                    "enabled": True,
                    "curriculum_learning": Recorder({"enabled": True, "curriculum_metrics": {}}),
                    "dynamic_batching": Recorder({"enabled": True, "max_batch_size": 8, "max_tokens": 8}),
                }
            ),
            "data_routing": Recorder({"enabled": True, "random_ltd": Recorder({"enabled": True})}),
        },
    }
    config = Recorder({"train_batch_size": 1, **{name: Recorder(block) for name, block in content.items()}})
    real.DeepSpeedConfig(config)
    legacy = Recorder({"train_batch_size": 1, "zero_optimization": True})
    real.DeepSpeedConfig(legacy)

    asked: dict[str, set[str]] = {"": config.asked | legacy.asked}

    def collect(block: Recorder, path: str) -> None:
        for name, inner in block.items():
            if isinstance(inner, Recorder):
                asked[path + name] = inner.asked
                collect(inner, f"{path}{name}.")

    collect(config, "")
    return asked


@pytest.mark.parametrize("path", PYDANTIC)
def test_a_pydantic_block_has_the_models_fields(path: str) -> None:
    fields = PYDANTIC[path].model_fields
    names = set(fields) | {field.alias for field in fields.values() if field.alias}
    assert names <= set(children()[path])
    assert set(known(path)) <= names


@pytest.mark.parametrize("path", PYDANTIC)
def test_null_and_auto_in_a_pydantic_block_are_taken_where_deepspeed_takes_them(path: str) -> None:
    assert set(PYDANTIC) == MODELLED
    for name, key in known(path).items():
        for value in (None, "auto"):
            config = {"train_batch_size": 1, **nested(f"{path}.{name}", value)}
            seen = examine(config)
            if key.auto is not None or seen.config.get("zero_optimization", {}).get("leaf_module"):
                continue
            try:
                real.DeepSpeedConfig(copy.deepcopy(config))
            except (ValueError, TypeError):
                assert seen.mistakes, (name, value)
            else:
                assert not seen.mistakes, (name, value)


def test_every_block_that_deepspeed_reads_by_hand_has_the_keys_it_asks_for() -> None:
    asked = asked_of_plain_blocks()
    constants = {value for value in vars(data_constants).values() if isinstance(value, str)}
    assert set(children()) == set(asked) | set(PYDANTIC) | {"pipeline"}
    for path, names in asked.items():
        here = set(children()[path])
        assert names <= here, path
        free = constants if path.startswith("data_efficiency") else set()
        assert set(known(path)) <= names | READ_ELSEWHERE.get(path, set()) | free, path


def test_the_pipeline_block_has_deepspeeds_defaults_and_the_one_key_its_engine_adds() -> None:
    assert set(known("pipeline")) == {*real.get_pipeline_config({}), "use_reentrant"}


def test_what_is_refused_is_what_deepspeed_has_removed() -> None:
    removed = {path for path, key in table().items() if key.refused and "has removed" in key.refused}
    assert removed == set(real._REMOVED_TOP_LEVEL_CONFIG_KEYS) | {
        f"zero_optimization.{name}" for name in real._REMOVED_ZERO_CONFIG_KEYS
    }


NEEDS_MORE = {
    "aio.use_gds": False,  # asserts CUDA
    "bf16.bf16_optimizer_states": False,
    "bfloat16.bf16_optimizer_states": False,
    "expert_parallel.enabled": False,
    "zero_optimization.stage": 3,
    "tensor_parallel.tp.mpu": None,
    "tensor_parallel.tensor_parallel": {"tp_size": 1},
}


def good_value(path: str, kind: Type) -> Any:
    if path in NEEDS_MORE:
        return NEEDS_MORE[path]
    names = re.findall(r'"(\w+)"', kind.expected)
    for candidate in [*names, *([name] for name in names), True, 1.0, 1, 0.5, "text", ["text"], [1], {}, None]:
        try:
            kind.read(candidate)
        except ValueError:
            continue
        return candidate
    raise AssertionError(f"no good value for {path}")


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)


BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@pytest.mark.parametrize("path", [path for path, key in table().items() if key.refused is None])
def test_deepspeed_accepts_what_the_table_calls_a_good_value(path: str) -> None:
    value = good_value(path, table()[path].type)
    config = nested(path, value)
    if path not in BATCH_KEYS:
        config["train_batch_size"] = 1
    else:
        config = dict.fromkeys(BATCH_KEYS, 1)
    if path.endswith("master_weights_and_grads"):
        config["zero_optimization"] = {"stage": 1}
    if path.startswith("data_efficiency.data_sampling.curriculum_learning"):
        inner = config["data_efficiency"]["data_sampling"]["curriculum_learning"]
        inner.setdefault("curriculum_metrics", {})
    if path == "data_efficiency.data_sampling.dynamic_batching.enabled":
        config["data_efficiency"]["data_sampling"]["dynamic_batching"]["max_tokens"] = 8
    real.DeepSpeedConfig(config)


def test_a_wrong_value_in_a_pydantic_block_is_wrong_for_deepspeed_too() -> None:
    for path in PYDANTIC:
        for name, key in known(path).items():
            if "an object" in key.type.expected or key.type.expected in ("anything", "null"):
                continue
            wrong: dict[str, Any] = {name: {"no": "such value"}}
            with pytest.raises(ValueError):
                key.type.read(wrong[name])
            with pytest.raises((ValueError, TypeError)):
                PYDANTIC[path](**wrong)


def signature(*callables: Any) -> set[str]:
    names = {name for each in callables for name in inspect.signature(each).parameters}
    return names - {"params", "model_params", "optimizer", "adamw_mode", "param_groups"}


OWN = {"torch_adam", "adam_w_mode", "fp32_optimizer_states", "max_grad_norm"}


def test_optimizer_parameters_are_those_of_the_classes_deepspeed_builds() -> None:
    def rows(kind: str) -> set[str]:
        return set(params.optimizer_params(kind).rows)

    adam = signature(torch.optim.AdamW, FusedAdam, DeepSpeedCPUAdam)
    assert rows("adam") == rows("AdamW") == adam | OWN
    assert rows("lamb") == signature(FusedLamb) | {"max_grad_norm"}
    assert rows("lion") == signature(FusedLion, DeepSpeedCPULion) | {"max_grad_norm"}
    assert rows("adagrad") == signature(torch.optim.Adagrad, DeepSpeedCPUAdagrad) | {"max_grad_norm"}
    halves = {*DeepSpeedEngine._MUON_HALF_KEYS, *DeepSpeedEngine._ADAM_HALF_KEYS}
    assert rows("muon") == halves | {"muon_lr", "adam_lr", "foreach"} | OWN


def test_who_takes_an_adam_parameter() -> None:
    own = signature(FusedAdam, DeepSpeedCPUAdam)
    assert set(params.TORCH_ADAM_ONLY) == signature(torch.optim.AdamW) - own
    assert set(params.DEEPSPEED_ADAM_ONLY) == own - signature(torch.optim.AdamW) - OWN


def test_the_optimizers_names() -> None:
    assert tuple(real.DEEPSPEED_OPTIMIZERS) == params.DEEPSPEED_OPTIMIZERS
    here = {name for name, value in vars(torch.optim).items() if inspect.isclass(value)} - {"Optimizer"}
    assert here <= set(params.TORCH_OPTIMIZERS)


def test_scheduler_parameters_are_those_of_the_classes() -> None:
    schedulers = params.scheduler_table()
    assert tuple(schedulers)[:5] == ("LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
    assert set(lr_schedules.VALID_LR_SCHEDULES) == set(params.DEEPSPEED_SCHEDULERS)
    for name, known_params in schedulers.items():
        home = lr_schedules if name in params.DEEPSPEED_SCHEDULERS else torch.optim.lr_scheduler
        built = inspect.signature(getattr(home, name)).parameters
        assert set(known_params.rows) == set(built) - {"optimizer", "scale_fn"}, name
        required = {key for key, value in built.items() if value.default is inspect.Parameter.empty}
        assert set(known_params.required) == required - {"optimizer"}, name


def test_every_scheduler_of_torch_is_either_known_or_refused_with_a_reason() -> None:
    base = torch.optim.lr_scheduler.LRScheduler
    here = {
        name
        for name in torch.optim.lr_scheduler.__all__
        if issubclass(getattr(torch.optim.lr_scheduler, name), base) and name != "LRScheduler"
    }
    # SWALR belongs to weight averaging, which swaps weights by hand.
    assert here <= set(params.scheduler_table()) | set(rules._SCHEDULERS_REFUSED)


def test_an_auto_says_what_it_becomes_and_becomes_a_value_its_key_takes() -> None:
    facts = Facts(world_size=2, hidden_size=64, total_steps=300)
    for path, key in table().items():
        if key.auto is not None:
            assert key.auto.says
            if key.auto.value is not None:
                key.type.read(key.auto.value(facts, {}))
            else:
                assert path in BATCH_KEYS
    everyone = [params.optimizer_params("adamw"), *params.scheduler_table().values()]
    for known_params in everyone:
        for key in known_params.rows.values():
            if key.auto is not None and key.auto.value is not None:
                key.type.read(key.auto.value(facts, {}))
