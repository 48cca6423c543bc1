"""What else the machine did while a cell was measured."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from dist_trainer.benchmark.worth.measurement import Machine


@dataclass(frozen=True)
class _Moment:
    """CPU seconds so far: `busy_s` of the machine, not idle; `children_s` of this process's ended children."""

    time_s: float
    busy_s: float
    children_s: float


def watch() -> Callable[[], Machine]:
    """Looks now, and again when the returned function is called. Call that after the children have ended."""
    load = os.getloadavg()[0]
    before = _now()

    def look_again() -> Machine:
        after = _now()
        own_s = after.children_s - before.children_s
        all_s = (after.time_s - before.time_s) * (os.cpu_count() or 1)
        others = max(0.0, after.busy_s - before.busy_s - own_s) / all_s if all_s > 0 else None
        return Machine(load=load, others_share=others, frequency_mhz=_frequency_mhz())

    return look_again


def _now() -> _Moment:
    times = psutil.cpu_times()
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    # User time already includes that of guests.
    busy_s = sum(times) - idle_s - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return _Moment(time.monotonic(), busy_s, children.ru_utime + children.ru_stime)


def _frequency_mhz() -> float | None:
    """The mean over the CPUs; None where the kernel does not tell it."""
    try:
        frequency = psutil.cpu_freq()
    except (NotImplementedError, OSError):
        return None
    return frequency.current or None if frequency else None
