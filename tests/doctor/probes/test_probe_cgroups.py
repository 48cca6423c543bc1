from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.doctor.probes.cgroups import cpu_quota, memory_limit_bytes

TWO = "0::/job/step\n"
ONE = "4:memory:/job/step\n1:cpu,cpuacct:/job/step\n0::/\n"


def made(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder / "cgroup"


@pytest.mark.parametrize(
    ("membership", "files", "cpus", "num_bytes"),
    [
        (TWO, {"job/step/cpu.max": "max 100000", "job/step/memory.max": "max"}, None, None),
        (TWO, {"job/step/cpu.max": "150000 100000", "job/step/memory.max": "1000"}, 1.5, 1000),
        (TWO, {"job/cpu.max": "400000 100000", "job/memory.max": "2000", "job/step/memory.max": "3000"}, 4.0, 2000),
        (TWO, {}, None, None),
        (
            ONE,
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
                "memory/job/step/memory.limit_in_bytes": "5000",
            },
            2.0,
            5000,
        ),
        (
            ONE,
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            None,
            None,
        ),
    ],
    ids=[
        "no limit",
        "the group's own",
        "the smallest around it",
        "no files",
        "the older kind",
        "the older kind, no limit",
    ],
)
def test_what_a_job_may_use(
    membership: str, files: dict[str, str], cpus: float | None, num_bytes: int | None, tmp_path: Path
) -> None:
    root = made(tmp_path, files)
    (tmp_path / "membership").write_text(membership)
    assert cpu_quota(tmp_path / "membership", root) == cpus
    assert memory_limit_bytes(tmp_path / "membership", root) == num_bytes


def test_a_system_without_cgroups_limits_nothing(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path) is None
    assert memory_limit_bytes(tmp_path / "none", tmp_path) is None
