"""What the ranks of one host tell each other: a small file in memory with a slot for each, mapped by all of them.

A slot has one writer. It is read without a lock: a checksum tells a whole message from one that is being written.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path("/dev/shm")
SLOT_BYTES = 2048
_HEADER = struct.Struct("<II")
_ACCEPTED = struct.Struct("<I")


class Mailbox:
    """One slot a rank, by local rank; besides, for each the rank that the maker has accepted in it."""

    def __init__(self, descriptor: int, num_slots: int) -> None:
        self._num_slots = num_slots
        self._memory = mmap.mmap(descriptor, _size(num_slots))

    @classmethod
    def make(cls, path: Path, num_slots: int) -> Mailbox:
        """Raises OSError where there is no such memory, or no room in it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Writing to a mapped page for which there is no room would kill the process.
            os.posix_fallocate(descriptor, 0, _size(num_slots))
            return cls(descriptor, num_slots)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(descriptor)

    @classmethod
    def open(cls, path: Path, num_slots: int) -> Mailbox:
        """Raises OSError where nobody made it, for another number of slots, and for what is another user's."""
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                raise PermissionError("it belongs to another user")
            return cls(descriptor, num_slots)
        except ValueError as error:
            raise OSError(str(error)) from error
        finally:
            os.close(descriptor)

    def post(self, slot: int, message: Mapping[str, Any]) -> None:
        """Puts the message in place of the one before."""
        text = json.dumps(message, separators=(",", ":")).encode()
        if len(text) > SLOT_BYTES - _HEADER.size:
            raise ValueError(f"a message of {len(text)} bytes is longer than a slot")
        start = self._start(slot)
        self._memory[start : start + _HEADER.size + len(text)] = _HEADER.pack(len(text), zlib.crc32(text)) + text

    def read(self, slot: int) -> dict[str, Any] | None:
        """The last message; None where there is none, or it is being written."""
        start = self._start(slot)
        length, checksum = _HEADER.unpack_from(self._memory, start)
        text = self._memory[start + _HEADER.size : start + _HEADER.size + min(length, SLOT_BYTES - _HEADER.size)]
        if not length or zlib.crc32(text) != checksum:
            return None
        message: dict[str, Any] = json.loads(text)
        return message

    def accept(self, slot: int, rank: int) -> None:
        _ACCEPTED.pack_into(self._memory, slot * _ACCEPTED.size, rank + 1)

    def has_accepted(self, slot: int, rank: int) -> bool:
        return bool(_ACCEPTED.unpack_from(self._memory, slot * _ACCEPTED.size) == (rank + 1,))

    def _start(self, slot: int) -> int:
        return self._num_slots * _ACCEPTED.size + slot * SLOT_BYTES


def _size(num_slots: int) -> int:
    return num_slots * (_ACCEPTED.size + SLOT_BYTES)
