"""What was asked of a run, as far as its folder says: the run file, the DeepSpeed JSON, the plan, the command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.config import run as run_file
from dist_trainer.config.run import RunConfig, TargetConfig
from dist_trainer.errors import UserError
from dist_trainer.memory.plan import PLAN_FILE, Plan, read_plan
from dist_trainer.records import Event

MONITOR = "monitor"


@dataclass(frozen=True)
class Asked:
    """`name` is the run file's, or the folder's where there is none. `problems` are files that cannot be read."""

    name: str
    run: RunConfig | None
    deepspeed: dict[str, Any] | None
    plan: Plan | None
    launch: dict[str, Any] | None
    command: tuple[str, ...] | None
    world_size: int | None
    problems: tuple[str, ...] = ()

    @property
    def targets(self) -> TargetConfig | None:
        return self.run.targets if self.run else None

    @property
    def is_training(self) -> bool:
        """False for any other program that `monitor` watched."""
        return self.launch is None or self.launch.get("launcher") != MONITOR


def read_asked(run_dir: Path, events: list[Event]) -> Asked:
    """Never fails for want of a file, or for one that another version of this program wrote."""
    folder = run_dir / "resolved"
    problems: list[str] = []
    run = None
    if (folder / "run.yaml").exists():
        try:
            run = run_file.check(run_file.read(folder / "run.yaml"), source="run.yaml")
        except UserError as error:
            problems.append(f"resolved/run.yaml cannot be read: {error.problem}")
    deepspeed = _read_json(folder / "ds_config.json", problems)
    launch = _read_json(folder / "launch.json", problems)
    try:
        plan = read_plan(run_dir)
    except (ValueError, KeyError, TypeError) as error:
        plan = None
        problems.append(f"resolved/{PLAN_FILE} cannot be read: {type(error).__name__}: {error}")
    start = next((event for event in reversed(events) if event.kind == "start"), None)
    facts = start.facts if start else {}
    launched = (launch or {}).get("argv")
    command = launched or facts.get("argv")
    return Asked(
        name=run.name if run else run_dir.resolve().name,
        run=run,
        deepspeed=deepspeed,
        plan=plan,
        launch=launch,
        command=tuple(str(word) for word in command) if command else None,
        world_size=facts.get("world_size") or (launch or {}).get("num_ranks") or (plan.world_size if plan else None),
        problems=tuple(problems),
    )


def _read_json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        problems.append(f"resolved/{path.name} cannot be read: {error}")
        return None
    return values if isinstance(values, dict) else None
