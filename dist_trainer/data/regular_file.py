"""Files that are looked at before they are opened: to open a FIFO waits for its writer, and a device has no end."""

from __future__ import annotations

import stat
from pathlib import Path

from dist_trainer.errors import UserError
from dist_trainer.units import counted


def regular_size_bytes(path: Path, what: str, *, max_bytes: int | None = None) -> int:
    """The size of a regular file, links followed. `what`: it, in the words of a message.

    Raises OSError where there is none, and UserError for anything else, or one that is larger than `max_bytes`.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{what} is not a regular file", where=str(path))
    if max_bytes is not None and found.st_size > max_bytes:
        raise UserError(
            f"{what} is too large",
            where=str(path),
            found=counted(found.st_size, "byte"),
            expected=f"at most {max_bytes}",
        )
    return found.st_size
