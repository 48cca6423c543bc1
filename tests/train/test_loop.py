"""The loop by a clock and an engine of the test's own: what is done after which step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from one_rank import ALONE, MODEL, Trained

from dist_trainer.checkpoints.position import Position
from dist_trainer.config.resolve import Phase
from dist_trainer.data.sampler import DataPlace
from dist_trainer.data.tokens import open_tokens
from dist_trainer.train import hygiene, loop
from dist_trainer.train.loop import PhaseData, Run, nothing_left, train_phases
from dist_trainer.train.preemption import Preemption
from dist_trainer.train.step import StepResult

WARM = Phase(1, "warm", 128, 2, 4096, "stdlib")
MAIN = Phase(2, "main", 256, 3, 4096, "stdlib")


def trained(*phases: str) -> Position:
    position = Position()
    for number, phase in enumerate(phases, start=1):
        position = position.after_step(phase, num_tokens=4096, order="order", place=DataPlace(0, 128 * number, 128))
    return position


def test_a_run_at_its_end_says_that_its_phases_are_done() -> None:
    told = nothing_left(trained("warm", "warm", "main", "main", "main"), [WARM, MAIN], None)
    assert told == "nothing left to do: the run stands at step 5, and that is the end of its phases"


def test_one_of_a_single_phase_speaks_of_that() -> None:
    assert nothing_left(trained("warm", "warm"), [WARM], 9).endswith("step 2, and that is the end of its phase")


def test_one_that_was_to_stop_earlier_names_the_switch() -> None:
    told = nothing_left(trained("warm"), [WARM, MAIN], 1)
    assert told == "nothing left to do: the run stands at step 1, and --max-steps is 1"


class Clock:
    """All of Python's clocks, which stand still but where the test moves them."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def time(self) -> float:
        return self.now_s

    monotonic = perf_counter = time


class Rank:
    """One rank whose steps take the time they are told; 10 steps, and what was done after which of them."""

    step_s = 25.0

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.folder = Clock(), folder
        self.run: Run | None = None
        self.turns: list[str] = []
        self.collected: list[int] = []
        self.emptied: list[int] = []
        self.noted: list[str] = []
        monkeypatch.setattr(loop, "time", self.clock)
        monkeypatch.setattr(loop, "train_step", self._take_step)
        monkeypatch.setattr(hygiene, "empty_cache", lambda: self.emptied.append(self.step))

    @property
    def step(self) -> int:
        assert self.run is not None
        return self.run.position.step

    def train(self, *settings: str, config: dict[str, Any] | None = None) -> None:
        """With these settings of the two files; `config` is the engine's own."""
        rng = np.random.default_rng(0)
        for split in ("train", "val"):
            rng.integers(64, size=1000, dtype=np.uint16).tofile(self.folder / f"{split}.bin")
        engine = SimpleNamespace(
            device=torch.device("cpu"),
            monitor=SimpleNamespace(enabled=False),
            config=config or {},
            collect_python_gc=lambda: self.collected.append(self.step),
        )
        nothing: Any = SimpleNamespace(**dict.fromkeys(("phase", "step", "memory", "event"), lambda *_, **__: None))
        nothing.note = self.noted.append
        self.run = Run(
            resolved=Trained(settings=settings).resolved(self.folder),
            rank=ALONE,
            engine=engine,
            data=[PhaseData(open_tokens(self.folder, "train", MODEL["vocab_size"]), None)],
            num_workers=0,
            run_dir=self.folder / "run",
            recorder=nothing,
            display=nothing,
            position=Position(),
            checkpoints=self._turns(),
            preemption=Preemption(lambda _: None),
            max_steps=None,
        )
        train_phases(self.run)
        assert self.step == 10

    def _turns(self) -> Any:
        return SimpleNamespace(
            before_update=lambda: self.turns.append("before update"),
            after_step=lambda position, step_s: self.turns.append(f"after step {position.step}"),
            after_phase=lambda position: self.turns.append(f"after phase, step {position.step}"),
        )

    def _take_step(
        self,
        engine: Any,
        batches: Iterator[Any],
        *,
        step: int,
        before_micro_batch: Callable[[], None],
        before_update: Callable[[], None],
    ) -> StepResult:
        assert step == self.step + 1
        next(batches)
        before_micro_batch()
        before_update()
        self.clock.now_s += self.step_s
        return StepResult(
            loss=1.0, grad_norm=None, learning_rate=0.1, loss_scale=None, data_wait_s=0.0, step_s=self.step_s
        )


@pytest.fixture
def rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rank]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield Rank(tmp_path, monkeypatch)
    dist.destroy_process_group()


def test_checkpoints_have_their_turns_before_each_update_after_each_step_and_after_the_phase(rank: Rank) -> None:
    rank.train()
    each = [turn for step in range(1, 11) for turn in ("before update", f"after step {step}")]
    assert rank.turns == [*each, "after phase, step 10"]


@pytest.mark.parametrize(
    ("config", "every_steps", "collected"),
    [({"disable_python_gc": True}, 3, [3, 6, 9]), ({"disable_python_gc": True}, 0, []), ({}, 3, [])],
)
def test_garbage_is_collected_at_its_interval_where_the_json_keeps_the_collector_out_of_the_steps(
    config: dict[str, Any], every_steps: int, collected: list[int], rank: Rank
) -> None:
    rank.train(f"memory.gc_every_steps={every_steps}", config=config)
    assert rank.collected == collected


@pytest.mark.parametrize(("every_steps", "emptied"), [(4, [0, 4, 8, 10]), (0, [0, 10])])
def test_the_allocators_cache_is_emptied_before_the_first_step_at_its_interval_and_after_a_phase(
    every_steps: int, emptied: list[int], rank: Rank
) -> None:
    rank.train(f"memory.empty_cache_every_steps={every_steps}")
    assert rank.emptied == emptied
