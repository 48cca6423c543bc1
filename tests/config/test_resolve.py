from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_trainer.config import run
from dist_trainer.config.adapt import ANY_DEVICE, DeviceFacts
from dist_trainer.config.deepspeed import keys as deepspeed_keys
from dist_trainer.config.deepspeed.rates import peak_rate
from dist_trainer.config.files import RUN_FILE
from dist_trainer.config.progress import Progress
from dist_trainer.config.request import Request, Switches
from dist_trainer.config.resolve import ResolvedRun, names, resolve
from dist_trainer.config.run import RunConfig
from dist_trainer.errors import EXIT_USER_ERROR, UserError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DS_CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))

CPU = DeviceFacts(kind="cpu", supports_bf16=True, supports_fp16=False, has_compiler=True, name="CPU")
CUDA = DeviceFacts(kind="cuda", supports_bf16=True, supports_fp16=True, has_compiler=True, name="NVIDIA H100")

RUN: dict[str, Any] = {
    "name": "mine",
    "deepspeed": "baseline",
    "seed": 5,
    "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "vocab_size": 256, "context_length": 64},
    "phases": [
        {"name": "short", "sequence_length": 32, "steps": 10},
        {"name": "long", "sequence_length": 64, "tokens": 1000, "data": "elsewhere"},
    ],
}
DS: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 3,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True, "fused": True}},
}


@dataclasses.dataclass(frozen=True)
class Files:
    """A run file and a DeepSpeed file of the test's own, which a request names by their paths."""

    config: Path
    ds: Path

    def resolve(self, *, world_size: int = 1, device: DeviceFacts = CPU, **asked: Any) -> ResolvedRun:
        request = Request(**{"config": str(self.config), "ds": str(self.ds), **asked})
        return resolve(request, world_size=world_size, device=device)

    def refused(self, *, world_size: int = 1, device: DeviceFacts = CPU, **asked: Any) -> UserError:
        with pytest.raises(UserError) as caught:
            self.resolve(world_size=world_size, device=device, **asked)
        return caught.value

    def with_ds(self, **keys: Any) -> Files:
        self.ds.write_text(json.dumps({**DS, **keys}))
        return self


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path / "mine.yaml", tmp_path / "mine.json")
    files.config.write_text(yaml.safe_dump(RUN))
    return files.with_ds()


def every_value(value: Any) -> Iterator[Any]:
    yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        yield from every_value(item)


def test_there_are_shipped_files_to_check() -> None:
    assert {path.stem for path in CONFIGS} >= {"tiny", "small", "medium", "large"}
    assert {path.stem for path in DS_CONFIGS} >= {"baseline", "memory_saver", "fast", "zero1", "zero2", "zero3"}


@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize("device", [CPU, CUDA], ids=["cpu", "cuda"])
@pytest.mark.parametrize("ds", DS_CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_pair_resolves(ds: Path, device: DeviceFacts, world_size: int) -> None:
    for config in CONFIGS:
        raw = json.loads(ds.read_text())
        resolved = resolve(Request(config=str(config), ds=str(ds)), world_size=world_size, device=device)
        assert resolved.micro_batch == raw["train_micro_batch_size_per_gpu"]
        assert resolved.accumulation == raw["gradient_accumulation_steps"]
        assert resolved.train_batch_size == resolved.micro_batch * resolved.accumulation * world_size
        assert resolved.total_steps == sum(phase.steps for phase in resolved.phases)
        assert "auto" not in every_value(resolved.deepspeed)
        assert (resolved.run_source, resolved.deepspeed_source) == (str(config), str(ds))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_run_file_resolves_with_the_deepspeed_file_it_names(config: Path) -> None:
    resolved = resolve(Request(config=config.stem), world_size=2, device=CPU)
    assert resolved.run.name == config.stem
    assert Path(resolved.deepspeed_source).stem == resolved.run.deepspeed
    assert names(Request(config=config.stem)) == (config.stem, resolved.run.deepspeed)


@pytest.mark.parametrize("ds", DS_CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_deepspeed_file_is_complete_and_deepspeed_takes_it_unchanged(ds: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    assert "auto" not in every_value(json.loads(ds.read_text()))
    theirs = DeepSpeedConfig(str(ds))
    ours = resolve(Request(config="tiny", ds=ds.stem), world_size=1, device=ANY_DEVICE)
    assert (theirs.train_batch_size, theirs.train_micro_batch_size_per_gpu, theirs.gradient_accumulation_steps) == (
        ours.train_batch_size,
        ours.micro_batch,
        ours.accumulation,
    )


@pytest.mark.parametrize("device", [CPU, CUDA], ids=["cpu", "cuda"])
@pytest.mark.parametrize("ds", DS_CONFIGS, ids=lambda path: path.stem)
def test_deepspeed_takes_what_every_shipped_file_resolves_to(ds: Path, device: DeviceFacts) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    resolved = resolve(Request(ds=ds.stem), world_size=1, device=device)
    theirs = DeepSpeedConfig(copy.deepcopy(resolved.deepspeed))
    assert theirs.train_batch_size == resolved.train_batch_size
    assert theirs.optimizer_params == resolved.deepspeed["optimizer"]["params"]


def test_the_file_asked_for_comes_before_the_one_the_run_file_names(files: Files) -> None:
    assert Path(files.resolve(ds=None).deepspeed_source).stem == "baseline"
    assert files.resolve().deepspeed_source == str(files.ds)
    assert names(Request(config=str(files.config), ds=str(files.ds))) == ("mine", "mine")


def test_switches_override_the_json(files: Files) -> None:
    files.with_ds(bf16={"enabled": True}, compile={"deepcompile": False})
    assert (files.resolve().micro_batch, files.resolve().accumulation) == (2, 3)
    switches = Switches(micro_batch=4, accumulation=5, precision="fp32", checkpointing=True, fused=False, compile=False)
    resolved = files.resolve(switches=switches, world_size=2)
    assert (resolved.micro_batch, resolved.accumulation, resolved.train_batch_size) == (4, 5, 40)
    assert not resolved.deepspeed.get("bf16", {}).get("enabled")
    assert "activation_checkpointing" in resolved.deepspeed
    assert resolved.deepspeed["optimizer"]["params"]["fused"] is False
    assert "compile" not in resolved.deepspeed


def test_settings_override_files_and_switches(files: Files) -> None:
    resolved = files.resolve(
        switches=Switches(accumulation=5),
        settings=("gradient_accumulation_steps=7", "optimizer.params.lr=0.5", "model.num_layers=3"),
    )
    assert resolved.accumulation == 7
    assert resolved.deepspeed["optimizer"]["params"]["lr"] == 0.5
    assert resolved.deepspeed["optimizer"]["params"]["fused"] is True
    assert (resolved.run.model.num_layers, resolved.run.model.hidden_size) == (3, 32)


def test_the_later_of_two_settings_counts(files: Files) -> None:
    settings = ("memory.gc_every_steps=1", "memory.gc_every_steps=2", "gradient_clipping=1", "gradient_clipping=2")
    resolved = files.resolve(settings=settings)
    assert resolved.run.memory.gc_every_steps == 2
    assert resolved.deepspeed["gradient_clipping"] == 2


def test_the_seed_switch_overrides_file_and_setting(files: Files) -> None:
    assert files.resolve().run.seed == 5
    assert files.resolve(settings=("seed=6",)).run.seed == 6
    assert files.resolve(settings=("seed=6",), seed=7).run.seed == 7
    assert files.resolve(seed=0).run.seed == 0


def test_a_setting_goes_to_the_file_that_has_its_key(files: Files) -> None:
    resolved = files.resolve(settings=("targets.baseline_bytes=4 GB", "targets.target_bytes=2.5 GB"))
    assert resolved.run.targets is not None
    assert (resolved.run.targets.baseline_bytes, resolved.run.targets.target_bytes) == (4_000_000_000, 2_500_000_000)
    assert "targets" not in resolved.deepspeed
    resolved = files.resolve(settings=("zero_optimization.stage=1",))
    assert resolved.deepspeed["zero_optimization"]["stage"] == 1


def test_no_key_is_at_home_in_both_files() -> None:
    assert not set(RunConfig.model_fields) & {path.split(".")[0] for path in deepspeed_keys.table()}


@pytest.mark.parametrize(
    ("setting", "where", "key"),
    [
        ("model.num_layres=3", "--set model.num_layres", None),
        ("model.num_layers=three", "--set model.num_layers", None),
        ("seed=-1", "--set seed", None),
        ("phases.1.steps=0", "--set phases.1.steps", None),
        ("zero_optimization.stagge=1", "--set zero_optimization.stagge", None),
        ("zero_optimization.stage=two", "--set zero_optimization.stage", None),
        ('zero_optimization={"stage": "two"}', "--set zero_optimization", "zero_optimization.stage"),
        ("gradient_cliping=1", "--set gradient_cliping", None),
    ],
)
def test_a_wrong_setting_is_named_as_it_was_set_and_not_by_the_file(
    files: Files, setting: str, where: str, key: str | None
) -> None:
    error = files.refused(settings=("seed=2", setting))
    assert (error.where, error.key) == (where, key)


def test_a_setting_that_does_not_fit_the_file_is_named_beside_it(files: Files) -> None:
    error = files.refused(settings=("model.num_heads=5",))
    assert (error.where, error.key) == (f"{files.config} with --set model.num_heads", "model")


def test_a_mistake_in_a_file_is_named_by_the_file_whatever_else_was_set(files: Files) -> None:
    error = files.with_ds(gradient_cliping=1).refused(settings=("gradient_clipping=1", "model.num_layers=3"))
    assert (error.where, error.key) == (str(files.ds), "gradient_cliping")


@pytest.mark.parametrize(
    ("key", "most"),
    [
        ("num_layers", "1,000"),
        ("hidden_size", "1,048,576"),
        ("vocab_size", "16,777,216"),
        ("context_length", "134,217"),
    ],
)
def test_a_size_beyond_any_model_is_refused(files: Files, key: str, most: str) -> None:
    error = files.refused(settings=(f"model.{key}=1000000000",))
    assert error.problem == "larger than it can be"
    assert most in str(error.hint)


@pytest.mark.parametrize("setting", ["seed", "=5", "", "seed.=3", ".seed=3"])
def test_what_is_no_setting_is_refused(files: Files, setting: str) -> None:
    assert files.refused(settings=(setting,)).where == "--set"


def test_phases_by_tokens_become_the_steps_that_see_them_all(files: Files) -> None:
    first, second = files.resolve(world_size=2).phases
    assert (first.number, first.name, first.sequence_length, first.steps) == (1, "short", 32, 10)
    assert first.tokens_per_step == 2 * 3 * 2 * 32
    assert (second.number, second.name, second.sequence_length) == (2, "long", 64)
    assert second.tokens_per_step == 768
    assert second.steps == 2
    assert files.resolve(world_size=1).phases[1].steps == 3
    assert files.resolve(world_size=1, switches=Switches(micro_batch=1, accumulation=1)).phases[1].steps == 16
    exact = json.dumps([{"name": "exact", "sequence_length": 64, "tokens": 1536}])
    assert files.resolve(world_size=2, settings=(f"phases={exact}",)).phases[0].steps == 2


def test_a_phase_reads_its_own_data_or_else_the_runs(files: Files) -> None:
    assert [phase.data for phase in files.resolve().phases] == ["stdlib", "elsewhere"]
    assert [phase.data for phase in files.resolve(settings=("data.source=here",)).phases] == ["here", "elsewhere"]


def test_one_phase_can_be_selected_and_the_schedule_still_follows_them_all(files: Files) -> None:
    files.with_ds(scheduler={"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_num_steps": 5}})
    resolved = files.resolve(world_size=2, phase=2)
    assert [phase.name for phase in resolved.phases] == ["long"]
    assert resolved.phases[0].number == 2
    assert resolved.total_steps == 12
    assert resolved.deepspeed["scheduler"]["params"]["total_num_steps"] == 12


@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_phase_that_is_not_there_is_refused_with_those_that_are(files: Files, number: int) -> None:
    error = files.refused(phase=number)
    assert (error.where, error.key, error.found) == (str(files.config), "--phase", number)
    assert error.expected == "one of 1 (short), 2 (long)"


@pytest.mark.parametrize(
    ("kind", "key", "others"),
    [
        ("WarmupDecayLR", "total_num_steps", {"warmup_num_steps": 5}),
        ("WarmupCosineLR", "total_num_steps", {"warmup_num_steps": 5}),
        ("CosineAnnealingLR", "T_max", {}),
        ("OneCycleLR", "total_steps", {"max_lr": 1e-3}),
    ],
)
def test_the_steps_of_all_phases_fill_the_schedules_auto(
    files: Files, kind: str, key: str, others: dict[str, Any]
) -> None:
    files.with_ds(scheduler={"type": kind, "params": {key: "auto", **others}})
    resolved = files.resolve(world_size=2)
    assert resolved.total_steps == 12
    assert resolved.deepspeed["scheduler"]["params"][key] == 12
    assert not [notice for notice in resolved.notices if "the schedule ends" in notice]
    files.with_ds(scheduler={"type": kind, "params": {key: 15, **others}})
    assert [notice for notice in files.resolve(world_size=2).notices if "step 15 and the run at step 12" in notice]


@pytest.mark.parametrize("length", [{"total_steps": 11}, {"epochs": 2, "steps_per_epoch": 5}])
def test_a_schedule_without_a_rate_for_the_last_step_is_refused(files: Files, length: dict[str, int]) -> None:
    files.with_ds(scheduler={"type": "OneCycleLR", "params": {"max_lr": 1e-3, **length}})
    error = files.refused(world_size=2)
    assert (error.where, error.key) == (str(files.ds), "scheduler.params.total_steps")
    assert error.expected == "at least 12"


def test_the_rest_of_a_phase_by_tokens_follows_from_what_a_checkpoint_has_of_it(files: Files) -> None:
    files.with_ds(scheduler={"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_num_steps": 5}})
    # 6 sequences of 64 a step; the checkpoint's steps were of 2, and 600 of 1000 tokens are left.
    request = Request(config=str(files.config), ds=str(files.ds))
    done = {"short": Progress(10, 10 * 64), "long": Progress(4, 400)}
    resolved = resolve(request, world_size=1, device=CPU, done=done)
    assert [phase.steps for phase in resolved.phases] == [10, 4 + 2]
    assert resolved.deepspeed["scheduler"]["params"]["total_num_steps"] == 16
    over = resolve(request, world_size=1, device=CPU, done={"long": Progress(9, 1100)})
    assert over.phases[1].steps == 9


@pytest.mark.parametrize("device", [CPU, CUDA], ids=["cpu", "cuda"])
@pytest.mark.parametrize("ds", DS_CONFIGS, ids=lambda path: path.stem)
def test_no_shipped_file_says_what_does_nothing(ds: Path, device: DeviceFacts) -> None:
    for config in CONFIGS:
        resolved = resolve(Request(config=str(config), ds=str(ds)), world_size=2, device=device)
        assert [notice for notice in resolved.notices if "nothing" in notice] == []
        assert resolved.filled == ()


@pytest.mark.parametrize("ds", DS_CONFIGS, ids=lambda path: path.stem)
def test_the_learning_rate_of_a_shipped_file_is_one_fact(ds: Path) -> None:
    """The switch sets it; a setting of the optimizer's sets it too, or is told which key has it."""
    switched = resolve(Request(ds=str(ds), switches=Switches(learning_rate=3e-4)), world_size=1, device=CPU)
    assert peak_rate(switched.deepspeed) == 3e-4
    assert not [notice for notice in switched.notices if "nothing" in notice]
    says = json.dumps(json.loads(ds.read_text())).count("0.0006")
    assert says == 1
    settings = ("optimizer.params.lr=3e-4",)
    resolved = resolve(Request(ds=str(ds), settings=settings), world_size=1, device=CPU)
    told = [notice for notice in resolved.notices if notice.startswith("optimizer.params.lr does nothing: ")]
    assert (peak_rate(resolved.deepspeed) == 3e-4) != bool(told)


def overridden(files: Files, **asked: Any) -> list[str]:
    return [notice for notice in files.resolve(**asked).notices if "nothing" in notice]


def test_a_switch_that_a_setting_overrides_is_named(files: Files) -> None:
    switches = Switches(
        micro_batch=4,
        accumulation=5,
        precision="bf16",
        checkpointing=False,
        fused=False,
        compile=False,
        learning_rate=1e-4,
    )
    assert overridden(files, switches=switches) == []
    settings = (
        *("train_micro_batch_size_per_gpu=2", "gradient_accumulation_steps=1", "bf16.enabled=false"),
        *(
            "optimizer.params.fused=true",
            "activation_checkpointing.cpu_checkpointing=true",
            "compile={}",
            "optimizer.params.lr=2e-4",
        ),
    )
    assert overridden(files, switches=switches, settings=settings) == [
        "--micro-batch 4 does nothing: --set train_micro_batch_size_per_gpu comes after it",
        "--accumulation 5 does nothing: --set gradient_accumulation_steps comes after it",
        "--precision bf16 does nothing: --set bf16.enabled comes after it",
        "--no-fused does nothing: --set optimizer.params.fused comes after it",
        "--no-checkpointing does nothing: --set activation_checkpointing comes after it",
        "--no-compile does nothing: --set compile comes after it",
        "--learning-rate 0.0001 does nothing: --set optimizer.params.lr comes after it",
    ]
    on = dataclasses.replace(switches, checkpointing=True, compile=True)
    same = ("gradient_accumulation_steps=5", "activation_checkpointing.cpu_checkpointing=true")
    assert overridden(files, switches=on, settings=same) == []


def test_a_learning_rate_that_a_schedule_of_a_setting_overrides_is_named(files: Files) -> None:
    schedule = 'scheduler={"type": "WarmupLR", "params": {"warmup_min_lr": 1e-5, "warmup_max_lr": 0.02}}'
    assert overridden(files, switches=Switches(learning_rate=1e-4), settings=(schedule,)) == [
        "--learning-rate 0.0001 does nothing: --set scheduler.params.warmup_max_lr comes after it",
        "optimizer.params.lr does nothing: scheduler.params.warmup_max_lr says the rate, 0.02",
    ]


def test_a_setting_that_is_said_again_is_named(files: Files) -> None:
    settings = (
        *("gradient_clipping=1", "model.dropout=0.1", "gradient_clipping=2", "optimizer.params.lr=1"),
        *('optimizer={"type": "AdamW", "params": {"lr": 0.5}}', "optimizer.params.eps=1e-6", "seed=3"),
    )
    assert overridden(files, settings=settings, seed=4) == [
        "--set gradient_clipping=1 does nothing: --set gradient_clipping=2 comes after it",
        "--set optimizer.params.lr=1 does nothing: "
        '--set optimizer={"type": "AdamW", "params": {"lr": 0.5}} comes after it',
        "--set seed does nothing: --seed 4 comes after it",
    ]


def test_what_a_switch_takes_out_of_the_file_beside_its_own_key_is_named(files: Files) -> None:
    params = {"lr": 1e-3, "bias_correction": True, "set_grad_none": True}
    files.with_ds(
        train_batch_size=6,
        torch_autocast={"enabled": True},
        data_types={"param_dtype": "fp32"},
        optimizer={"type": "AdamW", "params": params},
    )
    assert overridden(files) == []
    assert overridden(files, switches=Switches(micro_batch=1, precision="bf16", fused=True)) == [
        "train_batch_size of the file does nothing: --micro-batch takes its place",
        "torch_autocast.enabled of the file does nothing: --precision takes its place",
        "data_types.param_dtype of the file does nothing: --precision takes its place",
        "optimizer.params.bias_correction of the file does nothing: --fused takes its place",
        "optimizer.params.set_grad_none of the file does nothing: --fused takes its place",
    ]


def test_what_does_nothing_in_the_run_file_is_named(files: Files) -> None:
    settings = ("data.num_workers=0", "data.prefetch_factor=4", "memory.gc_every_steps=9", "data.source=x")
    assert overridden(files, settings=(*settings, "phases.0.data=y")) == [
        "data.prefetch_factor does nothing: data.num_workers is 0",
        "data.source does nothing: every phase names its own data",
        "memory.gc_every_steps does nothing: Python collects by itself, for disable_python_gc is not on in the JSON",
    ]
    assert overridden(files, settings=("data.num_workers=1", *settings[1:], "disable_python_gc=true")) == []


def test_what_was_filled_is_listed(files: Files) -> None:
    files.with_ds(scheduler={"type": "WarmupCosineLR", "params": {"total_num_steps": "auto", "warmup_min_ratio": 0.1}})
    assert [str(one) for one in files.resolve(world_size=2).filled] == [
        "scheduler.params.total_num_steps = 12 (the optimizer steps of all phases)"
    ]


def test_without_optimisations_nothing_is_on() -> None:
    for device in (CPU, CUDA):
        resolved = resolve(Request(config="small", no_optimize=True), world_size=2, device=device)
        assert Path(resolved.deepspeed_source).stem == "baseline"
        assert resolved.accumulation == 1
        for precision in ("fp16", "bf16", "torch_autocast"):
            assert not resolved.deepspeed.get(precision, {}).get("enabled")
        assert "activation_checkpointing" not in resolved.deepspeed
        assert "compile" not in resolved.deepspeed
        assert resolved.deepspeed["optimizer"]["params"]["torch_adam"] is True
        assert resolved.deepspeed["optimizer"]["params"]["fused"] is False
        assert resolved.deepspeed.get("zero_optimization", {}).get("stage", 0) == 0
        assert resolved.notices == ()
    assert names(Request(config="small", no_optimize=True)) == ("small", "baseline")


def test_no_optimisations_and_a_deepspeed_file_contradict_each_other(files: Files) -> None:
    error = files.refused(no_optimize=True)
    assert (error.where, error.found) == ("--no-optimize", f"--ds {files.ds}")
    with pytest.raises(UserError):
        names(Request(ds="zero2", no_optimize=True))


def test_one_optimisation_can_be_switched_on_over_the_baseline() -> None:
    request = Request(no_optimize=True, switches=Switches(checkpointing=True))
    resolved = resolve(request, world_size=1, device=CPU)
    assert "activation_checkpointing" in resolved.deepspeed
    assert resolved.deepspeed["optimizer"]["params"]["fused"] is False


def test_fp16_on_the_cpu_becomes_bf16_and_says_so() -> None:
    on_cpu = resolve(Request(ds="fp16"), world_size=1, device=CPU)
    assert on_cpu.deepspeed["bf16"]["enabled"] is True
    assert not on_cpu.deepspeed.get("fp16", {}).get("enabled")
    assert "fp16 is not supported by DeepSpeed on the CPU: bf16 runs instead" in on_cpu.notices
    on_gpu = resolve(Request(ds="fp16"), world_size=1, device=CUDA)
    assert on_gpu.deepspeed["fp16"]["enabled"] is True
    assert on_gpu.notices == ()


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_batch_that_does_not_multiply_is_refused_by_file_with_those_that_do(files: Files, world_size: int) -> None:
    files.with_ds(train_batch_size=7)
    error = files.refused(world_size=world_size)
    assert (error.where, error.key, error.found) == (str(files.ds), "train_batch_size", 7)
    assert error.expected == f"2 x 3 x {world_size}, which is {6 * world_size}"
    assert error.hint is not None
    assert f"{6 * world_size} = 2 x 3 x {world_size}" in error.hint


def test_what_the_device_cannot_run_is_refused_by_file_and_key(files: Files) -> None:
    files.with_ds(optimizer={"type": "Lamb", "params": {"lr": 1e-3}}, zero_allow_untested_optimizer=True)
    error = files.refused(device=CPU)
    assert (error.where, error.key, error.found) == (str(files.ds), "optimizer.type", "Lamb")
    assert files.resolve(device=CUDA).deepspeed["optimizer"]["type"] == "Lamb"


def test_the_same_request_gives_the_same_answer(files: Files) -> None:
    assert files.resolve() == files.resolve()


@pytest.mark.parametrize("setting", ["name=\udcff", "\udcff=1", "data.source=/data/\ud800", "optimizer.type=\udcff"])
def test_a_setting_that_is_no_text_is_refused(setting: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(Request(settings=(setting,)), world_size=1, device=ANY_DEVICE)
    assert caught.value.exit_status == EXIT_USER_ERROR


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    resolved = resolve(Request(settings=("data.source=/data/\udce9",)), world_size=1, device=ANY_DEVICE)
    path = tmp_path / "run.yaml"
    path.write_text(run.dump(resolved.run), encoding="utf-8")
    assert run.check(run.read(path), source=str(path)).data.source == "/data/\udce9"


def test_a_file_of_the_other_kind_is_answered_with_the_switch_that_takes_it(files: Files) -> None:
    swapped = files.refused(config=str(files.ds))
    assert swapped.problem == "this is a DeepSpeed file, and --config takes a run file"
    assert (swapped.where, swapped.hint) == ("--config", f"write --ds {files.ds}")
    run_file = files.ds.with_name("run.json")
    run_file.write_text(json.dumps(RUN))
    swapped = files.refused(ds=str(run_file))
    assert swapped.problem == "this is a run file, and --ds takes a DeepSpeed file"
    # A file with keys of its own kind is one of its kind, with mistakes in it.
    run_file.write_text(json.dumps({"seed": 1, **DS}))
    assert files.refused(ds=str(run_file)).key == "seed"


def test_an_accumulation_beside_a_micro_batch_that_is_null_keeps_the_total(files: Files) -> None:
    files.ds.write_text(json.dumps({**DS, "train_batch_size": 12, "train_micro_batch_size_per_gpu": None}))
    assert files.resolve(switches=Switches(accumulation=4)).micro_batch == 3


def test_a_deepspeed_file_that_the_run_file_names_and_is_not_there_is_the_run_files_mistake(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RUN_FILE.shipped()["tiny"].read_text().replace("deepspeed: zero2", "deepspeed: a2.json"))
    with pytest.raises(UserError) as refused:
        resolve(Request(config=str(path)), world_size=1, device=ANY_DEVICE)
    assert (refused.value.where, refused.value.key, refused.value.found) == (str(path), "deepspeed", "a2.json")
    with pytest.raises(UserError) as refused:
        resolve(Request(config=str(path), ds="b2.json"), world_size=1, device=ANY_DEVICE)
    assert (refused.value.where, refused.value.found) == ("--ds", "b2.json")


def test_a_warm_up_that_is_longer_than_the_run_is_told() -> None:
    settings = ("scheduler.params.warmup_num_steps=1000",)
    notices = resolve(Request(settings=settings), world_size=1, device=ANY_DEVICE).notices
    told = "scheduler.params.warmup_num_steps: the warm-up takes 1000 steps and the run has 300; "
    assert [notice for notice in notices if notice.startswith(told)]
    assert not [notice for notice in resolve(Request(), world_size=1, device=ANY_DEVICE).notices if "warm-up" in notice]
