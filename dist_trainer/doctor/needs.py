"""What the run needs of its hosts: computed from its two files, and by a plan that a separate process makes.

A plan may have to trace the model, which needs torch, and the doctor's own process never imports torch.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter

from dist_trainer.config.deepspeed.rules import offload_device
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.memory.checkpoint_size import checkpoint_bytes, num_checkpoints
from dist_trainer.memory.engines.settings import read_settings
from dist_trainer.memory.plan import Plan
from dist_trainer.model.size import num_parameters

Device = Literal["cpu", "cuda"]
_MODULE = "dist_trainer.doctor.planning"


@dataclass(frozen=True)
class Needs:
    """`num_workers`: data loader workers per rank; None if the number depends on the host's cores. `refused`: why the
    run would not start with its files; `plan_problem`: why there is no plan though it would.
    """

    name: str
    deepspeed: str
    checkpoint_bytes: int
    num_checkpoints: int
    num_workers: int | None
    offloads_to_nvme: bool
    plan: Plan | None = None
    plan_problem: str | None = None
    refused: str | None = None


def needs_of(resolved: ResolvedRun, *, world_size: int) -> Needs:
    """Everything except the plan."""
    run = resolved.run
    settings = read_settings(resolved.deepspeed, cuda=True)
    return Needs(
        name=run.name,
        deepspeed=resolved.deepspeed_source,
        checkpoint_bytes=checkpoint_bytes(settings, num_parameters(run.model), world_size),
        num_checkpoints=num_checkpoints(
            [phase.steps for phase in resolved.phases],
            every_steps=run.checkpoints.every_steps,
            at_end=run.checkpoints.at_end,
        ),
        num_workers=run.data.num_workers,
        offloads_to_nvme=any(offload_device(resolved.deepspeed, what) == "nvme" for what in ("optimizer", "param")),
    )


def planning_command(interpreter: str = sys.executable) -> tuple[str, ...]:
    return (interpreter, "-m", _MODULE)


def planning_order(request: Request, *, world_size: int, device: Device) -> bytes:
    """What the planning command reads on its stdin."""
    order = {"request": dataclasses.asdict(request), "world_size": world_size, "device": device}
    return json.dumps(order).encode()


def read_planning_order(text: str) -> tuple[Request, int, Device]:
    order = json.loads(text)
    return TypeAdapter(Request).validate_python(order["request"]), order["world_size"], order["device"]


def read_plan(text: str) -> Plan:
    """Raises ValueError if the text is not a plan."""
    return TypeAdapter(Plan).validate_json(text)
