"""Told to stop, all ranks do so at the same turning point, having saved, or at once where there is nothing to save."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from dist_trainer.train import preemption
from dist_trainer.train.preemption import Preemption, Stopped

WAIT_S = 30.0


class Ended(BaseException):
    """In place of the process's end."""


class Rank:
    """One rank on two threads: one passes turning points, the other listens."""

    def __init__(self, number: int, store: Any, world_size: int, *, limit_s: float = WAIT_S) -> None:
        self.ended: list[signal.Signals] = []
        self.stopped_at: int | None = None
        self.num_passed = 0
        self.preemption = Preemption(self._end)
        self.preemption.join(store, rank=number, world_size=world_size, limit_s=limit_s)
        self._is_over = threading.Event()

    def _end(self, number: signal.Signals) -> None:
        self.ended.append(number)
        self._is_over.set()
        raise Ended

    def pass_turns(self, *, steps: bool, pause: Callable[[], None] = lambda: None, most: int = 10**9) -> None:
        try:
            while self.num_passed < most and not self._is_over.is_set():
                self.preemption.turn()
                self.num_passed += 1
                if steps:
                    self.preemption.stepped()
                pause()
        except Stopped:
            self.stopped_at = self.num_passed
        self._is_over.set()

    def listen(self) -> None:
        with contextlib.suppress(Ended):
            while not self._is_over.is_set():
                time.sleep(min(0.002, self.preemption.look()))

    def hear(self, number: signal.Signals) -> None:
        with contextlib.suppress(Ended):
            self.preemption.hear(number)


def go(ranks: list[Rank], meanwhile: Callable[[], None], **how: Any) -> None:
    passing = [threading.Thread(target=rank.pass_turns, kwargs=how, daemon=True) for rank in ranks]
    listening = [threading.Thread(target=rank.listen, daemon=True) for rank in ranks]
    for thread in (*passing, *listening):
        thread.start()
    meanwhile()
    for thread in listening:
        thread.join(WAIT_S)
    if not any(rank.ended for rank in ranks):
        # A rank that has ended may have been waiting at a turning point.
        for thread in passing:
            thread.join(WAIT_S)


def of_one_store(world_size: int, **how: Any) -> list[Rank]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    return [Rank(number, store, world_size, **how) for number in range(world_size)]


@pytest.mark.parametrize("seed", range(8))
def test_whoever_hears_the_signal_all_stop_at_the_same_turning_point(seed: int) -> None:
    random_ = random.Random(seed)
    ranks = of_one_store(5)
    hearing = random_.sample(ranks, random_.randint(1, 5))

    def hear() -> None:
        time.sleep(random_.uniform(0.01, 0.05))
        for rank in hearing:
            rank.hear(signal.SIGTERM)
            time.sleep(random_.uniform(0.0, 0.003))

    go(ranks, hear, steps=True, pause=lambda: time.sleep(random_.uniform(0.0, 0.002)))
    stops = {rank.stopped_at for rank in ranks}
    assert len(stops) == 1 and None not in stops
    assert not any(rank.ended for rank in ranks)


def test_before_any_rank_has_ended_a_step_all_end_at_once() -> None:
    ranks = of_one_store(3)
    go(ranks, lambda: ranks[2].hear(signal.SIGTERM), steps=False, pause=lambda: time.sleep(0.001))
    assert [rank.ended for rank in ranks] == [[signal.SIGTERM]] * 3


def test_a_first_step_that_ends_while_the_ranks_agree_to_end_at_once_is_not_gone_on_from() -> None:
    """It would be recorded, and saved nowhere."""
    first, second = of_one_store(2)
    first.hear(signal.SIGTERM)
    first.preemption.look()
    stepping = threading.Thread(target=first.preemption.stepped, daemon=True)
    stepping.start()
    with pytest.raises(Ended):
        for rank in (second, first, second):
            rank.preemption.look()
    stepping.join(0.05)
    assert stepping.is_alive()


def test_one_rank_that_has_ended_its_first_step_is_enough_to_save_it() -> None:
    """The others are within it, and end it too."""
    ranks = of_one_store(2)
    ranks[0].preemption.stepped()
    go(ranks, lambda: ranks[1].hear(signal.SIGTERM), steps=False, pause=lambda: time.sleep(0.001))
    assert ranks[0].stopped_at == ranks[1].stopped_at is not None


def test_a_signal_after_the_last_turning_point_changes_nothing() -> None:
    """The run is at its end, and everything is saved."""
    ranks = of_one_store(2)
    go(ranks, lambda: time.sleep(0.05), steps=True, most=4)
    for rank in ranks:
        rank.hear(signal.SIGTERM)
    assert [(rank.num_passed, rank.stopped_at, rank.ended) for rank in ranks] == [(4, None, [])] * 2


def test_before_the_ranks_have_met_each_ends_by_itself() -> None:
    ended: list[signal.Signals] = []
    alone = Preemption(ended.append)
    assert alone.look() > 0
    alone.hear(signal.SIGINT)
    assert ended == [signal.SIGINT]


def listening_alone(**how: Any) -> Rank:
    (rank,) = of_one_store(1, **how)
    rank.preemption.stepped()
    rank.hear(signal.SIGINT)
    return rank


def test_a_second_signal_ends_at_once_but_not_the_double_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = listening_alone()
    rank.hear(signal.SIGTERM)
    assert rank.ended == [], "a launcher sends two signals for one Ctrl-C"
    monkeypatch.setattr(preemption, "_SAME_REQUEST_S", 0.0)
    rank.hear(signal.SIGINT)
    assert rank.ended == [signal.SIGINT]


def test_once_all_is_saved_no_signal_ends_it_before_it_has_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_SAME_REQUEST_S", 0.0)
    rank = listening_alone()
    rank.preemption.leave()
    rank.hear(signal.SIGTERM)
    assert rank.ended == []


def test_a_rank_that_comes_to_no_turning_point_ends_when_its_time_is_over() -> None:
    rank = listening_alone(limit_s=0.05)
    rank.listen()
    assert rank.ended == [signal.SIGINT]


def test_a_rank_whose_peer_does_not_answer_ends_unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_AGREE_LIMIT_S", 0.05)
    ranks = of_one_store(2)
    ranks[0].preemption.stepped()
    ranks[0].hear(signal.SIGTERM)
    ranks[0].listen()
    assert (ranks[0].ended, ranks[0].stopped_at) == ([signal.SIGTERM], None)


def test_a_run_that_has_failed_saves_nothing_more() -> None:
    """A launcher tells the other ranks of a failure by a signal."""
    (rank,) = of_one_store(1)
    rank.preemption.stepped()
    rank.preemption.is_over = lambda: True
    rank.hear(signal.SIGTERM)
    assert rank.ended == [signal.SIGTERM]


def test_where_the_store_is_gone_the_rank_ends_if_it_was_told_to_and_else_is_left_alone() -> None:
    class Gone:
        def check(self, *_: object) -> bool:
            raise dist.DistNetworkError("gone")

        set = check

    untold = Rank(1, Gone(), 2)
    assert untold.preemption.look() > 0 and untold.ended == []
    told = Rank(1, Gone(), 2)
    told.hear(signal.SIGTERM)
    told.listen()
    assert told.ended == [signal.SIGTERM]


def test_the_run_is_told_of_its_stop_once_and_only_if_there_is_something_to_save() -> None:
    told: list[float] = []
    for has_stepped in (False, True):
        (rank,) = of_one_store(1)
        rank.preemption.tell = told.append
        if has_stepped:
            rank.preemption.stepped()
        go([rank], lambda rank=rank: rank.hear(signal.SIGTERM), steps=False, pause=lambda: time.sleep(0.001))
    assert told == [WAIT_S]
