"""Threads, devices and the meeting place of one rank."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.config.adapt import DeviceFacts
from dist_trainer.errors import UserError
from dist_trainer.train import process

RANK = RankInfo(1, 4, 1, 4, "127.0.0.1", 29500, "torch")


CUDA = DeviceFacts(kind="cuda", supports_bf16=True, supports_fp16=True, has_compiler=True, name="a GPU")


@pytest.mark.parametrize(("visible", "index"), [(1, 0), (4, 1), (8, 1)])
def test_a_rank_takes_its_own_device_or_the_only_one_it_sees(
    visible: int, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.torch.cuda, "device_count", lambda: visible)
    assert process.device_index(RANK, CUDA) == index


def test_more_ranks_than_gpus_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="more ranks on this host than GPUs"):
        process.device_index(dataclasses.replace(RANK, local_rank=2), CUDA)


def test_ranks_that_all_see_the_same_gpu_are_told_so_and_those_with_one_each_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, joined = dist.HashStore(), []  # type: ignore[attr-defined]
    uuids = {0: "aaaa", 1: "bbbb", 2: "aaaa"}
    monkeypatch.setattr(process, "_check_meeting_place", lambda rank: None)
    monkeypatch.setattr(process, "export_rank", lambda rank: None)
    monkeypatch.setattr(process.op_builds, "delete_abandoned_locks", lambda folder: None)
    monkeypatch.setattr(process.meeting, "meet", lambda rank, is_launched: store)
    monkeypatch.setattr(process.dist, "init_process_group", lambda *_, rank, **__: joined.append(rank))
    monkeypatch.setattr("deepspeed.init_distributed", lambda **_: None)
    monkeypatch.setattr(process.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(process.torch.cuda, "set_device", lambda index: None)

    def join(number: int) -> None:
        properties = SimpleNamespace(uuid=uuids[number])
        monkeypatch.setattr(process.torch.cuda, "get_device_properties", lambda index: properties)
        process.join_process_group(dataclasses.replace(RANK, rank=number, local_rank=number), CUDA)

    join(0)
    join(1)
    with pytest.raises(UserError, match="another rank has the same GPU") as caught:
        join(2)
    assert (joined, caught.value.found) == ([0, 1], "GPU-aaaa, of 1 visible GPU")


def test_a_cpu_run_on_a_host_with_fewer_gpus_than_ranks_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.torch.cuda, "device_count", lambda: 2)
    cpu = dataclasses.replace(CUDA, kind="cpu")
    assert process.device_index(dataclasses.replace(RANK, local_rank=3), cpu) == 3


def test_a_meeting_place_whose_name_nobody_knows_is_an_error_at_once() -> None:
    rank = dataclasses.replace(RANK, master_addr="no-such-host.invalid")
    with pytest.raises(UserError, match="cannot be resolved") as caught:
        process.join_process_group(rank, process.device_facts())
    assert caught.value.key == "MASTER_ADDR"
