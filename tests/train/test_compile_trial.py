"""torch.compile on trial: what is kept and what is taken back, by an engine whose steps take what they are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from one_rank import one_rank
from ranks import losses, train

from dist_trainer.records import EVENTS_FILE, Event, read_records
from dist_trainer.train.compile_trial import CompileTrial

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank():
        yield


class Engine:
    """`fails`: its compiler does."""

    device = torch.device("cpu")

    def __init__(self, *, fails: bool = False) -> None:
        self.module: Any = torch.nn.Linear(2, 2)
        self.fails = fails
        self.num_compilations = 0

    def compile(self) -> None:
        self.num_compilations += 1
        self.module._compiled_call_impl = self._failing if self.fails else self.module._call_impl

    def _failing(self, *arguments: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException

        raise TorchDynamoException("C++ compile error\nno such flag")

    @property
    def is_compiled(self) -> bool:
        return self.module._compiled_call_impl is not None

    def call(self) -> None:
        self.module(torch.ones(1, 2))


def run(engine: Engine, *stretches: tuple[str, float, int]) -> list[str]:
    """What is told in stretches of steps: the phase, how long each takes, how many."""
    told: list[str] = []
    trial = CompileTrial(engine, told.append)
    for phase, step_s, num_steps in stretches:
        for _ in range(num_steps):
            engine.call()
            trial.after_step(phase, step_s)
    return told


def test_it_is_kept_where_the_median_step_becomes_faster() -> None:
    engine = Engine()
    told = run(engine, ("a", 0.5, 7), ("a", 9.0, 2), ("a", 0.25, 5))
    assert told == ["torch.compile is kept: the median step takes 0.25 s compiled, and 0.5 s uncompiled (5 steps each)"]
    assert engine.is_compiled


@pytest.mark.parametrize("compiled_s", [0.5, 0.75])
def test_it_is_taken_back_where_it_does_not(compiled_s: float) -> None:
    engine = Engine()
    (line,) = run(engine, ("a", 0.5, 7), ("a", compiled_s, 20))
    assert "is taken back, the model runs uncompiled: the median step takes" in line
    assert not engine.is_compiled


def test_the_first_steps_of_a_stretch_do_not_count() -> None:
    (line,) = run(Engine(), ("a", 9.0, 2), ("a", 0.25, 5), ("a", 9.0, 2), ("a", 0.5, 5))
    assert "0.5 s compiled, and 0.25 s uncompiled" in line


def test_another_phase_begins_the_trial_anew_and_compiles_once() -> None:
    engine = Engine()
    assert run(engine, ("a", 0.5, 10), ("b", 0.5, 5)) == []
    assert not engine.is_compiled
    (line,) = run(engine, ("a", 0.5, 9), ("b", 0.8, 7), ("b", 0.7, 7))
    assert "0.7 s compiled, and 0.8 s uncompiled" in line


def test_a_compiler_that_fails_costs_a_notice_and_no_step() -> None:
    engine = Engine(fails=True)
    (line,) = run(engine, ("a", 0.5, 12))
    assert line.startswith("torch.compile is taken back, the model runs uncompiled: ")
    assert "C++ compile error" in line
    assert not engine.is_compiled


def test_errors_of_the_model_itself_are_not_the_compilers() -> None:
    engine = Engine()
    trial = CompileTrial(engine, print)
    for _ in range(7):
        trial.after_step("a", 0.5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        engine.module(torch.ones(1, 3))


def test_a_run_on_trial_trains_as_one_that_is_not(tmp_path: Path) -> None:
    phases = "phases=" + json.dumps([{"name": "only", "sequence_length": 32, "steps": 16}])
    plain = train(tmp_path, "plain", "--set", phases, "--precision", "fp32")
    tried = train(tmp_path, "tried", "--set", phases, "--precision", "fp32", "--compile", "auto")
    assert losses(tried) == pytest.approx(losses(plain), abs=1e-4)
    events = read_records(tried / "records" / EVENTS_FILE, Event)
    assert sum(event.kind == "notice" and event.message.startswith("torch.compile is ") for event in events) == 1
