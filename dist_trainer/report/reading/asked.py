"""What was asked of a run, as far as its folder knows: the run file, the DeepSpeed JSON, the plan, the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import TypedDict

from dist_trainer import typed_json
from dist_trainer.config import run as run_file
from dist_trainer.config.deepspeed.resolve import read_resolved
from dist_trainer.config.run import RunConfig, TargetConfig
from dist_trainer.encoding import all_as_utf8, printable
from dist_trainer.errors import UserError
from dist_trainer.memory.plan import PLAN_FILE, PLAN_ON_GPU_FILE, Plan
from dist_trainer.records import Event
from dist_trainer.redact import redacted_config
from dist_trainer.typed_json import Count, DamagedError

T = TypeVar("T")

MONITOR = "monitor"


@dataclass(frozen=True)
class Asked:
    """`name` is the run file's, or the folder's if there is no run file. `problems` lists files that cannot be read.

    `plan_on_gpu` exists for a run on a CPU that has a memory target: the plan of the same run on GPUs.
    """

    name: str
    run: RunConfig | None
    deepspeed: dict[str, Any] | None
    plan: Plan | None
    plan_on_gpu: Plan | None
    launcher: str | None
    command: tuple[str, ...] | None
    world_size: int | None
    problems: tuple[str, ...] = ()

    @property
    def targets(self) -> TargetConfig | None:
        return self.run.targets if self.run else None

    @property
    def is_training(self) -> bool:
        """False for a program of somebody else's that `monitor` watched."""
        return self.launcher != MONITOR


class LaunchRecord(TypedDict, total=False):
    """The keys that are read of launch.json, which `launch` and `monitor` write."""

    launcher: str
    argv: list[Any]
    num_ranks: Count | None


def read_asked(run_dir: Path, events: list[Event]) -> Asked:
    """Never raises for a file that is missing or damaged, or that another version of this program wrote."""
    folder = run_dir / "resolved"
    problems: list[str] = []

    def sound(name: str, read: Callable[[Path], T]) -> T | None:
        path = folder / name
        if not path.exists():
            return None
        try:
            return read(path)
        except (UserError, OSError, DamagedError) as error:
            problems.append(f"resolved/{name} cannot be read: {printable(_reason(error))}")
            return None

    run = sound("run.yaml", lambda path: run_file.check(run_file.read(path), source="run.yaml"))
    deepspeed = sound("ds_config.json", lambda path: redacted_config(all_as_utf8(read_resolved(path))))
    launch = sound("launch.json", lambda path: typed_json.read(path, LaunchRecord))
    plan = sound(PLAN_FILE, lambda path: typed_json.read(path, Plan))
    plan_on_gpu = sound(PLAN_ON_GPU_FILE, lambda path: typed_json.read(path, Plan))
    start = next((event for event in reversed(events) if event.kind == "start"), None)
    facts = start.facts if start else {}
    launch = launch or {}
    return Asked(
        name=run.name if run else run_dir.resolve().name,
        run=run,
        deepspeed=deepspeed,
        plan=plan,
        plan_on_gpu=plan_on_gpu,
        launcher=launch.get("launcher"),
        command=tuple(str(word) for word in launch.get("argv") or facts.get("argv") or ()) or None,
        world_size=facts.get("world_size") or launch.get("num_ranks") or (plan.world_size if plan else None),
        problems=tuple(problems),
    )


def _reason(error: Exception) -> str:
    if isinstance(error, UserError):
        return f"{error.key}: {error.problem}" if error.key else error.problem
    return str(error)
