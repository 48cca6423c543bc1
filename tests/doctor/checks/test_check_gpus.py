from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from examinations import NO_GPUS, exam, gpu, gpus, host, lines, two_hosts

from dist_trainer.doctor.checks import gpus as check_gpus
from dist_trainer.doctor.facts import Device, GpuProcess, HostGpus, RankReport, RankReports
from dist_trainer.units import GIB


def found_of(made: HostGpus, check: str, **changes: Any) -> list[tuple[str, tuple[str, ...], str]]:
    return lines(check_gpus.check(exam(host("node1", gpus=made, **changes))), check)


def test_gpus_in_good_order() -> None:
    assert lines(check_gpus.check(two_hosts())) == [
        ("ok", (), "2 for 2 slots"),
        ("ok", (), "NVIDIA A100-SXM4-80GB"),
        ("ok", (), "agrees with the kernel and with the cards' names"),
        ("ok", (), "no ECC errors, no throttling, no memory in use"),
    ]


def test_no_gpu_anywhere_is_said_and_is_fine() -> None:
    found = check_gpus.check(exam(host("node1", gpus=NO_GPUS), host("node2", gpus=NO_GPUS)))
    assert lines(found) == [("ok", (), "none: ranks run on the CPU")]


def test_a_host_without_gpus_among_others_that_have_some() -> None:
    assert lines(check_gpus.check(two_hosts(gpus=NO_GPUS)), "GPUs") == [("fail", ("node2",), "0 for 2 slots")]


@pytest.mark.parametrize(
    ("num_gpus", "slots", "finding"),
    [
        (1, (0, 1), ("fail", ("node1",), "1 for 2 slots")),
        (4, (0, 1), ("fail", ("node1",), "4 for 2 slots")),
        (2, (2,), ("fail", ("node1",), "2 for 1 slot")),
        (2, (0, 1), ("ok", (), "2 for 2 slots")),
    ],
    ids=["too few", "some to spare", "a slot that is not there", "just enough"],
)
def test_gpus_against_slots(num_gpus: int, slots: tuple[int, ...], finding: tuple[str, tuple[str, ...], str]) -> None:
    report = replace(host("node1", num_slots=num_gpus), slots=slots)
    assert lines(check_gpus.check(exam(report)), "GPUs") == [finding]


def test_gpus_that_the_user_or_a_job_leaves_idle() -> None:
    report = replace(host("node1", num_slots=4), slots=(0, 1))
    named = replace(exam(report), names_slots=True)
    assert lines(check_gpus.check(named), "GPUs") == [("ok", (), "4 for 2 slots")]
    job = replace(exam(report), how="srun")
    assert lines(check_gpus.check(job), "GPUs") == [("warn", ("node1",), "4 for 2 slots")]


def test_a_gpu_that_the_kernel_shows_and_nvml_does_not() -> None:
    broken = HostGpus(kernel=("0000:10:00.0",), has_library=True, trouble="the NVIDIA driver is not loaded")
    assert found_of(broken, "GPUs") == [
        ("fail", ("node1",), "the kernel shows a GPU, and NVML says: the NVIDIA driver is not loaded")
    ]


def test_gpus_that_no_program_sees() -> None:
    assert found_of(gpus(gpu(0), devices=()), "GPUs") == [("warn", ("node1",), "1, of which a program sees none")]


def test_different_cards_are_named() -> None:
    small = gpus(gpu(0, name="NVIDIA L4", total_bytes=23034 * 2**20), gpu(1))
    found = check_gpus.check(exam(host("node1"), host("node2", gpus=small)))
    assert lines(found, "GPU model") == [
        ("warn", ("node2",), "NVIDIA L4, where most are NVIDIA A100-SXM4-80GB: the slowest sets the pace")
    ]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            gpus(gpu(0), kernel=()),
            "it names GPU 0 at 00000000:10:00.0, where the kernel shows none",
        ),
        (gpus(gpu(0), num_said=8), "it says 8 GPUs and answers for 1"),
        (gpus(gpu(0), gpu(1, pci_bus_id="00000000:10:00.0")), "it names 2 GPUs at 00000000:10:00.0"),
        (gpus(gpu(0), gpu(1, uuid="GPU-node1-0")), "GPU-node1-0 is there more than once (node1, node1)"),
        (gpus(gpu(0, used_bytes=90 * GIB)), "of 85.90 GB of GPU 0 it says 96.64 GB are used"),
    ],
    ids=["a GPU that is not there", "a count", "one place twice", "one GPU twice", "more used than there is"],
)
def test_a_driver_that_lies_about_its_gpus(made: HostGpus, said: str) -> None:
    assert found_of(made, "driver's word") == [
        ("fail", ("node1",), f"the driver's library contradicts what is there: {said}")
    ]


def test_where_the_kernel_cannot_be_asked_the_driver_is_believed() -> None:
    assert found_of(gpus(gpu(0), kernel=None), "driver's word")[0][0] == "ok"


def test_the_same_gpu_on_two_hosts_is_a_lie() -> None:
    found = check_gpus.check(exam(host("node1"), host("node2", gpus=gpus(gpu(0, "node1"), gpu(1, "node2")))))
    assert lines(found, "driver's word") == [
        (
            "fail",
            ("node1",),
            "the driver's library contradicts what is there: GPU-node1-0 is there more than once (node1, node2)",
        )
    ]


def test_a_card_has_the_memory_that_its_name_says() -> None:
    odd = gpus(gpu(0, total_bytes=24 * GIB))
    assert found_of(odd, "driver's word") == [
        ("warn", ("node1",), "GPU 0 is named NVIDIA A100-SXM4-80GB, which has 85.90 GB, and is said to have 25.77 GB")
    ]
    assert found_of(gpus(gpu(0, name="NVIDIA Unheard-of", total_bytes=1)), "driver's word")[0][0] == "ok"


def test_cuda_itself_says_another_memory() -> None:
    ranks = RankReports((RankReport(0, "end", device_bytes=40 * GIB),))
    assert found_of(gpus(gpu(0)), "driver's word", ranks=ranks, num_slots=1) == [
        (
            "fail",
            ("node1",),
            "the driver's library contradicts what is there: it says 85.90 GB for GPU 0, and CUDA 42.95 GB",
        )
    ]


@pytest.mark.parametrize(
    ("changes", "check", "level", "said"),
    [
        ({"ecc_errors": 3}, "GPU ECC errors", "fail", "GPU 0: 3 uncorrected"),
        (
            {"throttle_reasons": ("sw_thermal_slowdown", "hw_thermal_slowdown", "sw_power_cap"), "temperature_c": 93},
            "GPU throttling",
            "warn",
            "GPU 0: it is too hot, 93 °C",
        ),
        (
            {"used_bytes": 2 * GIB, "processes": (GpuProcess(42, "python of bob", 2 * GIB),)},
            "GPU memory in use",
            "warn",
            "GPU 0: 2.15 GB by python of bob (42)",
        ),
        ({"used_bytes": 2 * GIB}, "GPU memory in use", "warn", "GPU 0: 2.15 GB, and no process is listed"),
        ({"is_persistent": False}, "GPU persistence", "warn", "off on GPU 0"),
        ({"num_instances": 2}, "GPU MIG", "warn", "GPU 0 is divided into 2"),
    ],
    ids=["ECC", "heat", "another's process", "a hidden process", "persistence", "MIG"],
)
def test_the_state_of_a_gpu(changes: dict[str, Any], check: str, level: str, said: str) -> None:
    assert found_of(gpus(gpu(0, **changes), gpu(1)), check) == [(level, ("node1",), said)]


@pytest.mark.parametrize(
    "changes",
    [
        {"throttle_reasons": ("gpu_idle", "sw_power_cap")},
        {"processes": (GpuProcess(42, "Xorg of root", 90_000_000),), "used_bytes": 100_000_000},
    ],
    ids=["idle, or at its power cap", "a desktop"],
)
def test_what_is_no_fault_of_a_gpu(changes: dict[str, Any]) -> None:
    found = check_gpus.check(exam(host("node1", gpus=gpus(gpu(0, **changes), gpu(1)))))
    assert [finding for finding in found if finding.level != "ok"] == []


def test_what_the_driver_does_not_tell_is_not_said_to_be_well() -> None:
    changes = {"ecc_errors": None, "throttle_reasons": None, "is_persistent": None}
    assert found_of(gpus(gpu(0, **changes), gpu(1)), "GPU state") == [
        ("ok", (), "no memory in use"),
        ("skip", (), "the driver does not tell of every GPU: ECC errors, throttling"),
    ]


def test_what_the_drivers_word_was_not_compared_with_is_said() -> None:
    unknown_to_us = gpus(gpu(0, name="NVIDIA Something New"), gpu(1, name="NVIDIA Something New"))
    assert found_of(unknown_to_us, "driver's word") == [
        ("ok", (), "agrees with the kernel"),
        ("skip", (), "not compared with the cards' names"),
    ]


def test_a_host_without_gpus_is_known_by_its_kernel_or_by_having_no_driver() -> None:
    unknown = exam(host("node1", gpus=HostGpus(has_library=True)), host("node2", gpus=HostGpus(kernel=())))
    assert lines(check_gpus.check(unknown), "GPUs") == [
        ("ok", ("node2",), "none: ranks run on the CPU"),
        ("skip", ("node1",), "not known"),
    ]


def test_gpus_of_which_it_is_not_certain_which_are_meant() -> None:
    unsure = gpus(gpu(0), gpu(1), devices_problem="the GPUs of this host differ")
    assert ("warn", ("node1",), "the GPUs of this host differ") in found_of(unsure, "GPUs")


def test_instances_of_mig_count_as_devices() -> None:
    parts = tuple(Device(f"MIG-{number}", "NVIDIA A100-SXM4-80GB", 10 * GIB, 0) for number in range(2))
    divided = gpus(gpu(0, num_instances=2, total_bytes=None, used_bytes=None), devices=parts)
    assert found_of(divided, "GPUs") == [("ok", (), "2 for 2 slots")]
