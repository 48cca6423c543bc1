from __future__ import annotations

import pytest

from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.memory.engines.settings import Settings, read_settings
from dist_trainer.memory.fit.cost import Cost, assumptions, estimate, sent_bytes
from dist_trainer.memory.gpus import speeds

NUM_PARAMETERS = 10**8


def read(*settings: str, world_size: int = 4, ds: str = "zero2") -> Settings:
    resolved = resolve(Request(ds=ds, settings=settings), world_size=world_size, device=ANY_DEVICE)
    return read_settings(resolved.deepspeed, cuda=True)


def cost(*settings: str, world_size: int = 4, ds: str = "zero2", gpu: str | None = None) -> Cost:
    return estimate(
        read(*settings, world_size=world_size, ds=ds),
        num_parameters=NUM_PARAMETERS,
        num_layers=12,
        sequence_length=1024,
        world_size=world_size,
        speeds=speeds(gpu),
    )


def test_checkpointing_runs_the_forward_pass_once_more() -> None:
    assert cost(ds="bf16").recompute_s == 0
    assert cost().recompute_s == pytest.approx(cost().compute_s / 3)
    assert cost().launch_s > 0


def test_six_flops_a_parameter_and_token_at_the_share_of_the_cards_peak() -> None:
    tokens = 8 * 1024
    assert cost(gpu="a100-40g").compute_s == pytest.approx(6 * NUM_PARAMETERS * tokens / (312e12 * 0.4))
    assert cost(ds="baseline", gpu="a100-40g").compute_s == pytest.approx(
        6 * NUM_PARAMETERS * 2 * 1024 / (19.5e12 * 0.6)
    )


@pytest.mark.parametrize(
    ("ds", "bytes_a_parameter"),
    # Of 2 bytes each: reduced once, and gathered once; reduced at each of 8 micro batches; gathered twice at each.
    [("bf16", 2 * 2), ("zero1", 2 * 2 + 2), ("zero2", 2 * 2 * 8 + 2), ("zero3", 3 * 2 * 8)],
)
def test_what_one_rank_sends_in_a_step(ds: str, bytes_a_parameter: int) -> None:
    assert sent_bytes(read(ds=ds), NUM_PARAMETERS, 4) == pytest.approx(bytes_a_parameter * NUM_PARAMETERS * 3 / 4)
    assert sent_bytes(read(ds=ds, world_size=1), NUM_PARAMETERS, 1) == 0


def test_fp32_sums_of_stage_1_are_reduced_in_fp32() -> None:
    settings = read("data_types.grad_accum_dtype=fp32", ds="zero1")
    assert sent_bytes(settings, NUM_PARAMETERS, 4) == pytest.approx((2 * 4 + 2) * NUM_PARAMETERS * 3 / 4)


def test_offload_costs_transfers_and_an_update_on_the_host() -> None:
    assert cost().offload_s == 0
    optimizer, everything = cost(ds="zero2_offload"), cost(ds="zero3_offload")
    assert 0 < optimizer.offload_s < everything.offload_s
    assert optimizer.update_s == everything.update_s == 0 < cost().update_s
    assert cost(ds="zero2_offload", world_size=8).offload_s < optimizer.offload_s


def test_a_larger_micro_batch_at_the_same_batch_never_costs_more() -> None:
    for ds in ("bf16", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"):
        costs = [
            cost(f"train_micro_batch_size_per_gpu={size}", f"gradient_accumulation_steps={16 // size}", ds=ds).total_s
            for size in (1, 2, 4, 8, 16)
        ]
        assert costs == sorted(costs, reverse=True)


def test_the_parts_add_up() -> None:
    assert sum(cost().parts.values()) == cost().total_s


def test_what_the_estimate_stands_on_is_said() -> None:
    assert "rtx3090 by its data sheet, 71 TFLOP/s" in assumptions(speeds("rtx3090"), "rtx3090")
    assert "nothing is known" in assumptions(None, None)
