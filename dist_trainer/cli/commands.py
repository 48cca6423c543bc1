"""The word that says what to do: the first of a command line, and the first after `data`, `slurm` and `benchmark`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping

from dist_trainer.errors import EXIT_OK, UserError


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


def run_one_of(commands: Mapping[str, Callable[[list[str]], int]], argv: list[str], *, of: str) -> int:
    """Runs what the first word names, of the commands of `of`, with the other words, or shows which there are: the exit
    status. Raises UserError.
    """
    word = argv[0] if argv else ""
    if word in ("-h", "--help"):
        first = next(iter(commands))
        if len(commands) == 1:
            return commands[first](["--help"])
        print(f"usage: dist_trainer {of} {{{','.join(commands)}}} [SWITCHES]\n")
        print(f"dist_trainer {of} {first} --help shows the switches of one.")
        return EXIT_OK
    require_command(word, commands, of=of)
    return commands[word](argv[1:])
