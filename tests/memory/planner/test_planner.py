from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.memory.engines.ledger import COMPUTE, GATHERING, REDUCTION
from dist_trainer.memory.engines.settings import read_settings
from dist_trainer.memory.plan import Plan, RankPlan, dump_plan, needed, read_plan, write_plan
from dist_trainer.memory.planner.planner import PlannedDevice, make_plan, trace_spec
from dist_trainer.memory.planner.simulate import simulate
from dist_trainer.memory.trace import kept

CUDA = PlannedDevice("cuda")
CPU = PlannedDevice("cpu")
SLOW = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
STAGES = st.integers(0, 3)


@pytest.fixture(autouse=True, scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Traces of this module's shapes, made anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def plan(
    *settings: str,
    world_size: int = 1,
    ds: str = "zero2",
    config: str = "tiny",
    device: PlannedDevice = CUDA,
    ranks: Sequence[int] | None = None,
    length: int | None = None,
) -> Plan:
    request = Request(config=config, ds=ds, settings=settings)
    resolved = resolve(request, world_size=world_size, device=ANY_DEVICE)
    return make_plan(resolved, world_size=world_size, device=device, ranks=ranks, sequence_length=length)


def stage(number: int, *, accumulation: int = 1) -> tuple[str, ...]:
    return (
        f"zero_optimization.stage={number}",
        "zero_optimization.reduce_bucket_size=1000000",
        f"gradient_accumulation_steps={accumulation}",
        "data_types.grad_accum_dtype=bf16",
    )


def allocated(plan: Plan) -> int:
    return max(rank.allocated.num_bytes for rank in plan.ranks)


def parts_add_up(rank: RankPlan) -> bool:
    return all(sum(phase.parts.values()) == phase.allocated_bytes for phase in rank.phases) and (
        sum(rank.parts.values()) == needed(rank).num_bytes
    )


@SLOW
@given(STAGES, st.sampled_from([1, 2, 8]), st.sampled_from(["fp32", "bf16"]), st.sampled_from([1, 4]))
def test_the_parts_add_up_to_the_total_in_every_phase(number: int, world_size: int, dtype: str, micro: int) -> None:
    precision = f"bf16.enabled={'true' if dtype == 'bf16' else 'false'}"
    accumulation = "data_types.grad_accum_dtype=" + dtype
    made = plan(
        *stage(number), precision, accumulation, f"train_micro_batch_size_per_gpu={micro}", world_size=world_size
    )
    assert all(parts_add_up(rank) for rank in made.ranks)
    assert all(parts_add_up(rank) for rank in plan(*stage(number), world_size=world_size, device=CPU).ranks)


@SLOW
@given(STAGES, st.sampled_from([1, 2, 8]), st.sampled_from([(1, 2), (2, 3), (2, 8)]))
def test_a_larger_micro_batch_never_takes_less(number: int, world_size: int, sizes: tuple[int, int]) -> None:
    less, more = (
        plan(*stage(number), f"train_micro_batch_size_per_gpu={size}", world_size=world_size) for size in sizes
    )
    assert allocated(less) <= allocated(more)


@SLOW
@given(
    STAGES,
    st.sampled_from([1, 2, 8]),
    st.sampled_from([("num_layers", 2, 5), ("hidden_size", 64, 128), ("vocab_size", 500, 2048)]),
)
def test_a_larger_model_never_takes_less(number: int, world_size: int, change: tuple[str, int, int]) -> None:
    key, *sizes = change
    less, more = (plan(*stage(number), f"model.{key}={size}", world_size=world_size) for size in sizes)
    assert allocated(less) <= allocated(more)


@SLOW
@given(st.integers(1, 3), st.sampled_from([1, 2, 8]), st.booleans())
def test_a_larger_bucket_never_takes_less(number: int, world_size: int, overlap: bool) -> None:
    overlaps = f"zero_optimization.overlap_comm={str(overlap).lower()}"
    less, more = (
        plan(*stage(number), overlaps, f"zero_optimization.reduce_bucket_size={size}", world_size=world_size)
        for size in (300_000, 5_000_000)
    )
    assert allocated(less) <= allocated(more)


@SLOW
@given(st.integers(1, 3), st.sampled_from([(1, 2), (2, 4), (4, 8), (8, 64)]), st.sampled_from([1, 4]))
def test_more_ranks_never_take_more_a_rank(number: int, worlds: tuple[int, int], accumulation: int) -> None:
    few, many = (plan(*stage(number, accumulation=accumulation), world_size=world_size) for world_size in worlds)
    # Padding: each parameter or group is cut into equal parts, whose last may be padded.
    alignment = 16 * worlds[1] * 60
    assert allocated(many) <= allocated(few) + alignment


@SLOW
@given(STAGES, st.sampled_from([3, 5, 8, 13]), st.sampled_from([50_000, 1_000_000]), st.booleans())
def test_no_rank_between_the_first_and_the_last_needs_more(number: int, world: int, bucket: int, robin: bool) -> None:
    """So a plan of these two is one of all."""
    turns = f"zero_optimization.round_robin_gradients={str(robin and number in (1, 2)).lower()}"
    words = (*stage(number), turns, f"zero_optimization.reduce_bucket_size={bucket}")
    every, two = (plan(*words, world_size=world, ranks=ranks) for ranks in (range(world), (0, world - 1)))
    assert allocated(every) == allocated(two)


def test_optimizer_offload_moves_the_states_to_the_host() -> None:
    here, there = plan(ds="zero2", world_size=1), plan(ds="zero2_offload", world_size=1)
    assert "optimizer states" not in there.worst.parts
    assert there.worst.host_bytes - here.worst.host_bytes > here.worst.parts["optimizer states"]


def test_what_is_copied_for_checkpoints_is_in_the_hosts_memory() -> None:
    never = ("checkpoints.at_end=false", "checkpoints.every_steps=0", "checkpoints.every_minutes=0")
    assert plan(*never, ds="zero2", world_size=1).worst.host_bytes == 0
    # 12 bytes of each of a million parameters; pinned memory comes in powers of two.
    assert plan(ds="zero2", world_size=1).worst.host_bytes == 2**24
    assert plan(ds="zero2", world_size=2).worst.host_bytes == 2**23


# Its token embedding, 6.4 million elements, is most of it.
WORDY = (
    *("model.vocab_size=50000", "model.num_layers=2", "train_micro_batch_size_per_gpu=1"),
    "zero_optimization.reduce_bucket_size=1000000",
)
EMBEDDING = 50_000 * 128
EFFICIENT = "zero_optimization.memory_efficient_linear"


def in_backward(plan: Plan) -> int:
    return next(phase.allocated_bytes for phase in plan.worst.phases if phase.phase == "backward")


@pytest.mark.parametrize(("loss", "more"), [("full", 2 * EMBEDDING), ("fused", 0)])
def test_stage_3_adds_the_gradients_of_tied_weights_in_place_where_its_linear_layers_or_the_loss_let_it(
    loss: str, more: int
) -> None:
    efficient, plain = (
        plan(*WORDY, f"model.loss={loss}", f"{EFFICIENT}={is_on}", ds="zero3", world_size=8, device=CPU, length=16)
        for is_on in ("true", "false")
    )
    assert in_backward(plain) - in_backward(efficient) == pytest.approx(more, rel=0.01, abs=0.01 * EMBEDDING)


def test_stage_3_with_offload_takes_the_norm_of_each_gradient_on_the_device_in_fp32() -> None:
    """Beside it the gradient in 16-bit, and what was accumulated, brought back from the host."""
    made = plan(*WORDY, ds="zero3_offload", world_size=1, length=16)
    assert (4 + 2 + 2) * EMBEDDING <= in_backward(made) < (8 + 2 + 2) * EMBEDDING


def test_checkpointing_on_the_cpu_moves_what_is_kept_to_the_host() -> None:
    made = plan("activation_checkpointing.cpu_checkpointing=true", "train_micro_batch_size_per_gpu=8")
    # One segment input a layer: 4 layers x 8 x 256 tokens x 128 x 2 bytes.
    assert made.worst.host_bytes >= 4 * 8 * 256 * 128 * 2
    assert made.worst.allocated.num_bytes < plan("train_micro_batch_size_per_gpu=8").worst.allocated.num_bytes


def test_dropout_keeps_masks_of_one_byte_on_cuda() -> None:
    # No checkpointing: every mask is kept.
    without, with_dropout = (plan(f"model.dropout={rate}", ds="bf16") for rate in ("0.0", "0.1"))
    micro, layers = with_dropout.micro_batch, 4
    masks = (2 * layers + 1) * micro * 256 * 128
    grown = with_dropout.worst.allocated.num_bytes - without.worst.allocated.num_bytes
    assert masks <= grown <= 3.5 * masks


def test_a_compiled_model_is_said_to_be_an_upper_bound() -> None:
    assert any("compile" in line for line in plan(ds="compile").upper_bounds)
    assert plan(ds="zero2").upper_bounds == ()


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Any) -> None:
    made = plan(world_size=4)
    write_plan(made, tmp_path)
    assert read_plan(tmp_path) == made
    assert dump_plan(made) == dump_plan(plan(world_size=4))
    assert read_plan(tmp_path / "nowhere") is None


def test_a_shape_seen_before_is_planned_without_torch() -> None:
    plan(world_size=2)
    code = (
        "import sys\n"
        "from dist_trainer.config.adapt import ANY_DEVICE\n"
        "from dist_trainer.config.request import Request\n"
        "from dist_trainer.config.resolve import resolve\n"
        "from dist_trainer.memory.planner.planner import PlannedDevice, make_plan\n"
        "run = resolve(Request(config='tiny', ds='zero2'), world_size=2, device=ANY_DEVICE)\n"
        "make_plan(run, world_size=2, device=PlannedDevice('cuda'))\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("name", "target"), [("small", 2.5e9), ("medium", 5e9), ("large", 10e9)])
@pytest.mark.parametrize("world_size", [2, 4, 8])
@pytest.mark.parametrize("ds", ["zero1", "zero2", "zero3", "memory_saver", "zero2_offload", "zero3_offload"])
def test_the_shipped_settings_meet_the_targets_on_two_gpus_and_more(
    name: str, target: float, world_size: int, ds: str
) -> None:
    assert needed(plan(config=name, ds=ds, world_size=world_size).worst).num_bytes <= target


@pytest.mark.parametrize(("name", "target"), [("small", 2.5e9), ("medium", 5e9), ("large", 10e9)])
@pytest.mark.parametrize("ds", ["memory_saver", "zero2_offload"])
def test_one_gpu_is_enough_with_sixteen_bit_states_or_offload(name: str, target: float, ds: str) -> None:
    assert needed(plan(config=name, ds=ds).worst).num_bytes <= target


@pytest.mark.parametrize("name", ["small", "medium", "large"])
@pytest.mark.parametrize("ds", ["zero2", "zero3", "memory_saver"])
def test_four_gpus_take_sixty_percent_off_the_baseline(name: str, ds: str) -> None:
    request = Request(config=name, no_optimize=True)
    baseline = make_plan(resolve(request, world_size=1, device=ANY_DEVICE), world_size=1, device=CUDA).worst
    four = plan(config=name, ds=ds, world_size=4).worst
    assert four.allocated.num_bytes <= 0.4 * baseline.allocated.num_bytes
    assert needed(four).num_bytes <= 0.4 * needed(baseline).num_bytes


def with_overlap(is_on: bool, ds: str = "zero2", device: PlannedDevice = CUDA) -> Plan:
    settings = (
        f"zero_optimization.overlap_comm={str(is_on).lower()}",
        "zero_optimization.reduce_bucket_size=50000000",
        "data_types.grad_accum_dtype=bf16",
    )
    return plan(*settings, ds=ds, config="small", world_size=4, device=device)


def test_overlap_takes_a_second_bucket_while_gradients_come() -> None:
    bucket_bytes = 2 * 50_000_000
    grown = in_backward(with_overlap(True, device=CPU)) - in_backward(with_overlap(False, device=CPU))
    assert grown == bucket_bytes


@pytest.mark.parametrize("ds", ["zero2", "zero3"])
def test_overlap_keeps_pools_apart_and_widens_the_band(ds: str) -> None:
    plain, overlapping = (with_overlap(is_on, ds).worst for is_on in (False, True))
    assert overlapping.reserved.num_bytes > plain.reserved.num_bytes
    # The band above the figure is its share of it, and what is freed late.
    assert plain.reserved.high_bytes == pytest.approx(1.06 * plain.reserved.num_bytes + HOPPERS_MORE, abs=1)
    assert overlapping.reserved.high_bytes > 1.06 * overlapping.reserved.num_bytes + HOPPERS_MORE + 2**20
    assert any(line.startswith("overlap_comm: ") for line in with_overlap(True, ds).assumptions)


def test_fp32_gradients_beside_sixteen_bit_weights_take_four_bytes_each() -> None:
    """At stage 1 all of them, beside those in 16-bit, are held until the step; at stage 2 those of one partition."""
    sums = "data_types.grad_accum_dtype=fp32"
    for number, world_size in ((1, 1), (2, 1), (2, 4)):
        low, high = (plan(*stage(number), *more, world_size=world_size, device=CPU) for more in ((), (sums,)))
        each = 2 + 4 if number == 1 else 4 / world_size
        assert at_step(high)["gradients"] == pytest.approx(each * parameters_of(low), rel=0.01)


def test_with_a_small_max_live_no_more_is_gathered_than_is_used() -> None:
    num_layers, block = 12, 12 * 128 * 128
    tight, no_reuse, loose = (
        plan(
            *(f"model.num_layers={num_layers}", "model.vocab_size=512", "train_micro_batch_size_per_gpu=1"),
            f"zero_optimization.stage3_max_live_parameters={live}",
            f"zero_optimization.stage3_max_reuse_distance={reuse}",
            "zero_optimization.stage3_param_persistence_threshold=0",
            ds="zero3",
            world_size=4,
            device=CPU,
            length=16,
        )
        for live, reuse in ((0, 0), (1_000_000_000, 0), (0, 1_000_000_000))
    )
    gathered = [
        max(phase.parts.get("gathered parameters", 0) for phase in made.worst.phases)
        for made in (tight, no_reuse, loose)
    ]
    # All at once; or what one block works with, which the backward pass holds twice, and the embedding.
    assert min(gathered[1:]) >= 2 * num_layers * block
    assert gathered[0] <= 2 * (2 * block + 2 * 512 * 128)


def parameters_of(made: Plan) -> int:
    """From the weights that one rank holds before the first step, at 2 bytes each."""
    first = next(phase for phase in made.worst.phases if phase.phase == "forward")
    return first.parts["parameters"] * (made.world_size if "gathered parameters" in first.parts else 1) // 2


def at_step(made: Plan) -> dict[str, int]:
    return next(phase.parts for phase in made.worst.phases if phase.phase == "step")


HOPPERS_MORE = 32 * 2**20 - 8519680


def outside(made: Plan) -> int:
    """What NVML shows and torch's allocator does not hold."""
    used = made.worst.device_used
    assert used is not None
    return used.num_bytes - made.worst.reserved.num_bytes


@pytest.mark.parametrize("device", [CUDA, CPU], ids=["gpu", "cpu"])
def test_parameters_are_gathered_as_they_are_held_whatever_gradients_are_reduced_in(device: PlannedDevice) -> None:
    made = (plan(*keys, ds="zero3", world_size=4, device=device) for keys in ((), ("communication_data_type=fp32",)))
    plain, reduced_in_fp32 = (
        next(phase.parts["gathered parameters"] for phase in one.worst.phases if phase.phase == "backward")
        for one in made
    )
    assert reduced_in_fp32 == plain


def test_nccl_is_counted_where_ranks_meet_and_more_over_several_hosts() -> None:
    alone, together = plan(world_size=1), plan(world_size=4)
    resolved = resolve(Request(config="tiny", ds="zero2"), world_size=4, device=ANY_DEVICE)
    apart = make_plan(resolved, world_size=4, device=CUDA, num_hosts=2)
    assert outside(together) - outside(alone) == 150 * 2**20
    assert outside(apart) - outside(together) == 96 * 2**20
    assert [any(line.startswith("NCCL: ") for line in made.assumptions) for made in (alone, together)] == [False, True]
    assert any("12 channels on 2 hosts" in line for line in apart.assumptions)


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [(None, 8519680), ("NVIDIA A100-SXM4-40GB", 8519680), ("NVIDIA H100 80GB HBM3", 2**25), ("h200", 2**25)],
)
def test_cublas_has_the_workspace_of_the_card(name: str | None, num_bytes: int) -> None:
    made = plan(device=PlannedDevice("cuda", name))
    assert made.worst.parts["workspaces"] == num_bytes


def test_pinned_host_memory_is_rounded_up_to_powers_of_two() -> None:
    on_host = "zero_optimization.offload_optimizer.pin_memory"
    pinned, pageable = (plan(f"{on_host}={is_on}", ds="zero2_offload").worst for is_on in ("true", "false"))
    assert pageable.host_bytes < pinned.host_bytes <= 2 * pageable.host_bytes
    assert pinned.allocated == pageable.allocated
    # One input of a segment a layer: 3 x 256 x 128 x 2 bytes become the next power of two.
    keeps = ("activation_checkpointing.cpu_checkpointing=true", "train_micro_batch_size_per_gpu=3")
    assert plan(*keeps).worst.host_bytes == 4 * 2**18


@pytest.mark.parametrize(
    ("number", "is_on", "streams"),
    [
        (2, False, {COMPUTE}),
        (2, True, {COMPUTE, REDUCTION}),
        (3, False, {COMPUTE}),
        (3, True, {COMPUTE, REDUCTION, GATHERING}),
    ],
)
def test_overlap_allocates_on_streams_of_its_own(number: int, is_on: bool, streams: set[int]) -> None:
    overlap = f"zero_optimization.overlap_comm={str(is_on).lower()}"
    resolved = resolve(
        Request(config="tiny", ds="zero2", settings=(*stage(number), overlap)), world_size=4, device=ANY_DEVICE
    )
    found = read_settings(resolved.deepspeed, cuda=True)
    trace = kept.get(trace_spec(resolved, found, sequence_length=64, cuda=True))
    ledger = simulate(trace, found, rank=0, world_size=4, cuda=True, keep_events=True).device
    assert ledger.events is not None
    assert {stream for _, _, stream in ledger.events} == streams
