from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from examinations import ASKER, FACTS, NO_GPUS, PACKAGES, exam, gpu, gpus, host, lines, two_hosts

from dist_trainer.doctor.checks import software
from dist_trainer.doctor.facts import Revision


def test_the_same_on_all_hosts_is_a_line_each() -> None:
    assert lines(software.check(two_hosts())) == [
        ("ok", (), "3.11.7"),
        ("ok", (), "2.13.0"),
        ("ok", (), "0.19.8"),
        ("ok", (), "12.8"),
        ("ok", (), "570.00"),
        ("ok", (), "commit cccccccccc, files dddddddddd"),
    ]


@pytest.mark.parametrize(
    ("facts", "check", "finding"),
    [
        ({"python": "3.10.2"}, "python", ("fail", ("node2",), "3.10.2, where node1 has 3.11.7")),
        ({"python": "3.11.2"}, "python", ("warn", ("node2",), "3.11.2, where node1 has 3.11.7")),
        ({"packages": {**PACKAGES, "torch": "2.6.0"}}, "torch", ("fail", ("node2",), "2.6.0, where node1 has 2.13.0")),
        ({"packages": {**PACKAGES, "deepspeed": None}}, "deepspeed", ("fail", ("node2",), "not installed")),
        ({"packages": {**PACKAGES, "numpy": "1.26"}}, "numpy", ("warn", ("node2",), "1.26, where node1 has 2.1.0")),
        ({"torch_cuda": "12.4"}, "torch's CUDA", ("fail", ("node2",), "12.4, where node1 has 12.8")),
        (
            {"revision": Revision("e" * 64, "c" * 40, True)},
            "project's code",
            (
                "fail",
                ("node2",),
                "commit cccccccccc with local changes, files eeeeeeeeee, where node1 has "
                "commit cccccccccc, files dddddddddd",
            ),
        ),
    ],
    ids=["another Python", "another patch of it", "torch", "no deepspeed", "numpy", "CUDA", "the code"],
)
def test_what_differs_is_named(facts: dict[str, Any], check: str, finding: tuple[str, tuple[str, ...], str]) -> None:
    assert finding in lines(software.check(two_hosts(facts=facts)), check)


def test_nccl_has_to_be_the_same_where_it_is_a_wheel() -> None:
    ours, theirs = ({"packages": {**PACKAGES, "nccl": version}} for version in ("2.27.3", "2.21.5"))
    found = software.check(exam(host("node1", facts=ours), host("node2", facts=theirs)))
    assert lines(found, "nccl") == [("fail", ("node2",), "2.21.5, where node1 has 2.27.3")]


def test_the_code_is_its_bytes_with_or_without_a_commit() -> None:
    copied = {"revision": Revision(FACTS.revision.digest)}
    assert lines(software.check(two_hosts(facts=copied)), "project's code") == [
        ("ok", (), "commit cccccccccc, files dddddddddd")
    ]


def test_of_two_hosts_the_one_unlike_the_asker_is_odd() -> None:
    first_is_wrong = exam(host("node1", facts={"python": "3.10.2"}), host("node2"))
    assert lines(software.check(first_is_wrong), "python") == [("fail", ("node1",), "3.10.2, where node2 has 3.11.7")]


def test_hosts_that_agree_and_differ_from_the_asker() -> None:
    asker = replace(ASKER, packages={**PACKAGES, "torch": "2.6.0"})
    assert lines(software.check(replace(two_hosts(), asker=asker)), "torch") == [
        ("warn", ("node1", "node2"), "2.13.0, where the doctor itself runs with 2.6.0")
    ]


def test_gpus_need_a_torch_for_cuda() -> None:
    facts = {"torch_cuda": None}
    asker = replace(ASKER, torch_cuda=None)
    found = software.check(exam(host("node1", facts=facts), host("node2", facts=facts, gpus=NO_GPUS), asker=asker))
    assert lines(found, "torch's CUDA") == [("fail", ("node1",), "2 GPUs, and a torch that is built without CUDA")]


@pytest.mark.parametrize(("driver_cuda", "is_told"), [("11.8", True), ("12.2", False), ("13.0", False), (None, False)])
def test_a_driver_may_be_too_old_for_torch(driver_cuda: str | None, is_told: bool) -> None:
    old = gpus(gpu(0), gpu(1), driver_cuda=driver_cuda)
    found = lines(software.check(exam(host("node1", gpus=old))), "torch's CUDA")
    told = ("fail", ("node1",), f"torch is built for 12.8, and the driver knows CUDA up to {driver_cuda}")
    assert (told in found) is is_told


def test_drivers_that_differ_are_a_warning() -> None:
    assert lines(software.check(two_hosts(gpus=gpus(gpu(0), gpu(1), driver="550.1"))), "driver") == [
        ("warn", ("node2",), "550.1, where node1 has 570.00")
    ]
