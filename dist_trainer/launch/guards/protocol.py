"""The messages between the launching process and the guard of a rank, over TCP, once each has proved itself.

guard -> launch   hello, port (rank 0's: of the ranks' rendezvous), output, ended, beat
launch -> guard   job, signal (pass it on), stop (in good order), end (at once), bye, beat

A message is its length, an HMAC, and a JSON object. The HMAC covers the message's number in its direction, its length
and its content, under a key of this direction of this connection (see `proof`), so messages cannot be forged, changed,
dropped, repeated or reordered. They are not encrypted: who can read the network can read them.
"""

from __future__ import annotations

import json
import struct
from typing import Any

BEAT_S = 1.0
# Heartbeat timeout: a host that was not heard for so long counts as down or cut off.
SILENCE_S = 10.0

# In place of the launching process's host name: its address is the one that srun tells its tasks.
FROM_SRUN = "@srun"

# The longest message is a job: a command line and variables, which the kernel limits to 2 MB, 6 bytes of JSON per byte.
MAX_MESSAGE_BYTES = 1 << 24
_LENGTH = struct.Struct(">I")
_NUMBER_AND_LENGTH = struct.Struct(">QI")
_MAC_BYTES = 32
_HEAD_BYTES = _LENGTH.size + _MAC_BYTES

Message = dict[str, Any]


def encode(kind: str, **facts: object) -> bytes:
    return json.dumps({"kind": kind, **facts}).encode()


class Channel:
    """One end of a connection whose sides have proved themselves."""

    def __init__(self, send_key: bytes, receive_key: bytes) -> None:
        self._send_key, self._receive_key = send_key, receive_key
        self._num_sent = self._num_received = 0
        self._waiting = bytearray()

    def seal(self, message: bytes) -> bytes:
        """The bytes to send, in the order in which messages are sealed. Raises ValueError if a message is too long."""
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(message)} bytes is longer than {MAX_MESSAGE_BYTES}")
        mac = _mac(self._send_key, self._num_sent, message)
        self._num_sent += 1
        return _LENGTH.pack(len(message)) + mac + message

    def feed(self, data: bytes) -> list[Message]:
        """The messages completed by `data`. Raises ValueError for one that the other side cannot have sent so."""
        self._waiting += data
        messages = []
        while len(self._waiting) >= _HEAD_BYTES:
            (length,) = _LENGTH.unpack_from(self._waiting)
            if length > MAX_MESSAGE_BYTES:
                raise ValueError(f"a message of {length} bytes is longer than {MAX_MESSAGE_BYTES}")
            if len(self._waiting) < _HEAD_BYTES + length:
                break
            mac = bytes(self._waiting[_LENGTH.size : _HEAD_BYTES])
            message = bytes(self._waiting[_HEAD_BYTES : _HEAD_BYTES + length])
            del self._waiting[: _HEAD_BYTES + length]
            messages.append(self._open(mac, message))
        return messages

    def _open(self, mac: bytes, message: bytes) -> Message:
        import hmac

        if not hmac.compare_digest(mac, _mac(self._receive_key, self._num_received, message)):
            raise ValueError("not a message of the other side")
        self._num_received += 1
        said = json.loads(message)
        if not isinstance(said, dict):
            raise ValueError("not a message")
        return said


def _mac(key: bytes, number: int, message: bytes) -> bytes:
    # Imported late: it loads OpenSSL, which should not delay the launcher's start.
    import hmac

    return hmac.digest(key, _NUMBER_AND_LENGTH.pack(number, len(message)) + message, "sha256")
