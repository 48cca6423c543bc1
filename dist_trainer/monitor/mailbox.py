"""Shared memory between the ranks of one host: a small file in memory with one slot per rank, mapped by all of them.

Only its own rank writes a slot. Readers take no lock: a checksum tells a complete message from a half-written one.
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
    """One slot per rank, by local rank. A slot also holds the rank that the mailbox's maker has accepted in it."""

    def __init__(self, descriptor: int, num_slots: int) -> None:
        self._num_slots = num_slots
        self._memory = mmap.mmap(descriptor, _size(num_slots))

    @classmethod
    def make(cls, path: Path, num_slots: int) -> Mailbox:
        """Creates the file and reserves its memory. Raises OSError where the folder is missing or there is no room."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Without reserved blocks, writing to a mapped page would end the process by SIGBUS when memory runs out.
            os.posix_fallocate(descriptor, 0, _size(num_slots))
            return cls(descriptor, num_slots)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(descriptor)

    @classmethod
    def open(cls, path: Path, num_slots: int) -> Mailbox:
        """Raises OSError if the file does not exist, has another number of slots, or belongs to another user."""
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
        """Replaces the slot's message."""
        text = json.dumps(message, separators=(",", ":")).encode()
        if len(text) > SLOT_BYTES - _HEADER.size:
            raise ValueError(f"a message of {len(text)} bytes is longer than a slot")
        start = self._start(slot)
        self._memory[start : start + _HEADER.size + len(text)] = _HEADER.pack(len(text), zlib.crc32(text)) + text

    def read(self, slot: int) -> dict[str, Any] | None:
        """The slot's last message; None if there is none yet or one is just being written."""
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
