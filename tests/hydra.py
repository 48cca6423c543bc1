"""Hydra is the mpirun of MPICH and of Intel MPI: each can be made the `mpirun` that the PATH finds first."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PROGRAMS = {
    "mpich": shutil.which("mpirun.mpich"),
    # Where Intel's own setvars.sh says that it is.
    "intel": shutil.which(Path(os.environ.get("I_MPI_ROOT", "/none"), "bin", "mpirun")),
}
_WANTED = {"mpich": "no mpirun.mpich here (Debian: mpich)", "intel": "no Intel MPI at I_MPI_ROOT"}
KINDS = tuple(
    pytest.param(kind, marks=pytest.mark.skipif(program is None, reason=_WANTED[kind]))
    for kind, program in PROGRAMS.items()
)


def make_mpirun(kind: str, folder: Path) -> Path:
    """The folder for the PATH. No link: Hydra looks for its other programs beside the one that was called."""
    folder.mkdir(exist_ok=True)
    script = folder / "mpirun"
    script.write_text(f'#!/bin/sh\nexec {PROGRAMS[kind]} "$@"\n')
    script.chmod(0o755)
    return folder
