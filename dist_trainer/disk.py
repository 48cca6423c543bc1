"""Disk errors in plain words: which folder, how many bytes are free there, and how many were needed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_trainer.errors import RunError, UserError
from dist_trainer.units import counted, format_bytes

# ENOSPC while bytes are free: every file needs an inode, and none is left.
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
# Errors that the user can correct before the run (UserError); the others happen during it (RunError).
_MISTAKES = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_HINTS = {
    errno.ENOSPC: "make room there, or name a folder on another disk, then start it again",
    errno.EDQUOT: "remove what you no longer need there (quota -s shows it), or name a folder on another disk",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "name a folder that this user may write to",
    errno.EPERM: "name a folder that this user may write to",
}


class WriteError(OSError):
    """An OSError that says what was being written: `filename`, and `num_bytes` if known. `room` (free space, in words)
    and `has_inodes` (whether one more file fits) are those at the time of the error, because by the time that it is
    reported the incomplete file has been removed.
    """

    def __init__(self, error: OSError, path: Path, num_bytes: int | None = None) -> None:
        super().__init__(error.errno, error.strerror or str(error), str(error.filename or path))
        self.num_bytes = num_bytes
        self.room, self.has_inodes = _room(Path(self.filename))


@contextmanager
def writing(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Turns an OSError in the block into a WriteError, because Python's own does not name the open file."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(error, path, num_bytes) from error


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Makes the folder too. `private`: readable by the owner only (mode 0600). Raises WriteError."""
    data = text.encode()
    with writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if private:
            path.unlink(missing_ok=True)
            path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(data)


def check_room(folder: Path, num_bytes: int, what: str) -> None:
    """Raises RunError if fewer bytes are free than `what` needs; does nothing if that cannot be known."""
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
    """`problem` with the error's reason, for writing to `path`; `hint` replaces the usual one."""
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
    """The error in the form for users; `folder`, where most is written, is named if the error names no file.

    None if it is not a disk's error, or no path is known.
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
    """The free space at `path` (which need not exist) in words, None if unknown; and whether inodes are left.

    A file system without a fixed number of inodes (btrfs) reports 0 of 0.
    """
    try:
        standing = _nearest(path)
        facts = os.statvfs(standing)
    except OSError:
        # For a relative path: the current directory may be gone.
        return None, True
    free_bytes = facts.f_bavail * facts.f_frsize
    return f"{_amount(free_bytes)} free in {standing}", facts.f_favail > 0 or facts.f_files == 0


def _amount(num_bytes: int) -> str:
    """The amount in words, never '0.0 MB': a missing line of a record matters as much as a checkpoint."""
    return format_bytes(num_bytes) if num_bytes >= 100_000 else counted(num_bytes, "byte")


def _nearest(path: Path) -> Path:
    return next(one for one in (path, *path.absolute().parents) if one.is_dir())


def _free_bytes(path: Path) -> int | None:
    try:
        facts = os.statvfs(_nearest(path))
    except OSError:
        return None
    return facts.f_bavail * facts.f_frsize
