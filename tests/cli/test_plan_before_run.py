"""`launch` and `train` plan first: one line, resolved/plan.json, and a stop where the run would not fit."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from dist_trainer import typed_json
from dist_trainer.cli import launch
from dist_trainer.cli.main import main
from dist_trainer.cluster.rank import RankInfo
from dist_trainer.config.adapt import DeviceFacts
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import ResolvedRun, resolve
from dist_trainer.errors import UserError
from dist_trainer.launch.hosts import devices
from dist_trainer.launch.plan import LaunchPlan
from dist_trainer.memory.advice import preflight
from dist_trainer.memory.plan import PLAN_ON_GPU_FILE, Plan, needed, read_plan, write_plan
from dist_trainer.memory.planner import planner
from dist_trainer.train import planning

A_CPU = DeviceFacts(kind="cpu", supports_bf16=True, supports_fp16=False, has_compiler=True, name="CPU")
REQUEST = Request(config="tiny")


@pytest.fixture(autouse=True)
def folder(planning_folder: Path) -> Path:
    return planning_folder


@pytest.fixture
def small_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of 10 MB."""
    monkeypatch.setattr(devices, "host_memory_bytes", lambda: 10_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 10_000_000}))


def two_ranks() -> RankInfo:
    return RankInfo(0, 2, 0, 2, "127.0.0.1", 29500, "test")


def test_launch_says_the_figure_and_keeps_the_plan(
    folder: Path, started: list[LaunchPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "--config", "tiny", "--run-dir", "run"]) == 7
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("memory     0.06 GB a rank planned (peak in backward")
    assert "2 ranks on a host of " in line
    plan = read_plan(folder / "run")
    assert plan is not None
    assert (plan.device, plan.world_size) == ("cpu", 2)


@pytest.mark.usefixtures("small_host")
def test_a_launch_that_would_not_fit_starts_and_makes_nothing(
    folder: Path, started: list[LaunchPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "--config", "tiny"]) == 2
    captured = capsys.readouterr()
    assert "the run needs 0.12 GB for 2 ranks on a host, peak in backward: it does not fit" in captured.err
    assert "at most 0.01 GB, which is the host's memory" in captured.err
    assert "bytes a parameter (2 weights + 4 master / 2 + 8 moments / 2) x 1.1M" in captured.err
    assert "--force starts the run all the same" in captured.err
    assert (captured.out, started, list(folder.iterdir())) == ("", [], [])


@pytest.mark.usefixtures("small_host")
def test_force_starts_it_all_the_same(started: list[LaunchPlan], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "--config", "tiny", "--force"]) == 7
    assert "notice     the plan is over the host's memory: 0.12 GB of 0.01 GB" in capsys.readouterr().out
    assert "--force" in started[0].argv


def test_a_plan_that_cannot_be_made_stops_no_launch(
    folder: Path, started: list[LaunchPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of a planner")

    monkeypatch.setattr(preflight, "make_plan", fail)
    assert main(["launch", "--config", "tiny", "--run-dir", "run"]) == 7
    assert read_plan(folder / "run") is None
    made = planning.plan_first(REQUEST, _resolved(), two_ranks(), A_CPU, force=False)
    assert (made.plan, made.notices) == (None, ("no plan: ZeroDivisionError: of a planner",))


def test_ranks_on_other_hosts_are_planned_by_rank_0(
    folder: Path, started: list[LaunchPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "hosts").write_text("elsewhere-1 slots=2\nelsewhere-2 slots=2\n")
    assert main(["launch", "--hostfile", "hosts", "--run-dir", "run"]) == 7
    assert capsys.readouterr().out == ""
    assert read_plan(folder / "run") is None


def test_rank_0_plans_where_the_launcher_is_up_at_once(
    folder: Path, started: list[LaunchPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "--launcher", "mpirun", "--run-dir", "run"]) == 7
    assert capsys.readouterr().out == ""
    assert read_plan(folder / "run") is None


def test_a_dry_run_does_not_plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(launch, "plan_here", lambda *_, **__: pytest.fail("it planned"))
    assert main(["launch", "--dry-run"]) == 0
    assert "memory " not in capsys.readouterr().out


def _resolved() -> ResolvedRun:
    return resolve(REQUEST, world_size=2, device=A_CPU)


def test_rank_0_says_the_figure_unless_launch_said_the_same(folder: Path) -> None:
    made = planning.plan_first(REQUEST, _resolved(), two_ranks(), A_CPU, force=False)
    (line,) = planning.keep(made, folder)
    assert line.startswith("memory     0.06 GB a rank planned")
    assert read_plan(folder) == made.plan
    assert planning.keep(made, folder) == [line]
    (folder / "resolved" / "launch.json").write_text("{}")
    assert planning.keep(made, folder) == []
    other = planning.plan_first(REQUEST, _resolved(), RankInfo(0, 2, 0, 1, "h", 1, "test"), A_CPU, force=False)
    assert made.plan is not None
    write_plan(planner.make_plan(_resolved(), world_size=2, device=planner.PlannedDevice("cpu"), ranks=(1,)), folder)
    assert len(planning.keep(other, folder)) == 1
    (folder / "resolved" / "plan.json").write_text("{")
    assert len(planning.keep(other, folder)) == 1


@pytest.mark.usefixtures("small_host")
def test_rank_0_stops_what_would_not_fit() -> None:
    with pytest.raises(UserError) as refused:
        planning.plan_first(REQUEST, _resolved(), two_ranks(), A_CPU, force=False)
    assert "it does not fit" in refused.value.problem
    made = planning.plan_first(REQUEST, _resolved(), two_ranks(), A_CPU, force=True)
    assert made.notices == ("the plan is over the host's memory: 0.12 GB of 0.01 GB",)


def test_on_a_cpu_a_run_with_a_target_is_planned_for_gpus_too(
    folder: Path, started: list[LaunchPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    targets = [f"--set=targets.{name}_bytes={size}" for name, size in (("baseline", "4 GB"), ("target", "2.5 GB"))]
    assert main(["launch", "--config", "tiny", "--run-dir", "run", *targets]) == 7
    plan = typed_json.read(folder / "run" / "resolved" / PLAN_ON_GPU_FILE, Plan)
    assert (plan.device, plan.world_size, plan.target_bytes) == ("cuda", 2, 2_500_000_000)
    assert f"on GPUs it would be {needed(plan.worst).num_bytes / 1e9:.2f} GB a GPU" in capsys.readouterr().out


def test_without_a_target_it_is_not(folder: Path, started: list[LaunchPlan]) -> None:
    assert main(["launch", "--config", "tiny", "--run-dir", "run"]) == 7
    assert not (folder / "run" / "resolved" / PLAN_ON_GPU_FILE).exists()
