"""Each optimisation that the JSON asks for is really at work in the engine."""

from __future__ import annotations

import gc
import math
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from deepspeed.accelerator import get_accelerator
from one_rank import one_rank

from dist_trainer.config.adapt import DeviceFacts
from dist_trainer.config.deepspeed.rules import precision
from dist_trainer.config.request import Request, Switches
from dist_trainer.config.resolve import ResolvedRun, resolve
from dist_trainer.errors import UserError
from dist_trainer.records import EVENTS_FILE, Event, read_records, read_steps
from dist_trainer.train import hygiene, process
from dist_trainer.train.engine import build_engine
from dist_trainer.train.step import train_step

pytestmark = pytest.mark.integration

STEPS = 20


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    """One rank, in this process, for all engines of this file."""
    with one_rank():
        yield


@pytest.fixture
def resolved(tmp_path: Path) -> Callable[..., ResolvedRun]:
    config = ranks.mini_config(tmp_path)

    def make(ds: str, *settings: str, **switches: Any) -> ResolvedRun:
        request = Request(config=str(config), ds=ds, settings=settings, switches=Switches(**switches))
        return resolve(request, world_size=1, device=process.device_facts())

    return make


@pytest.fixture
def engine(resolved: Callable[..., ResolvedRun]) -> Iterator[Callable[..., Any]]:
    built: list[Any] = []

    def make(ds: str, *settings: str, **switches: Any) -> Any:
        built.append(build_engine(resolved(ds, *settings, **switches), device_index=0))
        return built[-1]

    yield make
    for one in built:
        one.destroy()
    gc.enable()


def batches(micro_batch: int = 2) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        block = torch.randint(0, 2048, (micro_batch, 33), generator=generator)
        yield block[:, :-1], block[:, 1:]


def weights(engine: Any) -> torch.Tensor:
    return engine.module.token_embedding.weight.detach().clone()


def test_accumulation_takes_its_micro_batches_for_one_update(engine: Callable[..., Any]) -> None:
    running = engine("accumulation")
    taken = 0

    def counting() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        nonlocal taken
        for batch in batches():
            taken += 1
            yield batch

    start = weights(running)
    train_step(running, counting(), step=1)
    assert (taken, running.global_steps) == (8, 1)
    assert not torch.equal(weights(running), start)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_holds_weights_and_gradients_in_16_bit_and_a_master_copy_in_fp32(
    stage: int, engine: Callable[..., Any]
) -> None:
    running = engine("bf16", f"zero_optimization.stage={stage}")
    seen: set[torch.dtype] = set()
    for parameter in running.module.parameters():
        parameter.register_hook(lambda gradient: seen.add(gradient.dtype))
    train_step(running, batches(), step=1)
    assert {parameter.dtype for parameter in running.module.parameters()} == {torch.bfloat16}
    assert seen == {torch.bfloat16}
    states = running.optimizer.optimizer.state if hasattr(running.optimizer, "optimizer") else running.optimizer.state
    moments = [state["exp_avg"] for state in states.values() if "exp_avg" in state]
    assert moments and {moment.dtype for moment in moments} == {torch.float32}
    if stage == 3:
        masters = running.optimizer.fp32_partitioned_groups_flat
    else:
        masters = [master for group in running.optimizer.optimizer.param_groups for master in group["params"]]
    assert {master.dtype for master in masters} == {torch.float32}


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the accelerator one that takes these 16-bit forms, whatever the CPU below it is."""

    def turn(*, bf16: bool, fp16: bool) -> None:
        accelerator = type(get_accelerator())
        monkeypatch.setattr(accelerator, "is_bf16_supported", lambda self: bf16)
        monkeypatch.setattr(accelerator, "is_fp16_supported", lambda self: fp16)

    return turn


@pytest.mark.parametrize("ds", ["fp16", "bf16"])
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("fp16", [True, False])
def test_the_precision_in_force_is_one_that_the_device_has_and_a_notice_says_so_where_it_is_another(
    ds: str, bf16: bool, fp16: bool, resolved: Callable[..., ResolvedRun], takes: Callable[..., None]
) -> None:
    takes(bf16=bf16, fp16=fp16)
    found = resolved(ds)
    other = {"fp16": "bf16", "bf16": "fp16"}[ds]
    has = {"bf16": bf16, "fp16": fp16}
    expected = ds if has[ds] else other if has[other] else "fp32"
    assert precision(found.deepspeed) == expected
    said = [notice for notice in found.notices if notice.startswith(f"{ds} is not supported by")]
    assert [notice.rpartition(": ")[2] for notice in said] == ([] if has[ds] else [f"{expected} runs instead"])


@pytest.mark.parametrize("with_fp16", [True, False])
def test_ranks_on_a_cpu_with_and_without_fp16(with_fp16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN, which knows what the CPU has, can be told to do with less than there is."""
    if with_fp16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this CPU has no fp16 arithmetic")
    if not with_fp16:
        if platform.machine() != "x86_64":
            pytest.skip("only an x86-64's arithmetic can be limited")
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    config, records = ranks.mini_config(tmp_path), tmp_path / "run" / "records"
    words = ["--config", str(config), "--ds", "fp16", "--run-dir", str(records.parent), "--max-steps", "3"]
    ended = ranks.run_ranks(["-m", "dist_trainer", "train", *words], cwd=tmp_path, world_size=1)
    assert ended.status == 0, ended.output
    steps = read_steps(records)
    notices = [event.message for event in read_records(records / EVENTS_FILE, Event) if event.kind == "notice"]
    instead = "fp16 is not supported by DeepSpeed on the CPU: bf16 runs instead"
    assert (instead in notices) == (not with_fp16)
    assert len(steps) == 3 and all((step.loss_scale is not None) == with_fp16 for step in steps)
    assert all(math.isfinite(step.loss) for step in steps)


def test_fp16_scales_the_loss_up_while_it_can_and_down_on_overflow(
    engine: Callable[..., Any], takes: Callable[..., None]
) -> None:
    takes(bf16=True, fp16=True)
    block = ("fp16.initial_scale_power=4", "fp16.loss_scale_window=2", "zero_optimization.stage=2")
    running = engine("fp16", *block)
    assert {parameter.dtype for parameter in running.module.parameters()} == {torch.float16}
    scales = [train_step(running, batches(), step=step).loss_scale for step in range(1, 6)]
    assert scales[-1] is not None and scales[-1] > 16.0

    start_high = ("fp16.initial_scale_power=32", "fp16.hysteresis=1", "zero_optimization.stage=2")
    overflowing = engine("fp16", *start_high)
    before = weights(overflowing)
    result = train_step(overflowing, batches(), step=1)
    assert overflowing.skipped_steps == 1
    assert result.loss_scale is not None and result.loss_scale < 2.0**32
    assert torch.equal(weights(overflowing), before)


def test_checkpointing_block_present_means_on(engine: Callable[..., Any]) -> None:
    checkpointing = engine("checkpointing", "activation_checkpointing.number_checkpoints=1").module.checkpointing
    assert checkpointing is not None and checkpointing.num_checkpoints == 1
    assert engine("baseline").module.checkpointing is None


def test_fused_is_torchs_fused_adamw_and_the_baseline_is_not(engine: Callable[..., Any]) -> None:
    for ds, fused in (("fused", True), ("baseline", False)):
        optimizer = engine(ds).basic_optimizer
        assert type(optimizer) is torch.optim.AdamW
        assert {bool(group["fused"]) for group in optimizer.param_groups} == {fused}


def test_deepspeeds_own_fused_adam_is_built_where_the_json_asks_for_it(engine: Callable[..., Any]) -> None:
    running = engine("baseline", 'optimizer.params={"lr": 0.001}')
    assert type(running.basic_optimizer).__name__ == "FusedAdam"
    before = weights(running)
    train_step(running, batches(), step=1)
    assert not torch.equal(weights(running), before)


@pytest.mark.parametrize("ds", ["zero2_offload", "zero3_offload"])
def test_offload_keeps_the_optimizer_in_deepspeeds_cpu_adam(ds: str, engine: Callable[..., Any]) -> None:
    running = engine(ds)
    assert type(running.basic_optimizer).__name__ == "DeepSpeedCPUAdam"
    assert math.isfinite(train_step(running, batches(), step=1).loss)


def test_only_matrices_decay_in_the_engine(engine: Callable[..., Any]) -> None:
    *matrices, others = (group["weight_decay"] for group in engine("baseline").basic_optimizer.param_groups)
    assert set(matrices) == {0.1}
    assert others == 0.0


def test_compile_runs_a_compiled_graph(engine: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    running = engine("compile")
    train_step(running, batches(), step=1)
    assert running.is_compiled
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert torch._dynamo.utils.counters["graph_break"] == {}


def test_memory_hygiene_keeps_the_collector_out_of_the_steps_and_drops_gradients(engine: Callable[..., Any]) -> None:
    running = engine("memory_hygiene")
    hygiene.settle(running)
    assert not gc.isenabled()
    train_step(running, batches(), step=1)
    assert all(parameter.grad is None for parameter in running.module.parameters())
    running.destroy()
    assert gc.isenabled()


def linear_warmup(step: int) -> float:
    return 6e-6 + (6e-4 - 6e-6) * min(1.0, step / 100)


def cosine(step: int) -> float:
    if step < 4:
        return 6e-4 * (0.01 + 0.99 * step / 4)
    progress = (step - 4 + 1) / (STEPS - 4)
    return 6e-4 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def one_cycle(step: int) -> float:
    half = STEPS // 2
    up = 1 - abs(step / half - 1)
    return 6e-5 + (6e-4 - 6e-5) * up


def torch_cosine(step: int) -> float:
    return 6e-4 * 0.5 * (1 + math.cos(math.pi * step / STEPS))


@pytest.mark.parametrize(
    ("ds", "settings", "closed_form"),
    [
        ("linear_warmup", (), linear_warmup),
        ("cosine", ("scheduler.params.total_num_steps=auto", "scheduler.params.warmup_num_steps=4"), cosine),
        (
            "one_cycle",
            ("scheduler.params.cycle_first_step_size=auto", "scheduler.params.cycle_second_step_size=auto"),
            one_cycle,
        ),
        ("bf16", ('scheduler={"type": "CosineAnnealingLR", "params": {"T_max": 20}}',), torch_cosine),
    ],
    ids=["linear warm-up", "cosine decay", "one cycle", "torch's cosine"],
)
def test_the_learning_rate_follows_the_closed_form_over_the_phases(
    ds: str, settings: tuple[str, ...], closed_form: Callable[[int], float], engine: Callable[..., Any]
) -> None:
    running = engine(ds, *settings)
    rates = [train_step(running, batches(), step=step).learning_rate for step in range(1, STEPS + 1)]
    # DeepSpeed's warm-ups hold their first value for two steps; its OneCycle and torch's schedulers do not.
    shift = 1 if ds in ("linear_warmup", "cosine") else 0
    assert rates == pytest.approx([closed_form(max(0, step - shift)) for step in range(STEPS)], rel=1e-6)


@pytest.mark.parametrize(
    ("ds", "settings"),
    [
        ("bf16", ()),
        ("linear_warmup", ("scheduler.params.warmup_num_steps=4",)),
        ("cosine", ("scheduler.params.warmup_num_steps=4",)),
        ("one_cycle", ("scheduler.params.cycle_first_step_size=4", "scheduler.params.cycle_second_step_size=4")),
        ("bf16", ('scheduler={"type": "WarmupDecayLR", "params": {"total_num_steps": 100, "warmup_num_steps": 4}}',)),
    ],
    ids=["no schedule", "linear warm-up", "cosine decay", "one cycle", "decay, of a setting"],
)
def test_the_learning_rate_that_was_asked_for_is_the_highest_that_is_trained_with(
    ds: str, settings: tuple[str, ...], engine: Callable[..., Any]
) -> None:
    """With the switch, and with a setting where the file says the rate in the optimizer."""
    told = "scheduler.params.cycle_max_lr=3e-4" if ds == "one_cycle" else "optimizer.params.lr=3e-4"
    of_a_setting = bool(settings) and settings[0].startswith("scheduler={")
    for running in (
        *(() if of_a_setting else (engine(ds, *settings, learning_rate=3e-4),)),
        engine(ds, *settings, told, *(("scheduler.params.warmup_max_lr=auto",) if of_a_setting else ())),
    ):
        rates = [train_step(running, batches(), step=step).learning_rate for step in range(1, 7)]
        assert max(rates) == pytest.approx(3e-4, rel=1e-3)
        assert ds == "bf16" or rates[0] < 1e-4


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("stage3_module_granularity_threshold=100000000", "stage3_module_granularity_threshold"),
        ('leaf_module={"classes": ["GPT"]}', "leaf_module"),
    ],
)
def test_a_model_that_would_be_one_leaf_of_zero_3_is_refused(
    setting: str, key: str, engine: Callable[..., Any]
) -> None:
    with pytest.raises(UserError) as refused:
        engine("zero3", f"zero_optimization.{setting}")
    assert refused.value.key == f"zero_optimization.{key}"
    assert "one leaf module" in refused.value.problem


def test_blocks_may_be_leaves_of_zero_3(engine: Callable[..., Any]) -> None:
    made = engine("zero3", 'zero_optimization.leaf_module={"classes": ["Block"]}', checkpointing=False)
    train_step(made, batches(1), step=1)


def test_what_a_device_cannot_do_is_a_fact_of_the_device() -> None:
    facts = process.device_facts()
    assert isinstance(facts, DeviceFacts)
    assert facts.kind == ("cuda" if torch.cuda.is_available() else "cpu")
