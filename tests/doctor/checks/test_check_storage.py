from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from examinations import ASKER, NEEDS, exam, host, lines, two_hosts

from dist_trainer.doctor.checks import storage
from dist_trainer.doctor.facts import Folder, Seen
from dist_trainer.units import GIB, MIB

WELL = Folder("/shared", "nfs4", "server:/shared", 1000 * GIB, 500 * GIB, 64 * MIB, 0.1)


def folder(**changes: Any) -> Folder:
    return replace(WELL, **changes)


def test_a_folder_in_good_order() -> None:
    found = storage.check(exam(host("node1", folder=WELL), host("node2", folder=WELL)))
    assert lines(found) == [
        ("ok", (), "/shared (nfs4 server:/shared), the same on 2 hosts"),
        ("ok", (), "0.67 GB/s a host while all write: a checkpoint of 10.74 GB takes 8.0s or more"),
        ("ok", (), "536.87 GB free; a checkpoint of large takes 10.74 GB, 3 of them 32.21 GB"),
    ]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Folder("/shared", error="there is no such folder here", is_missing=True), "there is no /shared"),
        (
            folder(error="No space left on device", free_bytes=0),
            "nothing can be written to /shared: No space left on device (0.0 MB free)",
        ),
        (
            folder(error="Read-only file system", free_bytes=None),
            "nothing can be written to /shared: Read-only file system",
        ),
    ],
    ids=["missing", "full", "read-only"],
)
def test_a_folder_that_cannot_be_used_is_named_with_the_reason(made: Folder, said: str) -> None:
    found = lines(storage.check(two_hosts(folder=made)), "runs folder")
    assert ("fail", ("node2",), said) in found
    assert ("ok", ("node1",), "/shared (nfs4 server:/shared)") in found


def test_folders_that_only_have_the_same_name() -> None:
    own = {"folder": folder(kind="ext4", source="/dev/sda1"), "seen": Seen(("node1",))}
    assert lines(storage.check(two_hosts(**own)), "runs folder") == [
        ("fail", ("node2",), "does not see what node1 wrote to /shared (ext4 /dev/sda1)")
    ]


def test_an_asker_that_does_not_share_the_folder() -> None:
    made = replace(two_hosts(), asker=replace(ASKER, sees_folder=False))
    ((level, hosts, said), _) = lines(storage.check(made), "runs folder")
    assert (level, hosts) == ("warn", ("login",))
    assert said.startswith("does not see what the hosts write to /shared")


@pytest.mark.parametrize(
    ("free_bytes", "level", "said"),
    [
        (9 * GIB, "fail", "9.66 GB free, and a checkpoint of large takes 10.74 GB"),
        (
            20 * GIB,
            "warn",
            "21.47 GB free; a checkpoint of large takes 10.74 GB, and the run writes 3: 32.21 GB",
        ),
    ],
    ids=["not even one", "not all of them"],
)
def test_room_for_checkpoints(free_bytes: int, level: str, said: str) -> None:
    found = storage.check(two_hosts(folder=folder(free_bytes=free_bytes)))
    assert lines(found, "room") == [(level, ("node2",), said)]


def test_a_host_that_writes_slower_than_the_others() -> None:
    hosts = [host("node1", folder=WELL), host("node2", folder=folder(write_s=1.0)), host("node3", folder=WELL)]
    assert lines(storage.check(exam(*hosts)), "write speed") == [
        ("warn", ("node2",), "writes 67.1 MB/s, where 0.67 GB/s is usual")
    ]


def test_storage_that_is_slow_for_all() -> None:
    slow = folder(write_s=10.0)
    ((level, hosts, _),) = lines(
        storage.check(exam(host("node1", folder=slow), host("node2", folder=slow))), "write speed"
    )
    assert (level, hosts) == ("warn", ())


def test_a_speed_that_was_not_measured_is_not_said_to_be_well() -> None:
    unmeasured = folder(write_bytes=0, write_s=0.0)
    assert lines(storage.check(exam(host("node1", folder=unmeasured))), "write speed") == [("skip", (), "not measured")]


def test_a_run_that_writes_no_checkpoint_needs_no_room_for_many() -> None:
    made = exam(host("node1", folder=WELL), needs=replace(NEEDS, num_checkpoints=0))
    assert lines(storage.check(made), "room") == [("ok", (), "536.87 GB free; a checkpoint of large takes 10.74 GB")]
