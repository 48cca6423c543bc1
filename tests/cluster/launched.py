"""`launch` of echoing or training ranks on the lab, for tests and for the table of docs/launchers.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lab import HOSTS, LOGIN, HostProcess, Lab

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("torchrun", "deepspeed", "mpirun", "srun")
START_LIMIT_S = 90.0
SHORT = ("--max-steps", "3", "--accumulation", "1")
END_LIMIT_S = 60.0
NUM_RANKS = 2 * len(HOSTS)


@dataclass
class Launched:
    """One `launch` on the login node, with two ranks on each host."""

    launcher: str
    out_dir: Path
    process: HostProcess
    printed: IO[str]

    def ranks(self) -> list[dict[str, Any]]:
        """What the ranks were given, once all of them have written it."""
        paths = [self.out_dir / f"rank-{rank}.json" for rank in range(NUM_RANKS)]
        deadline_s = time.monotonic() + START_LIMIT_S
        while not all(path.exists() for path in paths):
            assert time.monotonic() < deadline_s, f"{self.launcher}: ranks are missing: {self.output()}"
            time.sleep(0.05)
        return [json.loads(path.read_text()) for path in paths]

    def status(self) -> int:
        return self.process.wait(END_LIMIT_S)

    def output(self) -> str:
        self.printed.seek(0)
        return self.printed.read()


def switches(launcher: str, hostfile: str = "hosts") -> list[str]:
    where = [] if launcher == "srun" else ["--hostfile", hostfile]
    return ["--launcher", launcher, *where, *(["--ssh"] if launcher == "torchrun" else [])]


def allocated(launcher: str) -> list[str]:
    """What a command of this launcher stands behind."""
    return ["salloc", "--quiet", "--nodes=2", "--ntasks-per-node=2"] if launcher == "srun" else []


@contextmanager
def echoing(
    lab: Lab,
    folder: Path,
    launcher: str,
    slurm_environ: Mapping[str, str],
    behaviour: str,
    *words: str,
    named_env: Mapping[str, str] | None = None,
) -> Iterator[Launched]:
    """`named_env`: what `--env` names, with its values."""
    out_dir = folder / launcher
    out_dir.mkdir(parents=True)
    hostfile = folder / "hosts"
    if not hostfile.exists():
        # Else a launch that another launcher has begun may read it half written.
        hostfile.write_text("".join(f"{host} slots=2\n" for host in HOSTS))
    named = dict(named_env or {})
    command = [*allocated(launcher), sys.executable, "-m", "launch_echo", *switches(launcher)]
    command += [f"--env={name}" for name in named]
    environ = dict(slurm_environ) | named | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "launch")])}
    with (folder / f"{launcher}.out").open("w+") as printed:
        process = lab.popen(
            LOGIN,
            [*command, "--", str(out_dir), behaviour, *words],
            cwd=folder,
            environ=environ,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Launched(launcher, out_dir, process, printed)
        finally:
            process.kill()
            process.wait()
