"""The real engine under a fake process group, each in a process of its own."""

from __future__ import annotations

import pytest

from dist_trainer.benchmark.measure import Measurement, Spec, measure_apart
from dist_trainer.config.request import Request

SMALL_BUCKETS = ("zero_optimization.reduce_bucket_size=100000", "zero_optimization.allgather_bucket_size=100000")
SHAPE = ("model.num_layers=2", "model.hidden_size=64", "model.vocab_size=512", "gradient_accumulation_steps=1")


def spec(stage: int, *, rank: int = 0, world_size: int = 2, settings: tuple[str, ...] = ()) -> Spec:
    request = Request(ds="bf16", settings=(*SHAPE, *SMALL_BUCKETS, f"zero_optimization.stage={stage}", *settings))
    return Spec(request, rank=rank, world_size=world_size, sequence_length=32)


@pytest.fixture(scope="module")
def zero2() -> Measurement:
    return measure_apart(spec(2))


def test_every_phase_is_measured_and_the_states_appear_in_the_first_step(zero2: Measurement) -> None:
    num = zero2.num_parameters
    assert list(zero2.peaks_bytes) == ["init", "forward", "backward", "step"]
    assert zero2.peak_bytes == max(zero2.peaks_bytes.values())
    # 16-bit parameters, and half of the fp32 master weights; then half of both moments too.
    assert zero2.init_live_bytes == pytest.approx(2 * num + 4 * num / 2, rel=0.01)
    assert zero2.first_step_live_bytes == pytest.approx(2 * num + 12 * num / 2, rel=0.02)


def test_measuring_again_gives_the_same_to_the_byte(zero2: Measurement) -> None:
    again = measure_apart(spec(2))
    assert again.peaks_bytes == zero2.peaks_bytes
    assert again.first_step_live_bytes == zero2.first_step_live_bytes


def test_any_rank_of_a_large_world_can_be_measured() -> None:
    last = measure_apart(spec(3, rank=63, world_size=64))
    assert last.first_step_live_bytes < 4 * last.num_parameters


def test_a_spec_can_be_read_from_json() -> None:
    values = {
        "request": {"config": "tiny", "ds": "zero2", "settings": ["seed=3"], "switches": {"micro_batch": 2}},
        "rank": 1,
        "world_size": 4,
        "sequence_length": 64,
    }
    found = Spec.from_json(values)
    assert found.request.settings == ("seed=3",)
    assert found.request.switches.micro_batch == 2
    assert (found.rank, found.world_size, found.sequence_length, found.num_steps) == (1, 4, 64, 2)
