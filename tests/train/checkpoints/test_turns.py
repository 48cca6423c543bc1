"""When a checkpoint is saved and what is said of it, by a clock and a saver of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_trainer.checkpoints.cadence import Failures, Save
from dist_trainer.checkpoints.history import History
from dist_trainer.checkpoints.position import Position
from dist_trainer.config.run import CheckpointConfig
from dist_trainer.errors import RunError
from dist_trainer.train.checkpoints import turns
from dist_trainer.train.checkpoints.pacing import Pacing
from dist_trainer.train.checkpoints.saving import Outcome
from dist_trainer.train.checkpoints.turns import Turns


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Saver:
    """Each save ends when `num_steps` steps have gone by, or when it is waited for. `problem`: why all fail."""

    device = torch.device("cpu")

    def __init__(self, *, num_steps: int = 0, problem: str | None = None) -> None:
        self.num_steps = num_steps
        self.problem = problem
        self.begun: list[int] = []
        self.waited_for: list[int] = []
        self.limits_s: list[float] = []
        self.under_way: int | None = None
        self.age = 0

    def step(self) -> None:
        self.age += 1

    @property
    def has_ended(self) -> bool:
        return self.under_way is not None and self.age >= self.num_steps

    @property
    def is_busy(self) -> bool:
        return self.under_way is not None and not self.has_ended

    @property
    def is_begun(self) -> bool:
        return self.under_way is not None

    def before_update(self) -> float:
        return 0.0

    def begin(self, position: Position) -> None:
        assert self.under_way is None
        self.begun.append(position.step)
        self.under_way, self.age = position.step, 0

    def save(self, position: Position) -> Outcome:
        self.begin(position)
        outcome = self.finish()
        assert outcome is not None
        return outcome

    def finish(self, *, limit_s: float | None = None) -> Outcome | None:
        if limit_s is not None:
            self.limits_s.append(limit_s)
        if self.under_way is None:
            return None
        if self.is_busy:
            self.waited_for.append(self.under_way)
        step, self.under_way = self.under_way, None
        folder = None if self.problem else Path(f"step-{step}")
        return Outcome(step, folder, self.problem, 0.1, 2.0, 1000)


class Run:
    """Ten steps of 25 s, and a phase's end."""

    step_s = 25.0

    def __init__(
        self, saver: Saver, monkeypatch: pytest.MonkeyPatch, *, earlier: History | None = None, **config: Any
    ) -> None:
        self.saver = saver
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.notes: list[str] = []
        self.now_s = 1000.0
        monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        recorder: Any = SimpleNamespace(event=lambda kind, text, **facts: self.events.append((kind, text, facts)))
        display: Any = SimpleNamespace(note=self.notes.append)
        own: Any = saver
        made = CheckpointConfig(**{"at_end": False, **config})
        pacing = None if earlier is None else Pacing(earlier)
        self.turns = Turns(own, made, resumed_step=0, recorder=recorder, display=display, pacing=pacing)

    def go(self, num_steps: int = 10) -> list[int]:
        """The steps at which a save was begun."""
        for step in range(1, num_steps + 1):
            self.turns.before_update()
            # A step beside a save is slower.
            self.step_s = 30.0 if self.saver.is_busy else 25.0
            self.now_s += self.step_s
            self.saver.step()
            self.turns.after_step(Position(step), self.step_s)
        self.turns.after_phase(Position(num_steps))
        return self.saver.begun


def test_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Run(Saver(), monkeypatch, every_steps=4).go() == [4, 8]


def test_by_minutes_from_the_beginning_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Run(Saver(), monkeypatch, every_minutes=1.0).go() == [3, 6, 9]


NEW = History(Failures(), ())
OLD = History(Failures(9, 7200.0), (Save(1.5, 2.0),))


def test_automatically_the_first_one_shows_what_a_save_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Saver(num_steps=2), monkeypatch, every="auto", earlier=NEW, at_end=True)
    assert run.go(30) == [3, 23, 30]
    assert run.notes[0] == "checkpoint due first after 1m 00s, to see what a save costs"
    # By Daly's formula, for half a failure in 1.55 hours and two minutes.
    assert run.notes[1] == "checkpoint due every 8m 03s: a save costs 10.1s, 0 failures in 2m 15s"
    costs = [facts.get("cost_s") for kind, _, facts in run.events if kind == "checkpoint"]
    # Held up for 0.1 s, and two steps that were slower by 5 s.
    assert costs == [10.1, 10.1, None]


def test_automatically_a_run_begins_with_what_its_earlier_starts_have_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Saver(), monkeypatch, every="auto", earlier=OLD)
    assert run.go(3) == [3]
    assert run.notes[0] == "checkpoint due every 1m 04s: a save costs 1.5s, 9 failures in 2h 00m"
    assert run.events[0][:2] == ("cadence", run.notes[0])


def test_automatically_none_is_due_while_another_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Saver(num_steps=8), monkeypatch, every="auto", earlier=OLD)
    assert run.go(12) == [3, 12], "after 64 s it was due in step 6"
    assert run.saver.waited_for == [12], "at the end of the phase"


def test_what_a_save_at_a_phases_end_cost_is_not_reckoned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Saver(num_steps=99), monkeypatch, every="auto", earlier=NEW, at_end=True)
    run.go(2)
    assert [facts.get("cost_s") for kind, _, facts in run.events if kind == "checkpoint"] == [None]
    assert len(run.notes) == 1


@pytest.mark.parametrize(("every_minutes", "answer", "saved"), [(1.0, 0, []), (1000.0, 1, [*range(1, 11)])])
def test_by_minutes_rank_0_decides_whatever_this_ranks_clock_says(
    monkeypatch: pytest.MonkeyPatch, every_minutes: float, answer: int, saved: list[int]
) -> None:
    def broadcast(flag: torch.Tensor, *, src: int) -> None:
        assert src == 0
        flag.fill_(answer)

    monkeypatch.setattr(dist, "broadcast", broadcast)
    assert Run(Saver(), monkeypatch, every_minutes=every_minutes).go() == saved


def test_the_end_is_saved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Run(Saver(), monkeypatch, at_end=True).go() == [10]
    assert Run(Saver(), monkeypatch, at_end=True, every_steps=5).go() == [5, 10]


def test_a_save_goes_on_while_steps_are_taken_and_is_told_when_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Saver(num_steps=3), monkeypatch, every_steps=4)
    assert run.go() == [4, 8]
    assert run.saver.waited_for == [8], "at the end of the phase"
    assert [(kind, facts["step"], facts["held_s"]) for kind, _, facts in run.events] == [
        ("checkpoint", 4, 0.1),
        ("checkpoint", 8, 0.1),
    ]


def test_one_that_is_due_while_another_is_written_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Saver(num_steps=99), monkeypatch, every_steps=4)
    assert run.go() == [4, 8]
    assert run.saver.waited_for == [4, 8]


def test_or_is_left_out_where_the_run_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Saver(num_steps=5), monkeypatch, every_steps=4, when_busy="skip")
    assert run.go(12) == [4, 12]


def test_in_the_foreground_each_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Saver(num_steps=99), monkeypatch, every_steps=4, background=False)
    run.go()
    assert run.saver.waited_for == [4, 8]


def test_a_save_that_fails_is_told_and_tried_again_at_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Saver(problem="the disk is full"), monkeypatch, every_steps=5, at_end=True)
    assert run.go() == [5, 10, 10]
    line = "the checkpoint of step 5 was not saved: the disk is full"
    assert run.events[0] == ("notice", line, {"step": 5})
    assert run.notes[0] == f"notice     {line}"


def test_or_stops_the_run_where_the_run_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Saver(problem="the disk is full"), monkeypatch, every_steps=5, on_failure="stop")
    with pytest.raises(RunError, match="the checkpoint of step 5 was not saved: the disk is full"):
        run.go()
    assert run.saver.begun == [5]


def test_of_a_run_that_fails_the_save_under_way_is_finished_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Saver(num_steps=99), monkeypatch, every_steps=1)
    run.turns.after_step(Position(1), 25.0)
    run.turns.finish_what_was_begun()
    assert (run.saver.waited_for, run.saver.limits_s) == ([1], [turns.FAILING_LIMIT_S])
    assert run.events == [], "the failure alone is told"
