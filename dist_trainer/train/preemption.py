"""How a run that is told to stop does so: every rank at the same turning point, so that all save the same step.

A turning point is a place where a rank may stop without loss: before a micro batch, or before a batch of an evaluation.
All ranks pass the same ones in the same order. When any rank gets a signal, a thread of each tells the others, over the
process group's store, how many it has passed, and lets it pass no more; rank 0's answers with the next one after the
furthest. As long as no rank has ended a step there is nothing to save, and the answer is that all end at once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

# A launcher may send two signals for one Ctrl-C.
_SAME_REQUEST_S = 1.0
_LOOK_S = 0.5
_LOOK_WHILE_STOPPING_S = 0.02
# The store's rank answers that many looks a second, of all ranks together.
_MOST_LOOKS_A_S = 4000
# Only a rank that is gone, or frozen, does not answer for so long.
_AGREE_LIMIT_S = 10.0
_ASKED, _AGREED, _NUM_TOLD = "asked", "agreed", "told"
_AT_ONCE = 0


class Stopped(BaseException):
    """Raised at the turning point where all ranks stop. `number`: the signal that told the run to."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Preemption:
    """One rank's side. `end` ends the process at once; it is called on the listening thread, as `hear` and `look` are.
    The other methods are for the main thread.
    """

    def __init__(self, end: Callable[[signal.Signals], None]) -> None:
        self.end = end
        # Told, when the ranks have agreed where to stop, after how many seconds they end at the latest.
        self.tell: Callable[[float], None] = lambda _: None
        # Whether the run has failed, of which a launcher tells its other ranks by a signal.
        self.is_over: Callable[[], bool] = lambda: False
        self.limit_s = 0.0
        self._store: Any = None
        self._rank = self._world_size = 0
        self._passing = threading.Lock()
        self._num_passed = 0
        self._has_stepped = False
        self._holds = False
        self._agreed: int | None = None
        self._has_agreed = threading.Event()
        self._number: signal.Signals | None = None
        self._asked_s = 0.0
        self._is_leaving = False

    def join(self, store: Any, *, rank: int, world_size: int, limit_s: float) -> None:
        """The ranks have met: from now on they stop together. `limit_s`: how long stopping may take, the save included,
        before the rank ends all the same.
        """
        self._rank, self._world_size, self.limit_s = rank, world_size, limit_s
        # A client of its own: one that waits in the main thread would let no other thread use it. torch 2.6 has none.
        self._store = store.clone() if hasattr(store, "clone") else store

    def turn(self) -> None:
        """A turning point: passes it, or raises Stopped."""
        with self._passing:
            if not self._holds:
                self._num_passed += 1
                return
        self._has_agreed.wait()
        assert self._agreed is not None and self._number is not None
        if self._num_passed + 1 == self._agreed:
            raise Stopped(self._number)
        self._num_passed += 1

    def stepped(self) -> None:
        """This start's first step has ended, or another one: there is something to save.

        Where this rank has told the others that there is nothing, it waits for what they all agree on: if that is to
        end at once, a step that is not saved is not recorded either.
        """
        with self._passing:
            if not self._holds:
                self._has_stepped = True
        if not self._has_stepped:
            self._has_agreed.wait()
            self._has_stepped = True

    def leave(self) -> None:
        """All is saved: further signals change nothing."""
        self._is_leaving = True

    def hear(self, number: signal.Signals) -> None:
        """A signal has come to this rank. The second one ends it at once."""
        now_s = time.monotonic()
        if self._number is not None:
            if now_s - self._asked_s >= _SAME_REQUEST_S and not self._is_leaving:
                self.end(number)
            return
        self._begin(number)
        if self._store is None or self.is_over():
            self.end(number)

    def look(self) -> float:
        """Hears of other ranks' signals, and takes part in agreeing. Returns in how many seconds to look again."""
        if self._store is None or self._is_leaving:
            return _LOOK_S
        try:
            self._take_part()
        except RuntimeError:
            # The store is gone, and rank 0 with it. The main thread will notice, if nobody has told the run to stop.
            if self._number is not None:
                self.end(self._number)
            self._store = None
        if self._number is None:
            return max(_LOOK_S, self._world_size / _MOST_LOOKS_A_S)
        waited_s = time.monotonic() - self._asked_s
        if waited_s > self.limit_s or (self._agreed is None and waited_s > _AGREE_LIMIT_S):
            self.end(self._number)
        return _LOOK_WHILE_STOPPING_S

    def _begin(self, number: signal.Signals) -> None:
        self._number, self._asked_s = number, time.monotonic()

    def _take_part(self) -> None:
        if self._number is None:
            if not self._store.check([_ASKED]):
                return
            self._begin(signal.Signals(int(self._store.get(_ASKED))))
        assert self._number is not None
        if not self._holds:
            self._store.set(_ASKED, str(int(self._number)))
            with self._passing:
                self._holds = True
            self._store.set(f"{_NUM_TOLD}/{self._rank}", f"{self._num_passed} {int(self._has_stepped)}")
            self._store.add(_NUM_TOLD, 1)
        if self._agreed is not None:
            return
        if self._rank == 0 and self._store.add(_NUM_TOLD, 0) == self._world_size:
            self._store.set(_AGREED, str(self._next_of_all()))
        if self._store.check([_AGREED]):
            agreed = int(self._store.get(_AGREED))
            if agreed == _AT_ONCE:
                self.end(self._number)
            # Not before: where a rank has failed, launchers tell the others to end, and there is nothing to announce.
            self.tell(self.limit_s)
            self._agreed = agreed
            self._has_agreed.set()

    def _next_of_all(self) -> int:
        told = [self._store.get(f"{_NUM_TOLD}/{rank}").split() for rank in range(self._world_size)]
        if not any(int(has_stepped) for _, has_stepped in told):
            return _AT_ONCE
        return 1 + max(int(num_passed) for num_passed, _ in told)
