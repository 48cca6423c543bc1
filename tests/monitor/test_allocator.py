from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ranks
import torch

from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.errors import UserError
from dist_trainer.monitor.allocator import (
    OUTSIDE,
    AllocatorProfile,
    AllocatorWatch,
    MemoryEvent,
    mark_phases,
    peaks_of,
)
from dist_trainer.records import MemoryRecord, memory_file, read_records
from dist_trainer.train import before_meeting, process

KIB = 1024


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KINETO_LOG_LEVEL", "6")
        process.quiet_profiler()
        yield


def floats(num_kib: int) -> torch.Tensor:
    return torch.empty(num_kib * KIB // 4)


class Engine:
    """Two micro batches a step; each call allocates and frees a size of its own."""

    def __init__(self) -> None:
        self.weights = floats(1000)
        self.states: torch.Tensor | None = None
        self.kept: torch.Tensor | None = None
        self.micro_steps = 0

    def __call__(self) -> torch.Tensor:
        return self.forward()

    def forward(self) -> torch.Tensor:
        self.kept = floats(300)
        return self.kept

    def backward(self, loss: torch.Tensor) -> None:
        del loss
        floats(500)
        self.kept = None

    def step(self) -> None:
        self.micro_steps += 1
        if self.micro_steps % 2:
            return
        self.states = floats(2000)
        floats(40)

    def is_gradient_accumulation_boundary(self) -> bool:
        return self.micro_steps % 2 == 1

    def train_step(self) -> None:
        for _ in range(2):
            self.backward(self.forward())
            self.step()


def test_each_phase_has_its_own_exact_peak() -> None:
    held = floats(77)
    profile = AllocatorProfile()
    profile.start()
    engine = Engine()
    unmark = mark_phases(engine, profile)
    engine.train_step()
    profile.stop()
    unmark()
    peaks = profile.peaks()
    assert peaks.peaks_bytes == {
        "init": 1000 * KIB,
        "forward": 1300 * KIB,
        "backward": 1800 * KIB,
        "step": 3040 * KIB,
    }
    assert peaks.peak_bytes == 3040 * KIB
    assert peaks.end_live_bytes == 3000 * KIB
    assert [phase for phase, _ in peaks.marks_live_bytes] == [
        "init", "forward", "backward", "forward", "backward", "step",
    ]  # fmt: skip
    assert "forward" not in vars(engine), "the engine has its own methods back"
    assert held.numel()


def test_what_was_there_before_does_not_count_and_what_is_released_does() -> None:
    before = floats(900)
    profile = AllocatorProfile()
    profile.start()
    first = floats(100)
    del before, first
    floats(30)
    profile.stop()
    assert profile.peaks().peak_bytes == 100 * KIB
    assert profile.peaks().end_live_bytes == 0


def test_an_allocation_names_the_operators_around_it() -> None:
    profile = AllocatorProfile()
    profile.start()
    a = torch.ones(64, 64)
    torch.nn.functional.linear(a, a)
    profile.stop()
    ops = [event.op for event in profile.events() if event.num_bytes > 0]
    assert ops == ["aten::ones/aten::empty", "aten::linear/aten::matmul/aten::mm"]


def test_a_phase_counts_what_it_found() -> None:
    events = [
        MemoryEvent(1, 0, 0, "init", ""),
        MemoryEvent(2, 10, 10, "init", "a"),
        MemoryEvent(3, -4, 6, "init", "a"),
        MemoryEvent(4, 0, 6, "step", ""),
        MemoryEvent(5, -6, 0, "step", "a"),
        MemoryEvent(6, 0, 0, OUTSIDE, ""),
        MemoryEvent(7, 99, 99, OUTSIDE, "checkpoint"),
    ]
    assert peaks_of(events).peaks_bytes == {"init": 10, "step": 6}


def test_a_watch_ends_with_the_second_step_and_leaves_out_what_is_between_steps() -> None:
    watch = AllocatorWatch.begin()
    engine = Engine()
    watch.watch(engine)
    engine.train_step()
    assert not watch.after_step()
    floats(50_000)
    engine.train_step()
    assert watch.after_step()
    # In the second step the states of the first are there, and are made again beside the old ones.
    assert watch.end() == {
        "init": 1000 * KIB,
        "forward": 3300 * KIB,
        "backward": 3800 * KIB,
        "step": 5000 * KIB,
    }


def test_a_watch_can_end_after_one_step() -> None:
    watch = AllocatorWatch.begin()
    engine = Engine()
    watch.watch(engine)
    engine.train_step()
    watch.after_step()
    assert watch.end()["step"] == 3040 * KIB


def test_on_a_gpu_it_is_refused() -> None:
    with pytest.raises(UserError, match="--measure-allocator"):
        before_meeting._refuse_to_measure_on(ANY_DEVICE)


@pytest.mark.integration
def test_a_training_run_records_its_peaks_once(tmp_path: Path) -> None:
    small = ("--set", "zero_optimization.reduce_bucket_size=100000", "--set", "zero_optimization.stage=1")
    run_dir = ranks.train(tmp_path, "run", "--max-steps", "3", "--measure-allocator", *small, world_size=1)
    records = list(read_records(run_dir / "records" / memory_file(0), MemoryRecord))
    peaks = [record.allocator_peaks_bytes for record in records if record.allocator_peaks_bytes is not None]
    assert len(peaks) == 1
    assert list(peaks[0]) == ["init", "forward", "backward", "step"]
    # Weights, master weights, both moments and the gradients: 93,056 parameters, of which 14 to 22 bytes each.
    assert 14 * 93_056 < peaks[0]["step"] < 24 * 93_056
    assert max(peaks[0].values()) < records[-1].rss_bytes
