from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dist_trainer.doctor.facts import NumaNode
from dist_trainer.doctor.probes import system

SAY_LIMITS = "from dist_trainer.doctor.probes.system import limits; print(limits())"


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("\n", set()), ("0-1,4-5", {0, 1, 4, 5})]
)
def test_lists_of_cpus(text: str, numbers: set[int]) -> None:
    assert system.parse_cpu_list(text) == numbers


def test_numa_nodes_count_the_cpus_that_may_be_used(tmp_path: Path) -> None:
    own = sorted(os.sched_getaffinity(0))
    for number, cpus in enumerate((",".join(map(str, own)), "4000-4007")):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(f"{cpus}\n")
    assert system.cpus(tmp_path).numa == (NumaNode(0, len(own)), NumaNode(1, 0))


def test_limits_are_those_of_this_process() -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (111, 222))
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 8192))

    said = subprocess.run(
        [sys.executable, "-c", SAY_LIMITS], preexec_fn=lower, capture_output=True, text=True, check=True
    ).stdout
    assert said.strip() == "ResourceLimits(open_files=111, locked_memory_bytes=4096)"


def test_infiniband_devices(tmp_path: Path) -> None:
    for name in ("mlx5_1", "mlx5_0"):
        (tmp_path / name).mkdir()
    assert system.infiniband_devices(tmp_path) == ("mlx5_0", "mlx5_1")
    assert system.infiniband_devices(tmp_path / "none") == ()
