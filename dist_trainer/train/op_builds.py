"""DeepSpeed's ops that are compiled at first use, and the lock files that killed builds leave behind.

torch makes a file `lock` in the op's folder, keeps it open while it builds or loads, and waits forever for another's.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from dist_trainer.cluster.filesystem import shows_its_writers

LONGEST_BUILD_S = 1800.0


def build_folder(environ: Mapping[str, str]) -> Path:
    """The folder in which torch builds extensions: TORCH_EXTENSIONS_DIR, or one in the user's cache."""
    told = environ.get("TORCH_EXTENSIONS_DIR")
    if told:
        return Path(told)
    from torch.utils.cpp_extension import get_default_build_root

    return Path(get_default_build_root())


def locks(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*/lock"), *folder.glob("*/*/lock")])


def open_files() -> set[str]:
    """The regular files that processes of this host hold open, as far as this user may look."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            found |= {file.path for file in process.open_files()}
    return found


def delete_abandoned_locks(folder: Path) -> None:
    """Deletes the locks of killed builds: those that no process of this host holds open.

    If other hosts or containers may build there too, only locks older than LONGEST_BUILD_S, by the clock of the file
    system. Call it before any rank of this host builds: a rank that already waits for a lock takes its removal to mean
    that the op is built.
    """
    found = locks(folder)
    if not found:
        return
    held = open_files()
    shows_all = shows_its_writers(folder)
    for lock in found:
        with contextlib.suppress(OSError):
            old = not shows_all and _now_there_s(lock.parent) - lock.stat().st_mtime > LONGEST_BUILD_S
            if str(lock.resolve()) not in held and (shows_all or old):
                lock.unlink()


def _now_there_s(folder: Path) -> float:
    """The current time by the clock of the folder's file system: on a shared one, the server's."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"\n")
        probe.flush()
        return os.fstat(probe.fileno()).st_mtime


def notices() -> list[str]:
    return [
        f"{lock} is the lock of an op being compiled; if this run seems to hang and nothing is compiling, delete it"
        for lock in locks(build_folder(os.environ))
    ]
