"""The word that says what to do: the first of a command line, and the first after `data`, `slurm` and `benchmark`."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from dist_trainer.errors import UserError


def require_command(word: str, known: Collection[str], *, of: str | None = None) -> None:
    """Raises UserError, which names the nearest, where `word` is none of the known commands (of the command `of`)."""
    if word in known:
        return
    near = difflib.get_close_matches(word, known, n=1)
    raise UserError(
        "no such command" if word else f"say what {of} is to do",
        where=of and f"dist_trainer {of}",
        found=word or None,
        expected=", ".join(known),
        hint=f"did you mean {near[0]!r}?" if near else None,
    )
