"""`python -m dist_trainer.doctor.planning`: reads one order on stdin, prints the plan as JSON. See `needs`."""

from __future__ import annotations

import sys
from pathlib import Path

from dist_trainer.config.resolve import ResolvedRun, resolve
from dist_trainer.data.corpus import STANDARD_LIBRARY
from dist_trainer.doctor.needs import read_planning_order
from dist_trainer.errors import EXIT_OK, UserError
from dist_trainer.launch.hosts.devices import assumed_facts
from dist_trainer.logs import quiet_deepspeed
from dist_trainer.memory.plan import dump_plan
from dist_trainer.memory.planner.planner import PlannedDevice, make_plan


def main() -> int:
    request, world_size, device = read_planning_order(sys.stdin.read())
    try:
        with quiet_deepspeed():
            resolved = resolve(request, world_size=world_size, device=assumed_facts(device))
            _check_data(resolved)
            plan = make_plan(resolved, world_size=world_size, device=PlannedDevice(device))
    except UserError as error:
        at = error.key or error.where
        where = f"{at}: " if at else ""
        do = f" ({error.hint})" if error.hint else ""
        print(f"{where}{error.problem}{do}".replace("\n", " "), file=sys.stderr)
        return error.exit_status
    sys.stdout.write(dump_plan(plan))
    return EXIT_OK


def _check_data(resolved: ResolvedRun) -> None:
    """Raises UserError for data that is not there, as seen from this host."""
    for phase in resolved.phases:
        if phase.data != STANDARD_LIBRARY and not Path(phase.data).exists():
            raise UserError(f"there is no {phase.data}", key="data.source", hint="make it with `data prepare`")


if __name__ == "__main__":
    sys.exit(main())
