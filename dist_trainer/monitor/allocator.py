"""The exact peak of torch's CPU allocator for each phase of a step, from torch.profiler's record of every allocation.

The profiler records allocations of the thread that started it; on a CPU the backward pass runs in that thread too.
oneDNN's scratch space and Python's own memory do not go through torch's allocator and are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

INIT, FORWARD, BACKWARD, STEP = PHASES = ("init", "forward", "backward", "step")
# What happens between two training steps: data, records, checkpoints.
OUTSIDE = "outside"
NUM_STEPS_WATCHED = 2

# The prefix tells our marks from the program's own `record_function` ranges.
_MARK = "dist_trainer.phase:"


@dataclass(frozen=True)
class MemoryEvent:
    """One allocation (`num_bytes` above 0) or release (below 0). `live_bytes`: held after it, counted from `start`."""

    time_ns: int
    num_bytes: int
    live_bytes: int
    phase: str
    op: str


@dataclass(frozen=True)
class AllocatorPeaks:
    """`peaks_bytes`: phase -> the most bytes held at once during it, in the order in which the phases first began.
    `OUTSIDE` is left out.

    `marks_live_bytes`: each mark in order, as (phase, bytes held when it was set).
    """

    peaks_bytes: dict[str, int]
    marks_live_bytes: tuple[tuple[str, int], ...]
    end_live_bytes: int

    @property
    def peak_bytes(self) -> int:
        return max(self.peaks_bytes.values())


class AllocatorProfile:
    """Records every allocation of this thread from `start` to `stop`; `mark` says that a phase begins."""

    def __init__(self) -> None:
        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)

    def start(self, phase: str = INIT) -> None:
        self._profiler.start()
        self.mark(phase)

    def mark(self, phase: str) -> None:
        with record_function(_MARK + phase):
            pass

    def stop(self) -> None:
        self._profiler.stop()

    def events(self) -> list[MemoryEvent]:
        """All events in order of time. A mark is an event of 0 bytes with an empty `op`."""
        kineto = self._profiler.profiler
        assert kineto is not None and kineto.kineto_results is not None, "the profile has not been stopped"
        return list(_live(_in_order(kineto.kineto_results.experimental_event_tree())))

    def peaks(self) -> AllocatorPeaks:
        return peaks_of(self.events())


class AllocatorWatch:
    """Measures a training run from before its engine is built to the end of its second optimizer step.

    Two steps, because the optimizer's states are allocated in the first one and only the second holds them throughout.
    """

    def __init__(self) -> None:
        self._profile = AllocatorProfile()
        self._unmark: Callable[[], None] | None = None
        self._num_steps = 0

    @classmethod
    def begin(cls) -> AllocatorWatch:
        watch = cls()
        watch._profile.start()
        return watch

    def watch(self, engine: Any) -> None:
        self._unmark = mark_phases(engine, self._profile)

    def after_step(self) -> bool:
        """To be called after each optimizer step; True when this was the last step to be measured."""
        self._num_steps += 1
        self._profile.mark(OUTSIDE)
        return self._num_steps == NUM_STEPS_WATCHED

    def end(self) -> dict[str, int]:
        """Stops measuring; returns phase -> peak bytes of what was allocated since `begin`."""
        if self._unmark is not None:
            self._unmark()
        self._profile.stop()
        return self._profile.peaks().peaks_bytes


def mark_phases(engine: Any, profile: AllocatorProfile) -> Callable[[], None]:
    """Marks the phases of a DeepSpeed engine's steps by wrapping its methods; returns a function that unwraps them.

    `step` is the optimizer's update only: in a micro batch that merely accumulates, what `engine.step` does counts as
    `backward`. What happens between two calls belongs to the phase of the earlier call.
    """
    forward, backward, step = engine.forward, engine.backward, engine.step

    def marked_forward(*arguments: Any, **named: Any) -> Any:
        profile.mark(FORWARD)
        return forward(*arguments, **named)

    def marked_backward(*arguments: Any, **named: Any) -> Any:
        profile.mark(BACKWARD)
        return backward(*arguments, **named)

    def marked_step(*arguments: Any, **named: Any) -> Any:
        if engine.is_gradient_accumulation_boundary():
            profile.mark(STEP)
        return step(*arguments, **named)

    engine.forward, engine.backward, engine.step = marked_forward, marked_backward, marked_step

    def unmark() -> None:
        # The wrappers are instance attributes: without them the class's own methods are found again.
        del engine.forward, engine.backward, engine.step

    return unmark


def peaks_of(events: Iterable[MemoryEvent]) -> AllocatorPeaks:
    """A phase's peak includes what was already held when it began: the mark is its first event."""
    peaks: dict[str, int] = {}
    marks = []
    live_bytes = 0
    for event in events:
        live_bytes = event.live_bytes
        if event.phase != OUTSIDE:
            peaks[event.phase] = max(peaks.get(event.phase, 0), live_bytes)
        if not event.op:
            marks.append((event.phase, live_bytes))
    return AllocatorPeaks(peaks, tuple(marks), live_bytes)


@dataclass(frozen=True)
class _Raw:
    """An event as the profiler reports it; `address` is None for a mark."""

    time_ns: int
    address: int | None
    num_bytes: int
    op: str


def _in_order(tree: Iterable[Any]) -> list[_Raw]:
    found: list[_Raw] = []
    waiting = [(node, "") for node in tree]
    while waiting:
        node, path = waiting.pop()
        fields = node.extra_fields
        if isinstance(fields, torch._C._profiler._ExtraFields_Allocation):
            if fields.device.type == "cpu":
                found.append(_Raw(node.start_time_ns, fields.ptr, fields.alloc_size, path or "python"))
        elif node.name.startswith(_MARK):
            found.append(_Raw(node.start_time_ns, None, 0, node.name))
        if children := node.children:
            inner = f"{path}/{node.name}" if path else node.name
            waiting.extend((child, inner) for child in children)
    found.sort(key=lambda event: event.time_ns)
    return found


def _live(events: Iterable[_Raw]) -> Iterator[MemoryEvent]:
    """Adds up live bytes by address. The profiler's own total cannot be used: it remembers blocks of earlier profiles
    whose release it did not see, and subtracts their size when such an address is allocated again.
    """
    phase, live_bytes = INIT, 0
    held: dict[int, int] = {}
    for event in events:
        change, op = 0, event.op
        if event.address is None:
            phase, op = event.op.removeprefix(_MARK), ""
        elif event.num_bytes > 0:
            change = event.num_bytes - held.get(event.address, 0)
            held[event.address] = event.num_bytes
        else:
            change = -held.pop(event.address, 0)
        live_bytes += change
        yield MemoryEvent(event.time_ns, change, live_bytes, phase, op)
