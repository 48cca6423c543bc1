"""The logical lines of a script, joined as a shell joins them, and its heredocs."""

from __future__ import annotations

import re
import shlex
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from dist_trainer.slurm.lint.variables import without_substitutions

# Excludes `<<<`, which takes a word, and the shift operator of arithmetic, which is followed by a number.
_HEREDOC = re.compile(r"(?<!<)<<-?\s*(?:(['\"])(?P<quoted>[^'\"\n]+)\1|(?P<escape>\\?)(?P<bare>[A-Za-z_][\w.-]*))")
# A quoted string that is not a heredoc's delimiter; group 1 matches delimiters, which are kept.
_QUOTED = re.compile(r"""(<<-?\s*(?:"[^"\n]+"|'[^'\n]+'))|"(?:[^"\\]|\\.)*"|'[^']*'""", re.DOTALL)
_ARRAY_BEGINS = re.compile(r"(?:^|[\s;])[A-Za-z_]\w*\+?=\([^()]*$")
_COMMENT = re.compile(r"(^|\s)#.*")
_QUOTES = set("'\"\\")


@dataclass(frozen=True)
class Line:
    """Lines joined at backslashes and open quotes, without comments."""

    number: int
    text: str


@dataclass(frozen=True)
class Heredoc:
    """The lines between `<<END` and `END`. `number`: of the first of them; `opener`: the line with the `<<`."""

    opener: Line
    number: int
    lines: tuple[str, ...]
    is_expanded: bool


def split_lines(text: str) -> tuple[tuple[str, ...], int | None, int | None]:
    """(the lines, the number of the first that ends in CR LF, the number of the first that ends in CR).

    For bash and sbatch only LF ends a line. That another line end was meant is left for a rule to report.
    """
    raw_lines: list[str] = []
    dos_line = mac_line = None
    for line in text.removesuffix("\n").split("\n") if text else []:
        parts = line.rstrip("\r").split("\r")
        if len(parts) > 1:
            mac_line = mac_line or len(raw_lines) + 1
        elif line.endswith("\r"):
            dos_line = dos_line or len(raw_lines) + 1
        raw_lines += parts
    return tuple(raw_lines), dos_line, mac_line


def logical_lines(raw_lines: Sequence[str]) -> tuple[tuple[Line, ...], list[Heredoc]]:
    """The script's logical lines, and its heredocs, whose lines are not among them."""
    lines: list[Line] = []
    heredocs: list[Heredoc] = []
    places: dict[str, list[int]] = {}
    for place, raw_line in enumerate(raw_lines):
        places.setdefault(raw_line.strip(), []).append(place)
    index = 0
    while index < len(raw_lines):
        number = index + 1
        text = raw_lines[index]
        index += 1
        if text.lstrip().startswith("#"):
            continue
        parts, is_open = [text], _is_open(text)
        while index < len(raw_lines) and (parts[-1].endswith("\\") or is_open):
            parts[-1:] = [parts[-1][:-1], " "] if parts[-1].endswith("\\") else [parts[-1], "\n"]
            parts.append(raw_lines[index])
            index += 1
            if not is_open or set(parts[-1]) & _QUOTES:
                # Checked only after a line with quotes: checking the whole text for every line takes minutes.
                is_open = _is_open("".join(parts))
        if _ARRAY_BEGINS.search(_COMMENT.sub("", "".join(parts))):
            while index < len(raw_lines) and ")" not in parts[-1]:
                parts += ["\n", raw_lines[index]]
                index += 1
        text = "".join(parts)
        line = Line(number, text if _is_open(_COMMENT.sub("", text)) else _COMMENT.sub("", text))
        heredoc = _HEREDOC.search(_QUOTED.sub(r"\1", without_substitutions(line.text)))
        if heredoc is not None:
            ends = places.get(heredoc["quoted"] or heredoc["bare"], [])
            after = bisect_left(ends, index)
            # `<<` without an end is taken to be no heredoc.
            if after < len(ends):
                is_expanded = heredoc["bare"] is not None and not heredoc["escape"]
                heredocs.append(Heredoc(line, index + 1, tuple(raw_lines[index : ends[after]]), is_expanded))
                index = ends[after] + 1
        if text.strip():
            lines.append(line)
    return tuple(lines), heredocs


def _is_open(text: str) -> bool:
    """Whether a quoted string continues on the next line."""
    try:
        shlex.split(_COMMENT.sub("", text).rstrip("\\"))
    except ValueError:
        return True
    return False
