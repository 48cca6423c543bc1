"""Keys that move memory, each planned and measured on the real engine of a small model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dist_trainer.benchmark import plan_error
from dist_trainer.benchmark.plan_error import Case, Model

# Whose matrices are larger than what stage 3 keeps, and than the bucket.
SQUAT = Model(
    "squat",
    "tiny",
    32,
    2,
    ("model.num_layers=3", "model.hidden_size=256", "model.num_heads=4", "model.vocab_size=2048"),
)
STAGE3 = Case(model=SQUAT, stage=3, world_size=4, bucket=100_000, max_live=100_000)
ALL_LIVE = replace(STAGE3, max_live=None)
STAGE2 = replace(ALL_LIVE, stage=2)
STAGE1 = replace(ALL_LIVE, stage=1)
ZERO = "zero_optimization."
# oneDNN's scratch memory, which no plan has, depends on the CPU: 0.6% of these peaks with AVX512-BF16, none with AMX.
TOLERANCE = 0.01
AUTOCAST = ("torch_autocast.enabled=true", "torch_autocast.dtype=bfloat16")


@pytest.fixture(scope="module")
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        (STAGE3, ()),
        (replace(STAGE3, checkpointing=False), (ZERO + "memory_efficient_linear=false",)),
        (STAGE3, (ZERO + "zero_hpz_partition_size=2",)),
        (ALL_LIVE, (ZERO + "stage3_allgather_sequential=true",)),
        (ALL_LIVE, (ZERO + "stage3_use_all_reduce_for_fetch_params=true",)),
        (replace(STAGE2, bucket=3_000_000), (ZERO + "use_multi_rank_bucket_allreduce=false",)),
        (STAGE1, ("bf16.immediate_grad_update=true", "data_types.grad_accum_dtype=fp32")),
        (replace(STAGE2, precision="fp32"), AUTOCAST),
        (replace(ALL_LIVE, precision="fp32"), AUTOCAST),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else ",".join(value) or "as it is",
)
def test_a_key_that_moves_memory_is_counted(
    measurements: Path, monkeypatch: pytest.MonkeyPatch, case: Case, settings: tuple[str, ...]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(measurements))
    row = plan_error.compare(case, settings=settings)
    assert abs(row.error) < TOLERANCE, row.phase_errors
    # Small phases, and forward passes under autocast with a tiny max_live, lie a little further off.
    assert all(abs(error) < 0.02 for error in row.phase_errors.values()), row.phase_errors


@pytest.mark.parametrize("world_size", [1, 2])
def test_stage_3_gathers_each_parameter_once_before_the_first_pass(
    measurements: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(measurements))
    row = plan_error.compare(replace(ALL_LIVE, world_size=world_size))
    assert abs(row.phase_errors["init"]) < 0.001
