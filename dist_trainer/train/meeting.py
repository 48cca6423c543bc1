"""The ranks' rendezvous before the process group exists, and what is said while some ranks are missing.

Each rank sets a key in the store. Rank 0 looks for missing keys; a rank that cannot even connect to rank 0 says that.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.errors import UserError
from dist_trainer.units import counted

TIME_LIMIT_S = 1800.0
# Ranks above 0 wait longer before they report that rank 0 is missing, because it may still be planning.
_MISSING_AFTER_S = 5.0
_FIRST_MISSING_AFTER_S = 15.0
# Under `launch`, which itself reports the hosts that it waits for.
_LAUNCHED_AFTER_S = 60.0
_AGAIN_AFTER_S = 120.0
_SHORTEST_WAIT_S = 0.01
_LONGEST_WAIT_S = 1.0
_CONNECT_LIMIT_S = 30.0
_NUM_NAMED = 8
_COME = "dist_trainer/come"

_TOLD_BY = {
    "torch": "RANK and WORLD_SIZE say",
    "openmpi": "Open MPI's OMPI_COMM_WORLD_SIZE says",
    "pmi": "PMI_SIZE says",
    "slurm": "SLURM_STEP_NUM_TASKS says",
    "mpi4py": "MPI says",
}


def meet(rank: RankInfo, *, is_launched: bool) -> Any:
    """The store, once every rank has connected to it; a rank above 0 returns as soon as rank 0 has.

    Missing ranks are reported after some seconds, then every two minutes: by rank 0, or, if rank 0 is missing, by one
    rank on each host. Raises UserError after TIME_LIMIT_S, and torch's errors of stores and networks.
    """
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    patience = _Patience(rank, _LAUNCHED_AFTER_S if is_launched else None)
    if rank.rank == 0:
        store = _agent_store() if has_agent else _own_store(rank)
        store.set(f"{_COME}/0", "")
        store.add(_COME, 1)
        while store.add(_COME, 0) < rank.world_size:
            patience.wait(lambda: [one for one in range(rank.world_size) if not store.check([f"{_COME}/{one}"])])
        return store
    if not has_agent:
        await_first_rank(rank, patience)
    store = _agent_store()
    store.set(f"{_COME}/{rank.rank}", "")
    store.add(_COME, 1)
    while not store.check([f"{_COME}/0"]):
        patience.wait(lambda: [0])
    return store


def await_first_rank(rank: RankInfo, patience: _Patience) -> None:
    """Returns as soon as rank 0 listens. torch would retry only every half second, and report nothing."""
    assert rank.master_port is not None
    while True:
        try:
            socket.create_connection((rank.master_addr, rank.master_port), timeout=_CONNECT_LIMIT_S).close()
            return
        except OSError as error:
            patience.trouble = error.strerror or str(error)
        patience.wait(lambda: [0])


@dataclass
class _Patience:
    """Pauses between retries: an eighth of the time passed so far, so that thousands of ranks do not ask too often."""

    rank: RankInfo
    after_s: float | None = None
    trouble: str | None = None
    began_s: float = field(default_factory=time.monotonic)
    next_word_s: float = field(init=False)
    # An abstract socket bound to a fixed name, which the kernel gives to one process per host: that rank reports.
    turn: socket.socket | None = None

    def __post_init__(self) -> None:
        own_s = _MISSING_AFTER_S if self.rank.rank == 0 else _FIRST_MISSING_AFTER_S
        self.next_word_s = own_s if self.after_s is None else self.after_s

    def wait(self, missing: Callable[[], Sequence[int]]) -> None:
        waited_s = time.monotonic() - self.began_s
        if waited_s >= TIME_LIMIT_S:
            raise self._missed(missing(), waited_s)
        # Nobody is missing if the last rank came just now.
        if waited_s >= self.next_word_s and (absent := missing()):
            self.next_word_s = waited_s + _AGAIN_AFTER_S
            if self._speaks():
                _say(f"dist_trainer: {self._missed(absent, waited_s)}\n")
        time.sleep(min(_LONGEST_WAIT_S, max(_SHORTEST_WAIT_S, waited_s / 8)))

    def _speaks(self) -> bool:
        """Whether this rank reports: rank 0 does, and of the others one on each host."""
        if self.rank.rank == 0 or self.turn is not None:
            return True
        turn = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            turn.bind(f"\0dist_trainer/{self.rank.master_addr}:{self.rank.master_port}")
        except OSError:
            turn.close()
            return False
        self.turn = turn
        return True

    def _missed(self, missing: Sequence[int], waited_s: float) -> UserError:
        rank = self.rank
        what = "rank 0 has" if rank.rank else f"{_named(missing)} of {rank.world_size} {_have(missing)}"
        place = f"{rank.master_addr}:{rank.master_port}"
        return UserError(
            f"{what} not come to {place} in {waited_s:.0f} s",
            where=f"rank {rank.rank}",
            found=self.trouble,
            expected=f"{counted(rank.world_size, 'rank')}, as {_TOLD_BY.get(rank.source, rank.source)}",
            hint="start every rank (srun, mpirun, torchrun or ./launch.sh does); "
            "or one alone, whatever started this shell: RANK=0 WORLD_SIZE=1 python -m dist_trainer ...",
        )


def _own_store(rank: RankInfo) -> Any:
    """Rank 0's own store, made as torch makes it, but without waiting silently until all ranks have connected."""
    assert rank.master_port is not None
    return dist.TCPStore(  # type: ignore[attr-defined]
        rank.master_addr,
        rank.master_port,
        rank.world_size,
        is_master=True,
        timeout=timedelta(seconds=TIME_LIMIT_S),
        wait_for_workers=False,
        multi_tenant=True,
    )


def _agent_store() -> Any:
    """A store that another process serves: rank 0, or torchrun's agent."""
    return next(dist.rendezvous("env://", timeout=timedelta(seconds=TIME_LIMIT_S)))[0]  # type: ignore[attr-defined]


def _say(text: str) -> None:
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _named(ranks: Sequence[int]) -> str:
    """[1, 2, 3] -> 'ranks 1, 2 and 3'; of many the first eight; of none, because one ended as it came, 'some ranks'."""
    if not ranks:
        return "some ranks"
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > _NUM_NAMED:
        return f"ranks {', '.join(map(str, ranks[:_NUM_NAMED]))} and {len(ranks) - _NUM_NAMED} more"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _have(ranks: Sequence[int]) -> str:
    return "has" if len(ranks) == 1 else "have"
