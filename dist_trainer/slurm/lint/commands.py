"""The simple commands of a line of shell script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dist_trainer.slurm.lint.options import read_options
from dist_trainer.slurm.lint.variables import early_names, plain

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_DECLARES = {"export", "declare", "local", "readonly", "typeset"}
_MOST_VALUE_CHARACTERS = 2**13
_BEFORE_A_COMMAND = {"exec", "if", "then", "else", "elif", "while", "until", "do", "time", "!", "{", "command", "env"}
_PRINTS = {"echo", "printf"}
_NUMBER_OF_A_STREAM = re.compile(r"(?<=\s)[0-9]+(?=[<>])")
_PUNCTUATION = set(";&|()<>")


@dataclass(frozen=True)
class Command:
    """A simple command: its words, without redirections and preceding assignments. `echo` and the like are left out.

    Variables whose values are known from the script are substituted. `is_exec`: it replaces the shell. `in_background`:
    it ends with `&`. `early`: per-task variables that the script's own shell expands.
    """

    words: tuple[str, ...]
    line: int
    is_exec: bool = False
    in_background: bool = False
    early: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def option(self, name: str) -> str | None:
        """The value of a long option or its short form; '' if it has no value, None if it is not given."""
        return next((option.value for option in read_options(self.words[1:], self.line) if option.name == name), None)


def commands_of(expanded: str, number: int, variables: dict[str, str]) -> Iterator[Command]:
    """The commands of a line in which known variables are already expanded; adds its assignments to `variables`."""
    words: list[str] = []
    array: list[str] | None = None
    skips = False
    for token in _tokens(_NUMBER_OF_A_STREAM.sub("", expanded)):
        is_punctuation = set(token) <= _PUNCTUATION
        if array is not None:
            if not is_punctuation:
                array.append(token)
                continue
            words[-1] += " ".join(array)
            array = None
            if token == ")":
                continue
        if not is_punctuation:
            if not skips:
                words.append(token)
            skips = False
        elif token == "(" and words and _ASSIGNMENT.fullmatch(words[-1]) and words[-1].endswith("="):
            array = []
        elif set(token) <= set("<>&") and set(token) & set("<>"):
            # A redirection; the next word is its file.
            skips = True
        else:
            yield from _command(words, number, variables, in_background=token == "&")
            words, skips = [], False
    yield from _command(words, number, variables, in_background=False)


def _command(words: Sequence[str], line: int, variables: dict[str, str], *, in_background: bool) -> Iterator[Command]:
    is_exec = False
    index = 0
    while index < len(words) and (words[index] in _BEFORE_A_COMMAND or _ASSIGNMENT.fullmatch(words[index])):
        is_exec = is_exec or words[index] == "exec"
        index += 1
    rest = words[index:]
    if not rest or rest[0] in _DECLARES:
        # Assignments in front of a command would hold for that command only; these hold from here on.
        for word in words:
            _assign(word, variables)
    if rest and rest[0] not in _PRINTS | _DECLARES:
        early = early_names(" ".join(rest))
        yield Command(tuple(map(plain, rest)), line, is_exec, in_background, early)


def _assign(word: str, variables: dict[str, str]) -> None:
    match = _ASSIGNMENT.fullmatch(word)
    if match is None:
        return
    name, plus, value = match.groups()
    value = variables.get(name, "") + value if plus else value
    if len(value) <= _MOST_VALUE_CHARACTERS:
        variables[name] = value
    else:
        variables.pop(name, None)


def _tokens(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()<>")
    lexer.commenters = ""
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return text.split()
