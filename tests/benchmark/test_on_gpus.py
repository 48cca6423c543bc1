"""The run that the table's columns of NVML come from, on a host without GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import mini_config

from dist_trainer.benchmark.on_gpus import DevicePeaks, train_on_gpus
from dist_trainer.config.request import Request
from dist_trainer.errors import RunError

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_what_no_gpu_showed_is_not_there(tmp_path: Path) -> None:
    request = Request(config=str(mini_config(tmp_path)), settings=("gradient_accumulation_steps=1",))
    assert train_on_gpus(request, 1, 64) == DevicePeaks(None, None, None)


def test_a_run_that_fails_is_told_with_the_end_of_what_it_said(tmp_path: Path) -> None:
    request = Request(config=str(mini_config(tmp_path)), settings=("data.source=nowhere/tokens",))
    with pytest.raises(RunError, match="benchmark failed") as caught:
        train_on_gpus(request, 1, 64)
    assert "nowhere/tokens" in str(caught.value.hint)
