"""What ranks tell each other during a save, over the process group's store: no collective of theirs gets in the way.

A rank that fails says so in place of its answer, and then every rank's save fails, for that reason.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from torch.distributed import distributed_c10d

from dist_trainer.disk import explained
from dist_trainer.errors import UserError

_POLL_S = 0.02
# Of the saves of this process, which share a store.
_numbers = itertools.count(1)


class SaveError(Exception):
    """A save has failed, on this rank or another: why, in one line."""


class Mailbox:
    """The letters of all saves of a run, from one rank's side."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._store = distributed_c10d.PrefixStore("dist_trainer/saves", distributed_c10d._get_default_store())
        self._rank = rank
        self._world_size = world_size

    def of_next(self) -> Letters:
        """Those of the next save; all ranks count alike."""
        return Letters(self._store, f"{next(_numbers)}", self._rank, self._world_size)


class Letters:
    """Those of one save. Both methods are called by all ranks, in the same order, and raise SaveError on all."""

    def __init__(self, store: Any, name: str, rank: int, world_size: int) -> None:
        self._store = store
        self._name = name
        self._rank = rank
        self._world_size = world_size
        self._num_sent = 0

    def __enter__(self) -> Letters:
        return self

    def __exit__(self, *exception: object) -> None:
        """Rank 0 waits until all have read its letters, because the store may end with it. Then it forgets them."""
        with suppress(RuntimeError):
            read = f"{self._name}/read"
            if self._rank > 0:
                self._store.add(read, 1)
                return
            while self._store.add(read, 0) < self._world_size - 1:
                time.sleep(_POLL_S)
            for number in range(1, self._num_sent + 1):
                self._store.delete_key(f"{self._name}/{number}")

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes, on every rank."""
        key = self._next_key()
        if self._rank > 0:
            return self._receive(key).open()
        answer = _answer_of(make)
        self._send(key, answer)
        return answer.open()

    def to_first(self, make: Callable[[], Any]) -> list[Answer]:
        """What each rank makes, in the order of ranks, on rank 0; nothing on the others. Of a failure rank 0 raises
        SaveError when it opens that answer, which it has to do in its next letter.
        """
        key = self._next_key()
        mine = _answer_of(make)
        if self._rank > 0:
            self._send(f"{key}/{self._rank}", mine)
            return []
        answers = [mine, *(self._receive(f"{key}/{rank}") for rank in range(1, self._world_size))]
        self._forget([f"{key}/{rank}" for rank in range(1, self._world_size)])
        return answers

    def _next_key(self) -> str:
        self._num_sent += 1
        return f"{self._name}/{self._num_sent}"

    def _send(self, key: str, answer: Answer) -> None:
        with _as_save_errors():
            self._store.set(key, json.dumps(asdict(answer)))

    def _receive(self, key: str) -> Answer:
        with _as_save_errors():
            # Not `wait`, during which the store would serve no other thread of this rank.
            while not self._store.check([key]):
                time.sleep(_POLL_S)
            return Answer(**json.loads(self._store.get(key)))

    def _forget(self, keys: list[str]) -> None:
        with suppress(RuntimeError):
            for key in keys:
                self._store.delete_key(key)


@dataclass(frozen=True)
class Answer:
    """What a rank has made, or why it could not."""

    value: Any = None
    problem: str | None = None

    def open(self) -> Any:
        """The value. Raises SaveError if there is none."""
        if self.problem is not None:
            raise SaveError(self.problem)
        return self.value


def _answer_of(make: Callable[[], Any]) -> Answer:
    try:
        return Answer(make())
    except SaveError as error:
        return Answer(problem=str(error))
    except UserError as error:
        return Answer(problem=_one_line(error))
    except OSError as error:
        known = explained(error)
        return Answer(problem=str(error) if known is None else _one_line(known))
    except Exception as error:  # noqa: BLE001 - the others wait for an answer, whatever happened here
        return Answer(problem=f"{type(error).__name__}: {error}".partition("\n")[0])


def _one_line(error: UserError) -> str:
    found = [f"{error.problem}"]
    if error.found:
        found.append(f"{error.found}")
    if error.expected:
        found.append(f"needed {error.expected}")
    return ", ".join(found) + (f": {error.where}" if error.where else "")


@contextmanager
def _as_save_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise SaveError("the store of the process group is gone") from error
