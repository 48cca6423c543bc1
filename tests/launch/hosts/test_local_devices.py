"""NVMe on this host, as `launch` asks for it before it makes anything."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import ResolvedRun, resolve
from dist_trainer.errors import UserError
from dist_trainer.launch.hosts import devices
from dist_trainer.train import async_io


def resolved(folder: Path, *, stage: int = 3, device: str = "nvme") -> ResolvedRun:
    path = folder / "nvme.json"
    offload = {"device": device, "nvme_path": str(folder)}
    zero = {"stage": stage, "offload_param" if stage == 3 else "offload_optimizer": offload}
    path.write_text(json.dumps({"train_batch_size": 1, "zero_optimization": zero}))
    return resolve(Request(ds=str(path)), world_size=1, device=ANY_DEVICE)


def answers(status: int) -> Any:
    return mock.patch.object(subprocess, "run", return_value=subprocess.CompletedProcess([], status))


def test_nvme_without_libaio_is_refused_with_the_key(tmp_path: Path) -> None:
    with answers(async_io.EXIT_MISSING), pytest.raises(UserError, match="libaio") as caught:
        devices.check_async_io(resolved(tmp_path))
    assert (caught.value.where, caught.value.key) == (
        str(tmp_path / "nvme.json"),
        "zero_optimization.offload_param.device",
    )


def test_nvme_that_is_there_or_that_nobody_could_ask_for_is_left_to_the_ranks(tmp_path: Path) -> None:
    for status in (0, 1, -9):
        with answers(status) as asked:
            devices.check_async_io(resolved(tmp_path))
        asked.assert_called_once()


@pytest.mark.parametrize(("stage", "device"), [(3, "cpu"), (2, "nvme")])
def test_what_does_not_go_to_nvme_asks_nobody(tmp_path: Path, stage: int, device: str) -> None:
    with answers(async_io.EXIT_MISSING) as asked:
        devices.check_async_io(resolved(tmp_path, stage=stage, device=device))
    asked.assert_not_called()
