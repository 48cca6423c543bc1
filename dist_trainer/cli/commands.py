"""The word that names a command: the first of the command line, and the next after a command that has several."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping

from dist_trainer.errors import EXIT_OK, UserError


def require_command(word: str, known: Collection[str], *, of: str | None = None) -> None:
    """Raises UserError, with the most similar command as a hint, if `word` is not in `known`.

    `of` is the command that has these as subcommands; None for the commands at the top.
    """
    if word in known:
        return
    near = difflib.get_close_matches(word, known, n=1)
    raise UserError(
        "no such command" if word else f"say what {of or 'dist_trainer'} is to do",
        where=of and f"dist_trainer {of}",
        found=word or None,
        expected=", ".join(known),
        hint=f"did you mean {near[0]!r}?" if near else None,
    )


def run_one_of(commands: Mapping[str, Callable[[list[str]], int]], argv: list[str], *, of: str) -> int:
    """Runs the subcommand of `of` that the first word names, with the other words, and returns its exit status.

    -h shows which there are; if there is only one, its switches. Raises UserError if the first word names none.
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
