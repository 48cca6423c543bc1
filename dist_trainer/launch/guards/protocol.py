"""What the launching process and the guard of a rank say to each other, over TCP, once each has proved itself.

guard -> launch   hello, port (of rank 0: where the ranks can meet), output, ended, beat
launch -> guard   job, stop, bye, beat

A message is its length, an HMAC, and a JSON object. The HMAC is over the message's number in its direction, its length
and itself, under a key that this direction of this connection alone has (see `proof`): nothing can be made up, changed,
left out, repeated or put in another place. It can be read by whoever can read the network.
"""

from __future__ import annotations

import json
import struct
from typing import Any

BEAT_S = 1.0
# A host of which nothing was heard for so long is taken to be down, or cut off.
SILENCE_S = 10.0

# Stands for the launching process's host where its address is what srun tells its tasks.
FROM_SRUN = "@srun"

# The longest is a job: a command line and its variables, 2 MB at most for the kernel, each byte as 6 in JSON.
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
        """The bytes to send, in the order in which messages are sealed. Raises ValueError for one that is too long."""
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(message)} bytes is longer than {MAX_MESSAGE_BYTES}")
        mac = _mac(self._send_key, self._num_sent, message)
        self._num_sent += 1
        return _LENGTH.pack(len(message)) + mac + message

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now. Raises ValueError for what the other side has not said so."""
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
    # Brings OpenSSL, which need not come in before the launcher is started.
    import hmac

    return hmac.digest(key, _NUMBER_AND_LENGTH.pack(number, len(message)) + message, "sha256")
