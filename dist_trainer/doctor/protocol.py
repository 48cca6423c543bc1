"""The form of an answer on its way: short lines, each with a piece of the answer's JSON.

srun cuts long lines and mixes the lines of its tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# srun's buffer has 1024 bytes, and escaping its quotes can double the length of a piece.
_PIECE = 400


def pack(host: str, number: int, reply: Mapping[str, Any]) -> str:
    """The lines of the answer of `host` to question `number`."""
    text = json.dumps(reply)
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    lines = (json.dumps([host, number, place, len(pieces), piece]) for place, piece in enumerate(pieces))
    return "".join(f"{line}\n" for line in lines)


class Unpacker:
    """Puts answers together from lines that may come in any order and mixture."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[str, int], dict[int, str]] = {}

    def take(self, line: bytes) -> tuple[str, int, dict[str, Any]] | None:
        """(host, number, answer) if the line completes an answer, else None. Raises ValueError if it is no piece."""
        try:
            host, number, place, count, piece = json.loads(line)
        except TypeError as error:
            raise ValueError("no piece of an answer") from error
        pieces = self._pieces.setdefault((host, number), {})
        pieces[place] = piece
        if len(pieces) < count:
            return None
        del self._pieces[host, number]
        return host, number, json.loads("".join(pieces[place] for place in range(count)))
