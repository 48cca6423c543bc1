"""How many CPU threads a rank has."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dist_trainer.units import whole_number


def threads_per_rank(environ: Mapping[str, str], *, host_cores: int, own_cores: int, local_world_size: int) -> int:
    """What OMP_NUM_THREADS says, else the host's cores shared by its ranks, at most those that the rank is bound to.

    torchrun sets OMP_NUM_THREADS=1 by itself whenever the user says nothing; that value is taken as unsaid, so that
    every launcher gives the same number (and the same rounding of sums).
    """
    said = environ.get("OMP_NUM_THREADS")
    by_torchrun = said == "1" and "TORCHELASTIC_RUN_ID" in environ
    asked = whole_number(said or "")
    if asked and not by_torchrun:
        return asked
    return max(1, min(own_cores, host_cores // local_world_size))


def threads_here(environ: Mapping[str, str], local_world_size: int) -> int:
    """For a rank that this process is, or starts."""
    return threads_per_rank(
        environ, host_cores=count_host_cores(), own_cores=count_own_cores(), local_world_size=local_world_size
    )


def count_own_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count_host_cores()


def count_host_cores() -> int:
    return os.cpu_count() or 1
