"""What a rank is doing now, in memory that outlives it: written with plain stores, readable after SIGKILL.

A guard makes the memory (`new_memory`) before it starts its rank, tells it the descriptor, and reads it when the rank
has ended. A rank without a guard writes into memory that nobody reads. Only a rank's main thread writes.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

# Environment variable of a rank that has a guard: the memory's file descriptor.
BLACKBOX_FD = "DIST_TRAINER_BLACKBOX_FD"

# The stages of a rank's start, in their usual order; some come twice.
Stage = Literal["files", "imports", "plan", "data", "rendezvous", "opening", "engine", "resume", "first step"]
_OfTraining = Literal[
    "waiting for data", "forward", "backward", "optimizer", "after the update", "evaluation", "save", "shutdown"
]
Phase = Stage | _OfTraining
_STAGES: tuple[Stage, ...] = get_args(Stage)
PHASES: tuple[Phase, ...] = (*_STAGES, *get_args(_OfTraining))
# 0 is memory in which nothing was written.
_NUMBERS = {phase: number for number, phase in enumerate(PHASES, start=1)}
# time.monotonic_ns(), which is the host's; the phase's place in PHASES, from 1; step; micro batch.
_RECORD = struct.Struct("<qqqq")
_SIZE_BYTES = mmap.PAGESIZE
_NAME = "dist_trainer.blackbox"


@dataclass(frozen=True)
class Moment:
    """`since_ns`: when the phase began, on the host's monotonic clock. `step`: the one under way, or after its update
    the last; 0 before the first. `micro_batch`: counted from 1, 0 outside of one.
    """

    phase: Phase
    since_ns: int
    step: int
    micro_batch: int

    def in_words(self) -> str:
        """'in step 12, micro batch 2, backward', 'at its start (engine)'."""
        if self.phase in _STAGES:
            return f"at its start ({self.phase})"
        step = [f"step {self.step}"] if self.step else []
        micro_batch = [f"micro batch {self.micro_batch}"] if self.micro_batch else []
        return "in " + ", ".join([*step, *micro_batch, self.phase])


class BlackBox:
    """A rank's end of the memory."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._step = self._micro_batch = 0

    def enter(self, phase: Phase) -> None:
        """The phase begins, of the step and micro batch before it."""
        _RECORD.pack_into(self._memory, 0, time.monotonic_ns(), _NUMBERS[phase], self._step, self._micro_batch)

    def enter_micro_batch(self, phase: Phase, *, step: int, micro_batch: int) -> None:
        """The phase begins, and with it this micro batch (from 1; 0: none) of this step."""
        self._step, self._micro_batch = step, micro_batch
        self.enter(phase)


def new_memory() -> int:
    """The descriptor of memory for one rank, which is gone when nobody has it open. Raises OSError."""
    descriptor = os.memfd_create(_NAME)
    os.ftruncate(descriptor, _SIZE_BYTES)
    return descriptor


def read(descriptor: int) -> Moment | None:
    """What the rank was doing last; None if it has written nothing, or what it cannot have meant. Raises OSError."""
    record = os.pread(descriptor, _RECORD.size, 0)
    if len(record) < _RECORD.size:
        return None
    since_ns, number, step, micro_batch = _RECORD.unpack(record)
    if not 0 < number <= len(PHASES) or min(since_ns, step, micro_batch) < 0:
        return None
    return Moment(PHASES[number - 1], since_ns, step, micro_batch)


def of(environ: Mapping[str, str]) -> BlackBox:
    """The box that the guard has made; one that nobody reads where there is none."""
    number = environ.get(BLACKBOX_FD, "")
    return BlackBox(mmap.mmap(int(number) if _is_ours(number) else -1, _SIZE_BYTES))


def _is_ours(number: str) -> bool:
    """A program that a rank has started inherits the variable, and what it has open there may be anything."""
    if not number.isascii() or not number.isdigit():
        return False
    try:
        return Path(f"/proc/self/fd/{number}").readlink().name.startswith(f"memfd:{_NAME}")
    except OSError:
        return False


@functools.cache
def own() -> BlackBox:
    """This process's."""
    return of(os.environ)
