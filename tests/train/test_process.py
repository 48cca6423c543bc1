"""Threads, devices and the meeting place of one rank."""

from __future__ import annotations

import dataclasses

import pytest

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


def test_a_cpu_run_on_a_host_with_fewer_gpus_than_ranks_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.torch.cuda, "device_count", lambda: 2)
    cpu = dataclasses.replace(CUDA, kind="cpu")
    assert process.device_index(dataclasses.replace(RANK, local_rank=3), cpu) == 3


def test_a_meeting_place_whose_name_nobody_knows_is_an_error_at_once() -> None:
    rank = dataclasses.replace(RANK, master_addr="no-such-host.invalid")
    with pytest.raises(UserError, match="cannot be resolved") as caught:
        process.join_process_group(rank, process.device_facts())
    assert caught.value.key == "MASTER_ADDR"
