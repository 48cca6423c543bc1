"""The facts about this host that a plan needs, gathered once and without torch."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from dist_trainer.cluster.threads import count_own_cores
from dist_trainer.launch.hosts.run_secret import write_private
from dist_trainer.launch.plan import HostFacts
from dist_trainer.units import whole_number

_VERSION_LIMIT_S = 20.0


def read_host_facts(environ: Mapping[str, str]) -> HostFacts:
    return HostFacts(
        hostname=socket.gethostname(),
        interpreter=sys.executable,
        num_cores=count_own_cores(),
        num_gpus=_count_usable_gpus(environ),
        is_root=os.geteuid() == 0,
        environ=environ,
    )


def whose_mpirun() -> Literal["openmpi", "hydra"]:
    """Whose `mpirun` is first in PATH, by its version text; "openmpi" if there is none."""
    try:
        said = subprocess.run(
            ["mpirun", "--version"], capture_output=True, errors="replace", timeout=_VERSION_LIMIT_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "openmpi"
    return mpirun_by_version(said)


def mpirun_by_version(text: str) -> Literal["openmpi", "hydra"]:
    """From the output of `mpirun --version`."""
    return "hydra" if re.search(r"\bHYDRA\b|Intel\(R\) MPI", text, re.IGNORECASE) else "openmpi"


def count_visible_gpus(num_gpus: int, visible: str | None) -> int:
    """How many of the host's GPUs a process sees. CUDA's rule: the list ends at the first entry that names no GPU."""
    if visible is None or num_gpus == 0:
        return num_gpus
    count = 0
    for entry in visible.split(","):
        device = entry.strip()
        index = whole_number(device)
        if not (device.startswith(("GPU-", "MIG-")) or (index is not None and index < num_gpus)):
            break
        count += 1
    return count


def _count_usable_gpus(environ: Mapping[str, str]) -> int:
    """The GPUs that a rank would train on: 0 if it is told to train on the CPU."""
    if environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    return count_visible_gpus(_count_nvidia_gpus(), environ.get("CUDA_VISIBLE_DEVICES"))


def _count_nvidia_gpus() -> int:
    try:
        import pynvml
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()


def _take_from_stdin() -> None:
    """Takes the run's variables, and the secret, which it writes to a file for the guards of this host."""
    told = json.load(sys.stdin)
    os.environ.update(told["env"])
    with suppress(FileExistsError):
        write_private(Path(told["path"]), bytes.fromhex(told["secret"]))


if __name__ == "__main__":
    if sys.argv[1:] == ["from-stdin"]:
        _take_from_stdin()
    print(_count_usable_gpus(os.environ))
