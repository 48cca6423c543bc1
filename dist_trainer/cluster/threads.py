"""How many CPU threads a rank has, and how they wait."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dist_trainer.units import whole_number


def threads_per_rank(environ: Mapping[str, str], *, host_cores: int, own_cores: int, local_world_size: int) -> int:
    """OMP_NUM_THREADS if the user set it, else the host's cores divided by its ranks, at most those the rank may use.

    torchrun sets OMP_NUM_THREADS=1 when the user sets nothing, so that value under torchrun is ignored: the number of
    threads, and with it the rounding of sums, is then the same under every launcher.
    """
    said = environ.get("OMP_NUM_THREADS")
    by_torchrun = said == "1" and "TORCHELASTIC_RUN_ID" in environ
    asked = whole_number(said or "")
    if asked and not by_torchrun:
        return asked
    return max(1, min(own_cores, host_cores // local_world_size))


def threads_here(environ: Mapping[str, str], local_world_size: int) -> int:
    """The threads of a rank that this process is, or is about to start."""
    return threads_per_rank(
        environ, host_cores=count_host_cores(), own_cores=count_own_cores(), local_world_size=local_world_size
    )


def count_own_cores() -> int:
    """The cores that this process's affinity mask lets it use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count_host_cores()


def count_host_cores() -> int:
    return os.cpu_count() or 1


def let_threads_wait_briefly() -> None:
    """Makes OpenMP's threads spin briefly while they wait for each other, then sleep, unless the user chose otherwise.

    On a busy host, a thread that spins on takes the core from the one it waits for. On an idle host, sleeping at once
    costs a wake-up at each of many short waits. Measured in docs/launchers.md. To be called before torch is imported,
    because OpenMP reads the environment then.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ["GOMP_SPINCOUNT"] = "10000"
