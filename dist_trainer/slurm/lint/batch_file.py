"""A batch script as a value: what its #SBATCH lines say, and the commands in it, as far as that can be read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dist_trainer.slurm.lint.variables import early_names, expand, expand_heredoc_line, plain, without_substitutions

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
    "-A": "account",
    "-C": "constraint",
    "-d": "dependency",
    "-q": "qos",
    "-x": "exclude",
    "-m": "distribution",
    "-M": "clusters",
    "-i": "input",
    "-L": "licenses",
}
# Others that take a value, perhaps as the next word.
_LONG = {
    *("ntasks-per-node", "gres", "gpus-per-node", "gpus-per-task", "cpus-per-gpu", "mem", "mem-per-gpu", "mem-per-cpu"),
    *("signal", "open-mode", "export", "mail-type", "mail-user", "reservation", "time-min", "comment", "mpi"),
    *("container-image", "container-mounts", "container-name", "container-workdir", "wrap", "gpu-bind", "cpu-bind"),
}
_WITH_VALUE = {*_SHORT.values(), *_LONG}
_SHORT_FLAGS = {"-K": "kill-on-bad-exit"}
_DIRECTIVE = re.compile(r"#SBATCH\s+(.*)")
# Not `<<<`, which takes a word, nor the `<<` of arithmetic, behind which a number stands.
_HEREDOC = re.compile(r"(?<!<)<<-?\s*(?:(['\"])(?P<quoted>[^'\"\n]+)\1|(?P<escape>\\?)(?P<bare>[A-Za-z_][\w.-]*))")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_ARRAY_BEGINS = re.compile(r"(?:^|[\s;])[A-Za-z_]\w*\+?=\([^()]*$")
_DECLARES = {"export", "declare", "local", "readonly", "typeset"}
# All that variables add to a script: they may hold each other's text twice, and grow without end.
_MOST_CHARACTERS_PUT_IN = 2**18
_MOST_VALUE_CHARACTERS = 2**13
_BEFORE_A_COMMAND = {"exec", "if", "then", "else", "elif", "while", "until", "do", "time", "!", "{", "command", "env"}
_PRINTS = {"echo", "printf"}
_NUMBER_OF_A_STREAM = re.compile(r"(?<=\s)[0-9]+(?=[<>])")
_COMMENT = re.compile(r"(^|\s)#.*")
_QUOTES = set("'\"\\")
_PUNCTUATION = set(";&|()<>")
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Option:
    """An option by its long name, without dashes; `value` is empty for one that has none."""

    name: str
    value: str
    line: int


@dataclass(frozen=True)
class Command:
    """A simple command: its words without redirections and the assignments in front of it. What only prints is none.

    Variables whose values the script says are put in. `is_exec`: it takes the shell's place. `in_background`: an `&`
    ends it. `early`: variables that differ between tasks, and that the script's own shell expands.
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
        """The value of a long option or of its short form; '' where it has none, None where it is not there."""
        return next((option.value for option in read_options(self.words[1:], self.line) if option.name == name), None)


@dataclass(frozen=True)
class Line:
    """Lines joined at their backslashes, without comments."""

    number: int
    text: str


@dataclass(frozen=True)
class _Heredoc:
    """The lines between `<<END` and `END`, the first of which has the number; `opener` is the line before them."""

    opener: Line
    number: int
    lines: tuple[str, ...]
    is_expanded: bool


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
    scripts: tuple[Embedded, ...] = ()

    @property
    def has_directives(self) -> bool:
        """Whether it asks for anything itself; else the command line may, or the script is none for sbatch."""
        return bool(self.options or self.late_options)

    def option(self, *names: str) -> Option | None:
        """The last of them that sbatch reads: it is the one that counts."""
        return next((option for option in reversed(self.options) if option.name in names), None)


@dataclass(frozen=True)
class Embedded:
    """A batch script in a heredoc. `offset` lines stand before it. `early`: the lines on which the shell that submits
    it expands a variable of SLURM's, with its name.
    """

    file: BatchFile
    offset: int
    early: tuple[tuple[int, str], ...]


def parse(text: str) -> BatchFile:
    """Never fails: what cannot be read as a command is left out."""
    return _parse(text, {}, (), is_embedded=False)


def _parse(text: str, variables: Mapping[str, str], more: tuple[Option, ...], *, is_embedded: bool) -> BatchFile:
    """`variables` are those that were put into the text, `more` the options of the command line."""
    unmarked = text.removeprefix(_BYTE_ORDER_MARK)
    raw_lines, dos_line, mac_line = _raw_lines(unmarked)
    lines, heredocs = _logical_lines(raw_lines)
    foreign = {heredoc.number + index for heredoc in heredocs for index in range(len(heredoc.lines))}
    raw_lines = tuple("" if number in foreign else line for number, line in enumerate(raw_lines, 1))
    options, late = _directives(raw_lines)
    known = dict(variables)
    commands: list[Command] = []
    scripts: list[Embedded] = []
    openers = {heredoc.opener.number: heredoc for heredoc in heredocs}
    room = _MOST_CHARACTERS_PUT_IN
    for line in lines:
        bare = without_substitutions(line.text)
        expanded = expand(bare, known) if room > 0 else bare
        room -= max(0, len(expanded) - len(bare))
        own = list(_commands(expanded, line.number, known))
        commands += own
        inner = openers.get(line.number)
        if inner is not None and not is_embedded:
            submit = next((command for command in own if command.words[0] == "sbatch"), None)
            if submit or any(map(_DIRECTIVE.match, inner.lines)):
                scripts.append(_embedded(inner, known if room > 0 else {}, submit))
                room -= sum(map(len, scripts[-1].file.raw_lines)) - sum(map(len, inner.lines))
    return BatchFile(
        raw_lines=raw_lines,
        has_byte_order_mark=unmarked != text,
        dos_line=dos_line,
        mac_line=mac_line,
        options=(*options, *more),
        late_options=late,
        lines=lines,
        commands=tuple(commands),
        scripts=tuple(scripts),
    )


def _embedded(heredoc: _Heredoc, variables: Mapping[str, str], submit: Command | None) -> Embedded:
    inner, early = list(heredoc.lines), []
    room = _MOST_CHARACTERS_PUT_IN
    if heredoc.is_expanded:
        for number, line in enumerate(heredoc.lines, 1):
            inner[number - 1], names = expand_heredoc_line(line, variables if room > 0 else {})
            room -= len(inner[number - 1]) - len(line)
            early += [(number, name) for name in names]
    # What the command line says counts more than a directive.
    options = tuple(read_options(submit.words[1:], 1)) if submit else ()
    known = variables if heredoc.is_expanded else {}
    file = _parse("\n".join(inner), known, options, is_embedded=True)
    return Embedded(file, heredoc.number - 1, tuple(early))


def _directives(raw_lines: Sequence[str]) -> tuple[tuple[Option, ...], tuple[Option, ...]]:
    """The options that sbatch reads, and those behind the first command."""
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
    return tuple(options), tuple(late)


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
            if not equals and following is not None and not following.startswith("-") and name in _WITH_VALUE:
                value, index = following, index + 1
            yield Option(name.replace("_", "-"), value, line)
        elif word[:2] in _SHORT:
            value = word[2:].removeprefix("=")
            if not value and following is not None:
                value, index = following, index + 1
            yield Option(_SHORT[word[:2]], value, line)
        elif word[:2] in _SHORT_FLAGS:
            yield Option(_SHORT_FLAGS[word[:2]], word[2:], line)


def _logical_lines(raw_lines: Sequence[str]) -> tuple[tuple[Line, ...], list[_Heredoc]]:
    """The lines, and the heredocs, which are no lines of the script."""
    lines: list[Line] = []
    heredocs: list[_Heredoc] = []
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
        if _ARRAY_BEGINS.search(_COMMENT.sub("", "".join(parts))):
            while index < len(raw_lines) and ")" not in parts[-1]:
                parts += ["\n", raw_lines[index]]
                index += 1
        text = "".join(parts)
        line = Line(number, text if _is_open(_COMMENT.sub("", text)) else _COMMENT.sub("", text))
        heredoc = _HEREDOC.search(without_substitutions(line.text))
        if heredoc is not None:
            first = index
            end = heredoc["quoted"] or heredoc["bare"]
            while index < len(raw_lines) and raw_lines[index].strip() != end:
                index += 1
            is_expanded = heredoc["bare"] is not None and not heredoc["escape"]
            heredocs.append(_Heredoc(line, first + 1, tuple(raw_lines[first:index]), is_expanded))
            index += 1
        if text.strip():
            lines.append(line)
    return tuple(lines), heredocs


def _is_open(text: str) -> bool:
    """Whether a quotation goes on in the next line."""
    try:
        shlex.split(_COMMENT.sub("", text).rstrip("\\"))
    except ValueError:
        return True
    return False


def _commands(expanded: str, number: int, variables: dict[str, str]) -> Iterator[Command]:
    """A line's commands, once the variables that earlier lines set are put in; what this one sets is added to them."""
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
            # A redirection, with the file behind it.
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
        # In front of a command they are that command's alone.
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


def _split(text: str, *, comments: bool) -> list[str]:
    try:
        return shlex.split(text, comments=comments)
    except ValueError:
        return text.split()
