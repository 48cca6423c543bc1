"""What a rank sets before torch comes in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ranks

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.cluster.threads import let_threads_wait_briefly
from dist_trainer.config.request import Request, Switches
from dist_trainer.train.before_meeting import prepare
from dist_trainer.train.job import RankJob
from dist_trainer.train.timeline import Timeline

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CHOICES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_openmps_threads_spin_briefly_and_then_sleep() -> None:
    let_threads_wait_briefly()
    assert {name: os.environ.get(name) for name in CHOICES if name in os.environ} == {"GOMP_SPINCOUNT": "10000"}


@pytest.mark.parametrize("name", CHOICES)
def test_a_user_who_chose_how_they_wait_has_the_last_word(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "ACTIVE")
    let_threads_wait_briefly()
    assert {name: os.environ.get(name) for name in CHOICES if name in os.environ} == {name: "ACTIVE"}


class TorchComesInError(Exception):
    """Instead of the import."""


@pytest.mark.parametrize("compiles", [True, False])
def test_torchs_compiler_is_told_its_folder_before_torch_comes_in(
    compiles: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")

    def begin(self: Timeline, stage: str) -> None:
        assert stage == "imports"
        raise TorchComesInError

    monkeypatch.setattr(Timeline, "begin", begin)
    request = Request(config=str(ranks.mini_config(tmp_path)), switches=Switches(compile=compiles))
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", None, "single")
    with pytest.raises(TorchComesInError):
        prepare(RankJob(request, alone, None, "never", None, debug=False), Timeline())
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR", "").startswith(str(tmp_path)) == compiles
