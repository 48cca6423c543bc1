"""What a disk refuses, in plain words: which folder, how many bytes are free there, and how many were needed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_trainer.errors import RunError, UserError
from dist_trainer.units import counted, format_bytes

# `errno.ENOSPC` where bytes are free: each file takes an inode, and there are none left.
_NO_INODES = "the file system has no room for one more file (its inodes are used up)"
_NO_INODES_HINT = "remove files there, however small, or name a folder on another disk, then start it again"
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
    free there then, and `has_inodes` whether one more file could be made: what is left behind is removed before
    anybody is told.
    """

    def __init__(self, error: OSError, path: Path, num_bytes: int | None = None) -> None:
        super().__init__(error.errno, error.strerror or str(error), str(error.filename or path))
        self.num_bytes = num_bytes
        self.room, self.has_inodes = _room(Path(self.filename))


@contextmanager
def writing(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Raises WriteError for what the disk refuses in the block: Python's own does not name a file that is open."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(error, path, num_bytes) from error


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Makes the folder too; a private file is its owner's alone (mode 0600). Raises WriteError."""
    data = text.encode()
    with writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if private:
            path.unlink(missing_ok=True)
            path.touch(mode=0o600, exist_ok=False)
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
        named.room, named.has_inodes = error.room, error.has_inodes
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
    found = ", ".join(part for part in (error.strerror, known.room) if part)
    if error.errno == errno.ENOSPC and not known.has_inodes:
        return RunError(_NO_INODES, where=str(place), found=found, hint=_NO_INODES_HINT)
    return kind(
        _PROBLEMS[error.errno],
        where=str(place),
        found=found,
        expected=None if known.num_bytes is None else f"room for {_amount(known.num_bytes)}",
        hint=_HINTS.get(error.errno, "look at the folder and its file system, then start it again"),
    )


def _room(path: Path) -> tuple[str | None, bool]:
    """What is free where `path` is, or was to be, in words, None where that is not known; and whether there are inodes.

    A file system that counts no inodes (btrfs) says that it has none at all.
    """
    try:
        standing = _nearest(path)
        facts = os.statvfs(standing)
    except OSError:
        # Of a path from the folder in which this process stands, that folder may be gone.
        return None, True
    free_bytes = facts.f_bavail * facts.f_frsize
    return f"{_amount(free_bytes)} free in {standing}", facts.f_favail > 0 or facts.f_files == 0


def _amount(num_bytes: int) -> str:
    """A line of a record is needed as much as a checkpoint, and is no 0.0 MB."""
    return format_bytes(num_bytes) if num_bytes >= 100_000 else counted(num_bytes, "byte")


def _nearest(path: Path) -> Path:
    return next(one for one in (path, *path.absolute().parents) if one.is_dir())


def _free_bytes(path: Path) -> int | None:
    try:
        facts = os.statvfs(_nearest(path))
    except OSError:
        return None
    return facts.f_bavail * facts.f_frsize
