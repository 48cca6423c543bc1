"""torch.compile on trial: kept if steps become faster by it, taken back if not, or if it cannot compile.

The first steps run uncompiled and are timed, then as many compiled. Rank 0's clock decides for all ranks. The first
steps of each stretch, which compile or fill caches, do not count. Where a phase ends meanwhile, the trial begins anew.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

# Steps at the beginning of a stretch that do not count, and those that do.
_WARM_UP = 2
_TIMED = 5


class CompileTrial:
    """Of one run. `tell` takes a line for people."""

    def __init__(self, engine: Any, tell: Callable[[str], None]) -> None:
        self._engine = engine
        self._tell = tell
        self._phase: str | None = None
        self._seconds: list[float] = []
        self._uncompiled_s: float | None = None
        self._compiled_call: Callable[..., Any] | None = None
        self._problem: str | None = None
        self._has_ended = False

    def after_step(self, phase: str, step_s: float) -> None:
        """Takes note of a step, and goes on to the next stretch, or decides, when there are enough. Collective."""
        if self._has_ended:
            return
        if self._uncompiled_s is not None and self._max_of_ranks(float(self._problem is not None)) > 0:
            self._take_back(self._problem or "it failed on another rank")
            return
        if phase != self._phase:
            self._phase, self._seconds, self._uncompiled_s = phase, [], None
            self._engine.module._compiled_call_impl = None
        self._seconds.append(step_s)
        if len(self._seconds) < _WARM_UP + _TIMED:
            return
        median_s = statistics.median(self._seconds[_WARM_UP:])
        self._seconds = []
        if self._uncompiled_s is None:
            self._uncompiled_s = median_s
            self._engine.module._compiled_call_impl = self._compiled()
        else:
            self._decide(median_s)

    def _compiled(self) -> Callable[..., Any]:
        """What the module calls when it is compiled, which calls it uncompiled if the compiler fails."""
        if self._compiled_call is not None:
            return self._compiled_call
        self._engine.compile()
        module = self._engine.module
        compiled = module._compiled_call_impl

        def guarded(*arguments: Any, **named: Any) -> Any:
            try:
                return compiled(*arguments, **named)
            except _compiler_errors() as error:
                self._problem = str(error).strip().partition("\n")[0] or type(error).__name__
                module._compiled_call_impl = None
                return module(*arguments, **named)

        self._compiled_call = guarded
        return guarded

    def _decide(self, compiled_s: float) -> None:
        before_s = self._uncompiled_s
        assert before_s is not None
        is_faster = self._max_of_ranks(float(dist.get_rank() == 0 and compiled_s < before_s)) > 0
        said = f"the median step takes {compiled_s:.3g} s compiled, and {before_s:.3g} s uncompiled"
        if not is_faster:
            self._take_back(f"{said} ({_TIMED} steps each)")
            return
        self._has_ended = True
        self._tell(f"torch.compile is kept: {said} ({_TIMED} steps each)")

    def _take_back(self, why: str) -> None:
        self._has_ended = True
        self._engine.module._compiled_call_impl = None
        self._tell(f"torch.compile is taken back, the model runs uncompiled: {why}")

    def _max_of_ranks(self, value: float) -> float:
        found = torch.tensor([value], device=self._engine.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return float(found.item())


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError
