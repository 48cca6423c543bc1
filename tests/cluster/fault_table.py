"""The table of docs/launchers.md: what each launcher gives when a run goes wrong, and in what time. As root:

PYTHONPATH=tests:tests/cluster python tests/cluster/fault_table.py [LAUNCHER...]
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lab import LOGIN, Lab, lab
from launched import LAUNCHERS, Launched, echoing

import slurm

Fault = Callable[[Lab, Launched], None]


def _kill_rank(made: Lab, launched: Launched) -> None:
    made.check("node2", ["kill", "-9", str(launched.ranks()[3]["pid"])])


def _power_off(made: Lab, launched: Launched) -> None:
    made.power_off("node2")


def _cut(made: Lab, launched: Launched) -> None:
    made.cut_link("node2")


def _signal(number: signal.Signals) -> Fault:
    def send(made: Lab, launched: Launched) -> None:
        for pid, argv in made.processes(LOGIN):
            if "launch_echo" in argv and argv[0] != "salloc":
                os.kill(pid, number)

    return send


def _nothing(made: Lab, launched: Launched) -> None:
    pass


FAULTS: dict[str, tuple[str, Fault]] = {
    "a rank raises": ("exit:7", _nothing),
    "a rank is killed": ("wait", _kill_rank),
    "a host is killed": ("wait", _power_off),
    "a link is cut": ("wait", _cut),
    "Ctrl-C": ("wait", _signal(signal.SIGINT)),
    "SIGTERM to launch": ("wait", _signal(signal.SIGTERM)),
}


def measure(made: Lab, folder: Path, launcher: str, fault: str, environ: dict[str, str]) -> str:
    """One cell: the exit status, and the seconds until `launch` was back and until nothing ran on any host."""
    behaviour, strike = FAULTS[fault]
    with echoing(made, folder, launcher, environ, behaviour) as launched:
        launched.ranks()
        began_s = time.monotonic()
        strike(made, launched)
        status = launched.status()
        back_s = time.monotonic() - began_s
        made.wait_until_nothing_runs(60)
        gone_s = time.monotonic() - began_s
        print(f"{launcher}, {fault}: {launched.output().strip()}", file=sys.stderr)
    if fault == "a link is cut":
        made.mend_link("node2")
    if not made.is_on("node2"):
        made.power_on("node2")
    if launcher == "srun":
        slurm.wait_until_idle(len(made.hosts), environ, made.folder / ".slurm", made)
    return f"{status}, {back_s:.1f} s, {gone_s:.1f} s"


def main(launchers: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name, lab(Path(name) / "shared") as made, slurm.slurm_over(made) as environ:
        print("| what happened |", " | ".join(launchers), "|")
        print("|---|" + "---|" * len(launchers))
        for fault in FAULTS:
            folder = made.folder / fault.replace(" ", "-")
            cells = [measure(made, folder, launcher, fault, environ) for launcher in launchers]
            print(f"| {fault} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(LAUNCHERS))
