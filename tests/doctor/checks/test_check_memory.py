from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from examinations import NEEDS, NO_GPUS, exam, gpu, gpus, host, lines, two_hosts
from plans import make_plan

from dist_trainer.doctor.checks import memory
from dist_trainer.doctor.examination import Examination
from dist_trainer.doctor.facts import MemoryFacts
from dist_trainer.memory.plan import Plan
from dist_trainer.units import GIB

GPU_PLAN = make_plan(allocated=18 * GIB, used=20 * GIB)


def with_plan(made: Examination, plan: Plan) -> Examination:
    return replace(made, needs=replace(NEEDS, plan=plan))


def card(**changes: Any) -> dict[str, Any]:
    return {"gpus": gpus(gpu(0), gpu(1, **changes))}


def test_a_plan_that_fits() -> None:
    assert lines(memory.check(with_plan(two_hosts(), GPU_PLAN))) == [
        ("ok", (), "large needs 21.47 GB a GPU, of 85.90 GB or more"),
        ("ok", (), "549.76 GB or more a host; nothing is offloaded"),
    ]


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        (
            {"name": "NVIDIA T4", "total_bytes": 15 * GIB},
            ("fail", ("node2",), "large needs 21.47 GB a GPU, and NVIDIA T4 has 16.11 GB"),
        ),
        (
            {"used_bytes": 70 * GIB},
            ("fail", ("node2",), "large needs 21.47 GB a GPU, and of one only 10.74 GB are free"),
        ),
        (
            {"total_bytes": 20 * GIB + GIB // 2},
            (
                "warn",
                ("node2",),
                "large needs 21.47 GB a GPU, and NVIDIA A100-SXM4-80GB has 22.01 GB: it fits, but its band "
                "up to 22.55 GB does not",
            ),
        ),
    ],
    ids=["a small card", "a card in use", "only just"],
)
def test_the_plan_against_each_hosts_own_gpus(
    changes: dict[str, Any], finding: tuple[str, tuple[str, ...], str]
) -> None:
    assert lines(memory.check(with_plan(two_hosts(**card(**changes)), GPU_PLAN)), "plan") == [finding]


def test_a_gpu_that_no_slot_means_does_not_count() -> None:
    small = gpus(gpu(0), gpu(1, total_bytes=GIB))
    one_slot = replace(host("node1", gpus=small), slots=(0,))
    assert lines(memory.check(with_plan(exam(one_slot), GPU_PLAN)), "plan")[0][0] == "ok"


def offloaded(num_bytes: int) -> Plan:
    (rank,) = GPU_PLAN.ranks
    return replace(GPU_PLAN, ranks=(replace(rank, host_bytes=num_bytes),))


@pytest.mark.parametrize(
    ("host_memory", "finding"),
    [
        (
            MemoryFacts(64 * GIB, 60 * GIB),
            ("fail", ("node1",), "85.90 GB of the host's memory for 2 ranks, and it has 68.72 GB"),
        ),
        (
            MemoryFacts(512 * GIB, 500 * GIB, limit_bytes=64 * GIB),
            ("fail", ("node1",), "85.90 GB of the host's memory for 2 ranks, and it may use 68.72 GB"),
        ),
        (
            MemoryFacts(512 * GIB, 10 * GIB),
            ("warn", ("node1",), "85.90 GB of the host's memory for 2 ranks, and 10.74 GB are free now"),
        ),
        (MemoryFacts(512 * GIB, 500 * GIB), ("ok", (), "549.76 GB or more a host; the ranks need 85.90 GB")),
    ],
    ids=["too small", "a job's limit", "in use", "enough"],
)
def test_what_is_offloaded_against_the_hosts_memory(
    host_memory: MemoryFacts, finding: tuple[str, tuple[str, ...], str]
) -> None:
    made = with_plan(exam(host("node1", facts={"memory": host_memory})), offloaded(40 * GIB))
    assert lines(memory.check(made), "host memory") == [finding]


def test_on_a_cpu_all_that_the_ranks_hold_is_the_hosts() -> None:
    plan = make_plan(allocated=10 * GIB, device="cpu")
    small = host("node1", gpus=NO_GPUS, facts={"memory": MemoryFacts(16 * GIB, 12 * GIB)})
    assert lines(memory.check(with_plan(exam(small), plan))) == [
        ("fail", ("node1",), "22.47 GB of the host's memory for 2 ranks, and it has 17.18 GB")
    ]


def test_a_plan_that_could_not_be_made_is_said() -> None:
    made = replace(two_hosts(), needs=replace(NEEDS, plan_problem="no torch"))
    assert lines(memory.check(made)) == [("warn", (), "no plan could be made: no torch")]


def test_a_run_that_would_be_refused_fails_with_the_reason() -> None:
    made = exam(
        host("node1"), needs=replace(NEEDS, plan=None, refused="optimizer.type: DeepSpeed has no Lamb for the CPU")
    )
    assert lines(memory.check(made)) == [
        ("fail", (), "the run would be refused: optimizer.type: DeepSpeed has no Lamb for the CPU")
    ]
