"""The runs' folder: whether it exists and is the other hosts' too, how much room it has, and how fast it can be
written.

Each host writes a small file of its own into it and later looks for the others'. `remove` deletes what `write` left.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from dist_trainer.cluster.filesystem import mount_of
from dist_trainer.doctor.facts import Folder, Seen
from dist_trainer.units import MIB

_PREFIX = ".dist_trainer-doctor"
_WRITE_LIMIT_S = 0.5
# The speed is measured only if this many times the bytes to be written are free, so that no file system is filled.
_LEAST_ROOM = 4


def write(folder: Path, token: str, host: str, max_bytes: int) -> Folder:
    """Writes at most `max_bytes`, or for half a second, and deletes that again; the small file stays."""
    import psutil

    if not folder.is_dir():
        return Folder(str(folder), error="there is no such folder here", is_missing=True)
    mounts = {one.mountpoint: one for one in psutil.disk_partitions(all=True)}
    point, kind = mount_of(folder.resolve(), [(one.mountpoint, one.fstype) for one in mounts.values()])
    source = mounts[point].device if point in mounts else None
    try:
        room = os.statvfs(folder)
        total_bytes, free_bytes = room.f_frsize * room.f_blocks, room.f_frsize * room.f_bavail
        known = Folder(str(folder), kind or None, source, total_bytes, free_bytes)
    except OSError as error:
        return Folder(str(folder), kind or None, source, error=_words(error))
    written_bytes, seconds = 0, 0.0
    try:
        _write_through(_probe_file(folder, token, host), token.encode(), 1, 60.0)
        if free_bytes >= _LEAST_ROOM * max_bytes:
            written_bytes, seconds = _write_speed(folder, token, host, max_bytes)
    except OSError as error:
        return Folder(known.path, known.kind, source, total_bytes, free_bytes, error=_words(error))
    return Folder(known.path, known.kind, source, total_bytes, free_bytes, written_bytes, seconds)


def look(folder: Path, token: str, hosts: list[str]) -> Seen:
    """The hosts whose file cannot be read here, or holds something else."""
    missing = []
    for host in hosts:
        try:
            found = _probe_file(folder, token, host).read_bytes()
        except OSError:
            found = b""
        if found != token.encode():
            missing.append(host)
    return Seen(tuple(missing))


def remove(folder: Path, token: str, host: str) -> None:
    with suppress(OSError):
        _probe_file(folder, token, host).unlink(missing_ok=True)


def _probe_file(folder: Path, token: str, host: str) -> Path:
    return folder / f"{_PREFIX}-{token}-{host}"


def _write_speed(folder: Path, token: str, host: str, max_bytes: int) -> tuple[int, float]:
    path = folder / f"{_PREFIX}-{token}-{host}.speed"
    try:
        # Random bytes, because the file system may compress.
        return _write_through(path, os.urandom(MIB), max_bytes // MIB, _WRITE_LIMIT_S)
    finally:
        path.unlink(missing_ok=True)


def _write_through(path: Path, block: bytes, num_blocks: int, limit_s: float) -> tuple[int, float]:
    """Writes the block up to `num_blocks` times or until the limit, and syncs; returns bytes and seconds."""
    started_s = time.monotonic()
    written_bytes = 0
    with path.open("wb", buffering=0) as file:
        for _ in range(num_blocks):
            written_bytes += file.write(block)
            if time.monotonic() - started_s > limit_s:
                break
        os.fsync(file.fileno())
    return written_bytes, time.monotonic() - started_s


def _words(error: OSError) -> str:
    return error.strerror or str(error)
