from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dist_trainer.cli import launch
from dist_trainer.launch.hosts import reach
from dist_trainer.launch.launchers.choose import build_plan
from dist_trainer.launch.plan import LaunchPlan, LaunchRequest
from dist_trainer.launch.run import Prepared


@pytest.fixture(scope="session")
def kept_traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def planning_folder(kept_traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, on a host without GPU or batch system, whose traces are kept for the session."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "PMI", "OMPI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept_traces))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[LaunchPlan]:
    """The plans that `launch` would have run, on hosts that need not be there; each ends with status 7."""
    plans: list[LaunchPlan] = []

    def run_request(launcher: str, request: LaunchRequest, prepare: Callable[[], Prepared], **named: object) -> int:
        plans.append(build_plan(launcher, replace(request, arguments=prepare().arguments)))
        return 7

    monkeypatch.setattr(launch, "run_request", run_request)
    monkeypatch.setattr(reach, "check_hosts", lambda request, secret, **_: None)
    return plans
