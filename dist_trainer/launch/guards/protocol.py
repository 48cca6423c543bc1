"""What the launching process and the guard of a rank say to each other: one JSON object a line, over TCP.

guard -> launch   hello, port (of rank 0: where the ranks can meet), output, ended, beat
launch -> guard   job, stop, bye, beat
"""

from __future__ import annotations

import json
from typing import Any

BEAT_S = 1.0
# A host of which nothing was heard for so long is taken to be down, or cut off.
SILENCE_S = 10.0

# Stands for the launching process's host where its address is what srun tells its tasks.
FROM_SRUN = "@srun"

Message = dict[str, Any]


def encode(kind: str, **facts: object) -> bytes:
    return json.dumps({"kind": kind, **facts}).encode() + b"\n"


class LineReader:
    """Puts messages together again from what a socket gives in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now. Raises ValueError for a line that is no JSON object."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not a message")
        return messages
