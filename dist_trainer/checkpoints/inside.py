"""A file of a folder from somebody else: only a regular one that lies there, links resolved, is looked into."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dist_trainer.checkpoints.damage import DamageError


def read_inside(file: Path, folder: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file that, links resolved, lies in `folder`. Raises DamageError for anything else."""
    num_bytes = stat_inside(file, folder).st_size
    if num_bytes > max_bytes:
        raise DamageError(file, "is too large")
    try:
        with file.open("rb") as opened:
            return opened.read(num_bytes)
    except OSError as error:
        raise DamageError(file, f"cannot be read ({error.strerror})") from error


def stat_inside(file: Path, folder: Path) -> os.stat_result:
    """Of a regular file that, links resolved, lies in `folder`. Raises DamageError for anything else."""
    try:
        found = file.stat()
    except FileNotFoundError as error:
        raise DamageError(file, "is missing") from error
    except OSError as error:
        raise DamageError(file, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DamageError(file, "has a name that no file can have") from error
    if not stat.S_ISREG(found.st_mode):
        raise DamageError(file, "is not a regular file")
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DamageError(file, "is a link that leads out of the checkpoint's folder")
    return found
