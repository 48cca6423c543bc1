from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from examinations import NEEDS, NO_GPUS, exam, gpu, gpus, host, lines, two_hosts

from dist_trainer.doctor.checks import resources
from dist_trainer.doctor.facts import UNLIMITED, Cpus, NumaNode, ResourceLimits, SharedMemory
from dist_trainer.units import GIB, MIB


def test_a_host_in_good_order() -> None:
    assert lines(resources.check(two_hosts())) == [
        ("ok", (), "at least 274.88 GB free"),
        ("ok", (), "at least 65536"),
        ("ok", (), "unlimited"),
        ("ok", (), "at least 64 for 2 ranks with 2 loader workers each"),
        ("ok", (), "2 nodes a host"),
    ]


@pytest.mark.parametrize(
    ("shm", "changes", "findings"),
    [
        (
            SharedMemory(64 * MIB, 64 * MIB, True),
            {},
            [("fail", ("node1",), "67.1 MB free, and the ranks may want 0.27 GB")],
        ),
        (SharedMemory(64 * MIB, 64 * MIB, True), {"gpus": NO_GPUS}, [("ok", (), "at least 67.1 MB free")]),
        (SharedMemory(GIB, GIB, False), {}, [("fail", ("node1",), "it cannot be written to")]),
        (None, {}, [("skip", (), "not known")]),
    ],
    ids=["a container's, for GPUs", "a container's, for a CPU", "closed", "not known"],
)
def test_shared_memory(
    shm: SharedMemory | None, changes: dict[str, Any], findings: list[tuple[str, tuple[str, ...], str]]
) -> None:
    made = exam(host("node1", facts={"shared_memory": shm}, **changes))
    assert lines(resources.check(made), "/dev/shm") == findings


def test_open_files_grow_with_the_world() -> None:
    few = {"facts": {"limits": ResourceLimits(1024, UNLIMITED)}}
    assert lines(resources.check(exam(host("node1", **few))), "open files") == [("ok", (), "at least 1024")]
    many = [
        host(f"node{number}", num_slots=8, facts={"limits": ResourceLimits(1024, UNLIMITED)}) for number in range(100)
    ]
    ((level, hosts, said),) = lines(resources.check(exam(*many)), "open files")
    assert (level, len(hosts), said) == ("fail", 100, "1024, and each of 800 ranks may need 1856")


@pytest.mark.parametrize(
    ("infiniband", "offloads_to_nvme", "finding"),
    [
        ((), False, ("ok", (), "at least 8.4 MB")),
        (("mlx5_0",), False, ("warn", ("node1",), "8.4 MB may be locked, and InfiniBand (mlx5_0) locks more")),
        ((), True, ("warn", ("node1",), "8.4 MB may be locked, and offload to NVMe locks more")),
    ],
    ids=["nobody locks", "InfiniBand", "NVMe"],
)
def test_locked_memory_matters_to_those_who_lock(
    infiniband: tuple[str, ...], offloads_to_nvme: bool, finding: tuple[str, tuple[str, ...], str]
) -> None:
    report = host("node1", facts={"limits": ResourceLimits(65536, 8 * MIB), "infiniband": infiniband})
    made = exam(report, needs=replace(NEEDS, offloads_to_nvme=offloads_to_nvme))
    assert lines(resources.check(made), "locked memory") == [finding]


@pytest.mark.parametrize(
    ("cpus", "num_workers", "finding"),
    [
        (Cpus(64, 1), 2, ("warn", ("node1",), "1 of 64 CPUs for 2 ranks")),
        (Cpus(64, 4), 2, ("warn", ("node1",), "4 of 64 CPUs for 2 ranks with 2 loader workers each")),
        (Cpus(64, 64, quota=1.5), 0, ("warn", ("node1",), "1.5 of 64 CPUs for 2 ranks")),
        (Cpus(8, 8), None, ("ok", (), "at least 8 for 2 ranks with 3 loader workers each")),
        (Cpus(8, 4), None, ("warn", ("node1",), "4 of 8 CPUs for 2 ranks with 3 loader workers each")),
    ],
    ids=["bound to one", "too many workers", "a quota", "workers by the cores", "which a job does not all give"],
)
def test_cpus_against_ranks_and_their_workers(
    cpus: Cpus, num_workers: int | None, finding: tuple[str, tuple[str, ...], str]
) -> None:
    made = exam(host("node1", facts={"cpus": cpus}), needs=replace(NEEDS, num_workers=num_workers))
    assert lines(resources.check(made), "CPUs") == [finding]


def test_a_gpu_far_from_all_cpus_that_may_be_used() -> None:
    one_socket = Cpus(64, 32, None, (NumaNode(0, 32), NumaNode(1, 0)))
    report = host("node1", facts={"cpus": one_socket}, gpus=gpus(gpu(0, numa_node=0), gpu(1, numa_node=1)))
    assert lines(resources.check(exam(report)), "NUMA") == [
        ("warn", ("node1",), "GPU 1: on NUMA node 1, of which no CPU may be used here")
    ]
