"""A batch script as a value: what its #SBATCH lines say, and the commands in it, as far as that can be read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# The short forms of options that are looked at; these take a value.
_SHORT = {
    "-N": "nodes",
    "-n": "ntasks",
    "-c": "cpus-per-task",
    "-G": "gpus",
    "-t": "time",
    "-a": "array",
    "-J": "job-name",
    "-o": "output",
    "-e": "error",
    "-p": "partition",
    "-w": "nodelist",
    "-D": "chdir",
}
_SHORT_FLAGS = {"-K": "kill-on-bad-exit"}
_DIRECTIVE = re.compile(r"#SBATCH\s+(.*)")
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_BEFORE_A_COMMAND = {"exec", "if", "then", "else", "elif", "while", "until", "do", "time", "!", "{", "command", "env"}
_PRINTS = {"echo", "printf"}
_COMMENT = re.compile(r"(^|\s)#.*")
_QUOTES = set("'\"\\")
_PUNCTUATION = set(";&|()<>")
_SUBSTITUTION = re.compile(r"\$\(\([^()]*\)\)|\$\([^()]*\)|`[^`]*`")
_BYTE_ORDER_MARK = "\ufeff"
# What stands for the value of a substitution.
_SUBSTITUTED = "$_"


@dataclass(frozen=True)
class Option:
    """An option by its long name, without dashes; `value` is empty for one that has none."""

    name: str
    value: str
    line: int


@dataclass(frozen=True)
class Command:
    """A simple command: its words without redirections and the assignments in front of it. What only prints is none.

    `is_exec`: it takes the shell's place. `in_background`: an `&` ends it.
    """

    words: tuple[str, ...]
    line: int
    is_exec: bool = False
    in_background: bool = False

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def option(self, name: str) -> str | None:
        """The value of a long option or of its short form; '' where it has none, None where it is not there."""
        return next((option.value for option in read_options(self.words[1:], self.line) if option.name == name), None)


@dataclass(frozen=True)
class Line:
    """Lines joined at their backslashes, without comments."""

    number: int
    text: str


@dataclass(frozen=True)
class BatchFile:
    """`options` are those that sbatch reads, `late_options` those that stand too far down for it. Of a heterogeneous
    job they are the first part's. `raw_lines` are as they are meant: without a byte-order mark, and without carriage
    returns at their ends (`dos_line` is the first that has one) or in place of a line feed (`mac_line`).
    """

    raw_lines: tuple[str, ...]
    has_byte_order_mark: bool
    dos_line: int | None
    mac_line: int | None
    options: tuple[Option, ...]
    late_options: tuple[Option, ...]
    lines: tuple[Line, ...]
    commands: tuple[Command, ...]

    def option(self, *names: str) -> Option | None:
        """The last of them that sbatch reads: it is the one that counts."""
        return next((option for option in reversed(self.options) if option.name in names), None)


def parse(text: str) -> BatchFile:
    """Never fails: what cannot be read as a command is left out."""
    unmarked = text.removeprefix(_BYTE_ORDER_MARK)
    raw_lines, dos_line, mac_line = _raw_lines(unmarked)
    first_command = next(
        (number for number, line in enumerate(raw_lines, 1) if line.strip() and not line.lstrip().startswith("#")),
        len(raw_lines) + 1,
    )
    options: list[Option] = []
    late: list[Option] = []
    for number, line in enumerate(raw_lines, 1):
        match = _DIRECTIVE.match(line)
        if match is not None:
            words = _split(match.group(1), comments=True)
            if words[:1] in (["hetjob"], ["packjob"]):
                # What follows is asked for another part of the job.
                break
            (options if number < first_command else late).extend(read_options(words, number))
    lines = tuple(_logical_lines(raw_lines))
    commands = tuple(command for line in lines for command in _commands(line))
    return BatchFile(
        raw_lines=raw_lines,
        has_byte_order_mark=unmarked != text,
        dos_line=dos_line,
        mac_line=mac_line,
        options=tuple(options),
        late_options=tuple(late),
        lines=lines,
        commands=commands,
    )


def _raw_lines(text: str) -> tuple[tuple[str, ...], int | None, int | None]:
    """The lines, the first that ends as in DOS, and the first that ends as on an old Mac.

    For bash and sbatch nothing but a line feed ends a line; that others were meant is for a rule to find.
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


def read_options(words: Sequence[str], line: int) -> Iterator[Option]:
    """--name=value, --name value, -n value and -nvalue; what follows a word that is no option is left out."""
    index = 0
    while index < len(words):
        word = words[index]
        following = words[index + 1] if index + 1 < len(words) else None
        index += 1
        if not word.startswith("-") or word in ("-", "--"):
            return
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if not equals and following is not None and not following.startswith("-") and name in _SHORT.values():
                value, index = following, index + 1
            yield Option(name.replace("_", "-"), value, line)
        elif word[:2] in _SHORT:
            value = word[2:].removeprefix("=")
            if not value and following is not None:
                value, index = following, index + 1
            yield Option(_SHORT[word[:2]], value, line)
        elif word[:2] in _SHORT_FLAGS:
            yield Option(_SHORT_FLAGS[word[:2]], word[2:], line)


def _logical_lines(raw_lines: Sequence[str]) -> Iterator[Line]:
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
                # Else it goes on; to look at all of it again for every line takes minutes.
                is_open = _is_open("".join(parts))
        text = "".join(parts)
        heredoc = _HEREDOC.search(text)
        if heredoc is not None:
            while index < len(raw_lines) and raw_lines[index].strip() != heredoc.group(2):
                index += 1
            index += 1
        if text.strip():
            yield Line(number, text if _is_open(_COMMENT.sub("", text)) else _COMMENT.sub("", text))


def _is_open(text: str) -> bool:
    """Whether a quotation goes on in the next line."""
    try:
        shlex.split(_COMMENT.sub("", text).rstrip("\\"))
    except ValueError:
        return True
    return False


def _commands(line: Line) -> Iterator[Command]:
    words: list[str] = []
    skips = False
    for token in _tokens(_without_substitutions(line.text)):
        if not set(token) <= _PUNCTUATION:
            if not skips:
                words.append(token)
            skips = False
        elif set(token) <= set("<>&") and set(token) & set("<>"):
            # A redirection, with the number in front of it and the file behind it.
            if words and words[-1].isdigit():
                words.pop()
            skips = True
        else:
            yield from _command(words, line.number, in_background=token == "&")
            words, skips = [], False
    yield from _command(words, line.number, in_background=False)


def _command(words: Sequence[str], line: int, *, in_background: bool) -> Iterator[Command]:
    is_exec = False
    index = 0
    while index < len(words) and (words[index] in _BEFORE_A_COMMAND or _ASSIGNMENT.fullmatch(words[index])):
        is_exec = is_exec or words[index] == "exec"
        index += 1
    if index < len(words) and words[index] not in _PRINTS:
        yield Command(tuple(words[index:]), line, is_exec, in_background)


def _without_substitutions(text: str) -> str:
    while True:
        shorter = _SUBSTITUTION.sub(_SUBSTITUTED, text)
        if shorter == text:
            return text
        text = shorter


def _tokens(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()<>")
    lexer.commenters = ""
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return text.split()


def _split(text: str, *, comments: bool) -> list[str]:
    try:
        return shlex.split(text, comments=comments)
    except ValueError:
        return text.split()
