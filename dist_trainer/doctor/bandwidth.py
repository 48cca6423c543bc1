"""One rank of the trial: a real all-reduce over all ranks, then the bandwidth to its neighbours.

Run as `python -m dist_trainer.doctor.bandwidth SPEC`, where SPEC is a `RankSpec` as JSON. Each result is printed at
once as one line of JSON, so that what was measured before a failure is not lost. The process ends with its parent, and
at a time limit of its own, because a collective that waits for a lost rank would never end.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from dist_trainer.doctor.rounds import Pair, rank_pairs

# Seconds for one measurement: long enough to even out the start, short enough for many rounds.
_BUDGET_S = 1.0
_LONG_ENOUGH_S = 0.1
_REPEATS = 10
_FIRST_BYTES = 2**16
_MOST_BYTES = {"cpu": 2**25, "cuda": 2**28}
_GROWTH = 4


@dataclass(frozen=True)
class RankSpec:
    """`slot` is the index of the rank's GPU among those that it sees."""

    rank: int
    slot: int
    ranks_by_host: tuple[tuple[int, ...], ...]
    address: str
    port: int
    device: str
    limit_s: int

    @property
    def num_ranks(self) -> int:
        return sum(map(len, self.ranks_by_host))


def main(argv: list[str]) -> NoReturn:
    spec = RankSpec(**json.loads(argv[0]))
    signal.alarm(spec.limit_s)
    status = 0
    try:
        measure(spec)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        say(error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by returning: gloo's threads can abort a Python that is shutting down while they still run.
    os._exit(status)


def measure(spec: RankSpec) -> None:
    say(stage="import")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if spec.device == "cuda":
        torch.cuda.set_device(spec.slot)
        say(device_bytes=torch.cuda.get_device_properties(spec.slot).total_memory)
    say(stage="meet")
    limit = timedelta(seconds=spec.limit_s)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        spec.address, spec.port, spec.num_ranks, is_master=spec.rank == 0, timeout=limit
    )
    backend = "cpu:gloo,cuda:nccl" if spec.device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=spec.rank, world_size=spec.num_ranks, timeout=limit)
    trial = TrialRank(spec)
    say(stage="all-reduce")
    num_bytes, seconds = trial.all_reduce()
    say(all_reduce_bytes=num_bytes, all_reduce_s=seconds)
    say(stage="links")
    for pairs in rank_pairs(spec.ranks_by_host, has_own_ways=spec.device == "cuda"):
        trial.round(pairs)
    say(stage="end")
    dist.barrier()
    dist.destroy_process_group()


class TrialRank:
    """The ranks after the rendezvous. The methods are collective: every rank calls the same ones in the same order."""

    def __init__(self, spec: RankSpec) -> None:
        import torch

        self._rank = spec.rank
        self._is_cuda = spec.device == "cuda"
        self._most_bytes = _MOST_BYTES[spec.device]
        self._block = torch.zeros(self._most_bytes // 4, dtype=torch.float32, device=spec.device)

    def all_reduce(self) -> tuple[int, float]:
        """(bytes of the largest all-reduce that was tried, its shortest time in seconds on the slowest rank)."""
        import torch.distributed as dist

        self._slowest(self._timed(lambda: dist.all_reduce(self._part(_FIRST_BYTES))))
        return self._grown(lambda num_bytes: self._slowest(self._timed(lambda: dist.all_reduce(self._part(num_bytes)))))

    def round(self, pairs: list[Pair]) -> None:
        """Measures the pair that this rank is in, if any: one direction after the other."""
        import torch.distributed as dist

        dist.barrier()
        mine = next((pair for pair in pairs if self._rank in pair), None)
        if mine is None:
            return
        for source, target in (mine, mine[::-1]):
            if self._rank == source:
                num_bytes, seconds = self._send_to(target)
                say(transfer=[source, target, num_bytes, seconds])
            else:
                self._receive_from(source)

    def _send_to(self, target: int) -> tuple[int, float]:
        import torch
        import torch.distributed as dist

        def send(num_bytes: int) -> float:
            dist.send(torch.tensor([num_bytes]), target)

            def there_and_back() -> None:
                dist.send(self._part(num_bytes), target)
                dist.recv(torch.zeros(1, dtype=torch.int64), target)

            return self._timed(there_and_back)

        send(_FIRST_BYTES)
        found = self._grown(send)
        dist.send(torch.tensor([0]), target)
        return found

    def _receive_from(self, source: int) -> None:
        import torch
        import torch.distributed as dist

        size = torch.zeros(1, dtype=torch.int64)
        while True:
            dist.recv(size, source)
            if not size.item():
                return
            dist.recv(self._part(int(size.item())), source)
            self._wait()
            dist.send(size, source)

    def _grown(self, timed: Callable[[int], float]) -> tuple[int, float]:
        """Increases the size until one transfer takes long enough to be timed; returns that size in bytes, and the
        shortest of a few times in seconds.
        """
        num_bytes, spent_s = _FIRST_BYTES, 0.0
        while True:
            seconds = timed(num_bytes)
            spent_s += seconds
            if seconds >= _LONG_ENOUGH_S or num_bytes * _GROWTH > self._most_bytes:
                break
            num_bytes *= _GROWTH
        for _ in range(_REPEATS):
            if spent_s + seconds > _BUDGET_S:
                break
            again_s = timed(num_bytes)
            spent_s += again_s
            seconds = min(seconds, again_s)
        return num_bytes, seconds

    def _slowest(self, seconds: float) -> float:
        """The maximum over all ranks, so that all of them take the same decision."""
        import torch
        import torch.distributed as dist

        value = torch.tensor([seconds], dtype=torch.float64)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return float(value.item())

    def _timed(self, act: Callable[[], Any]) -> float:
        started_s = time.perf_counter()
        act()
        self._wait()
        return time.perf_counter() - started_s

    def _part(self, num_bytes: int) -> Any:
        return self._block[: num_bytes // 4]

    def _wait(self) -> None:
        import torch

        if self._is_cuda:
            torch.cuda.synchronize()


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def spec_text(spec: RankSpec) -> str:
    return json.dumps(dataclasses.asdict(spec))


if __name__ == "__main__":
    main(sys.argv[1:])
