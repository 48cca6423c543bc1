"""What a disk refuses, in plain words: which folder, how many bytes are free there, and how many were needed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_trainer.errors import RunError, UserError
from dist_trainer.units import format_bytes

_PROBLEMS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than the file system, or a limit (ulimit -f), allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "a folder or file may not be used",
    errno.EPERM: "a folder or file may not be used",
    errno.ENOENT: "a folder or file is gone",
    errno.ENOTDIR: "a folder is a file",
    errno.EIO: "the disk fails",
    errno.ESTALE: "the file server no longer knows a folder",
}
# These the user can change before the run; the others befall it.
_MISTAKES = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_HINTS = {
    errno.ENOSPC: "make room there, or name a folder on another disk, then start it again",
    errno.EDQUOT: "remove what you no longer need there (quota -s shows it), or name a folder on another disk",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "name a folder that this user may write to",
    errno.EPERM: "name a folder that this user may write to",
}


class WriteError(OSError):
    """An OSError that knows what was being written: `filename`, and `num_bytes` where that is known. `room` is what was
    free there then: what is left behind is removed before anybody is told.
    """

    def __init__(self, error: OSError, path: Path, num_bytes: int | None = None) -> None:
        super().__init__(error.errno, error.strerror or str(error), str(error.filename or path))
        self.num_bytes = num_bytes
        self.room = _room(Path(self.filename), is_full=error.errno == errno.ENOSPC)


@contextmanager
def writing(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Raises WriteError for what the disk refuses in the block: Python's own does not name a file that is open."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(error, path, num_bytes) from error


def write_text(path: Path, text: str) -> None:
    """Makes the folder too. Raises WriteError."""
    data = text.encode()
    with writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def check_room(folder: Path, num_bytes: int, what: str) -> None:
    """Raises RunError where fewer bytes are free than `what` needs; where that cannot be known, nothing."""
    free_bytes = _free_bytes(folder)
    if free_bytes is not None and free_bytes < num_bytes:
        raise RunError(
            f"there is no room for {what}",
            where=str(folder),
            found=f"{_amount(free_bytes)} free",
            expected=_amount(num_bytes),
            hint=_HINTS[errno.ENOSPC],
        )


def cannot_write(problem: str, error: OSError, path: Path, *, hint: str | None = None) -> UserError:
    """`problem` with its reason, for what was to be written at `path`; with a `hint` of its own."""
    named = WriteError(OSError(error.errno, error.strerror or str(error)), path, getattr(error, "num_bytes", None))
    if isinstance(error, WriteError):
        named.room = error.room
    told = explained(named)
    if told is None:
        return UserError(problem, where=str(path), found=named.strerror, hint=hint)
    kind = type(told)
    return kind(
        f"{problem}: {told.problem}", where=told.where, found=told.found, expected=told.expected, hint=hint or told.hint
    )


def explained(error: OSError, folder: Path | None = None) -> UserError | None:
    """The error as users are told it; `folder` is where most is written, for an error that names no file.

    None for what is no trouble of a disk, or of no place that is known.
    """
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else folder
    if error.errno not in _PROBLEMS or place is None:
        return None
    known = error if isinstance(error, WriteError) else WriteError(error, place)
    kind = UserError if error.errno in _MISTAKES else RunError
    return kind(
        _PROBLEMS[error.errno],
        where=str(place),
        found=", ".join(part for part in (error.strerror, known.room) if part),
        expected=None if known.num_bytes is None else f"room for {_amount(known.num_bytes)}",
        hint=_HINTS.get(error.errno, "look at the folder and its file system, then start it again"),
    )


def _room(path: Path, *, is_full: bool) -> str | None:
    """What is free where `path` is, or was to be."""
    try:
        standing = _nearest(path)
    except FileNotFoundError:
        # The folder in which this process stands is gone, and with it the way to what is named from there.
        return None
    free_bytes = _free_bytes(standing)
    if free_bytes is None:
        return None
    words = f"{_amount(free_bytes)} free in {standing}"
    if is_full and os.statvfs(standing).f_favail == 0:
        words += ", and no room for one more file (inodes)"
    return words


def _amount(num_bytes: int) -> str:
    """A line of a record is needed as much as a checkpoint, and is no 0.0 MB."""
    return format_bytes(num_bytes) if num_bytes >= 100_000 else f"{num_bytes} bytes"


def _nearest(path: Path) -> Path:
    return next(one for one in (path, *path.absolute().parents) if one.is_dir())


def _free_bytes(path: Path) -> int | None:
    try:
        facts = os.statvfs(_nearest(path))
    except OSError:
        return None
    return facts.f_bavail * facts.f_frsize
