"""A batch script as a value: its #SBATCH options and its commands, as far as they can be parsed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from dist_trainer.slurm.lint.commands import Command, commands_of
from dist_trainer.slurm.lint.lines import Heredoc, Line, logical_lines, split_lines
from dist_trainer.slurm.lint.options import Option, read_options
from dist_trainer.slurm.lint.variables import PER_TASK, expand, expand_heredoc_line, without_substitutions

_DIRECTIVE = re.compile(r"#SBATCH\s+(.*)")
# The limit on all text that variables add: each may contain another twice, and so grow exponentially.
_MOST_CHARACTERS_PUT_IN = 2**18
_BYTE_ORDER_MARK = "\ufeff"
# `cat > run.sh <<EOF`, `tee run.sh <<EOF`.
_WRITTEN_FILE = re.compile(r"(?:>>?|\btee\s+(?:-a\s+)?)\s*([\w./-]+)")
_PER_TASK = re.compile(r"(?<!\\)\$\{?(" + "|".join(PER_TASK) + r")\b")


@dataclass(frozen=True)
class BatchFile:
    """`options`: those that sbatch reads; `late_options`: those that follow the first command, which it ignores. Of a
    heterogeneous job only the first component counts. `raw_lines`: as the author meant them, without a byte-order mark,
    and without carriage returns at line ends (`dos_line` is the first that has one) or in place of line feeds
    (`mac_line`).
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
    written: tuple[Written, ...] = ()

    @property
    def has_directives(self) -> bool:
        """Whether it has #SBATCH options. Without, the command line may have them, or it is no batch script."""
        return bool(self.options or self.late_options)

    def option(self, *names: str) -> Option | None:
        """The last of these options that sbatch reads, which is the one that counts; None if there is none."""
        return next((option for option in reversed(self.options) if option.name in names), None)


@dataclass(frozen=True)
class Written:
    """A per-task variable in a heredoc that the script writes into the file `name`: its own shell expands it there."""

    name: str
    line: int
    variable: str


@dataclass(frozen=True)
class Embedded:
    """A batch script in a heredoc, after `offset` lines of the outer script. `early`: (line, name) of SLURM's variables
    that the submitting shell expands.
    """

    file: BatchFile
    offset: int
    early: tuple[tuple[int, str], ...]


def parse(text: str) -> BatchFile:
    """Never raises: lines that cannot be parsed as commands are left out."""
    return _parse(text, {}, (), is_embedded=False)


def _parse(text: str, variables: Mapping[str, str], more: tuple[Option, ...], *, is_embedded: bool) -> BatchFile:
    """`variables`: their values are already substituted in the text. `more`: options of the sbatch command line."""
    unmarked = text.removeprefix(_BYTE_ORDER_MARK)
    raw_lines, dos_line, mac_line = split_lines(unmarked)
    lines, heredocs = logical_lines(raw_lines)
    foreign = {heredoc.number + index for heredoc in heredocs for index in range(len(heredoc.lines))}
    raw_lines = tuple("" if number in foreign else line for number, line in enumerate(raw_lines, 1))
    options, late = _directives(raw_lines)
    known = dict(variables)
    commands: list[Command] = []
    scripts: list[Embedded] = []
    written: list[Written] = []
    openers = {heredoc.opener.number: heredoc for heredoc in heredocs}
    room = _MOST_CHARACTERS_PUT_IN
    for line in lines:
        bare = without_substitutions(line.text)
        expanded = expand(bare, known) if room > 0 else bare
        room -= max(0, len(expanded) - len(bare))
        own = list(commands_of(expanded, line.number, known))
        commands += own
        inner = openers.get(line.number)
        if inner is not None and not is_embedded:
            submit = next((command for command in own if command.words[0] == "sbatch"), None)
            written += _written(inner, expanded)
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
        written=tuple(written),
    )


def _written(heredoc: Heredoc, opener: str) -> Iterator[Written]:
    target = _WRITTEN_FILE.search(opener)
    if target is None or not heredoc.is_expanded:
        return
    for number, line in enumerate(heredoc.lines, heredoc.number):
        for match in _PER_TASK.finditer(line):
            yield Written(PurePath(target.group(1)).name, number, match.group(1))


def _embedded(heredoc: Heredoc, variables: Mapping[str, str], submit: Command | None) -> Embedded:
    inner, early = list(heredoc.lines), []
    room = _MOST_CHARACTERS_PUT_IN
    if heredoc.is_expanded:
        for number, line in enumerate(heredoc.lines, 1):
            inner[number - 1], names = expand_heredoc_line(line, variables if room > 0 else {})
            room -= len(inner[number - 1]) - len(line)
            early += [(number, name) for name in names]
    # Options on the command line override directives.
    options = tuple(read_options(submit.words[1:], 1)) if submit else ()
    known = variables if heredoc.is_expanded else {}
    file = _parse("\n".join(inner), known, options, is_embedded=True)
    return Embedded(file, heredoc.number - 1, tuple(early))


def _directives(raw_lines: Sequence[str]) -> tuple[tuple[Option, ...], tuple[Option, ...]]:
    """The options that sbatch reads, and those after the first command, which it ignores."""
    first_command = next(
        (number for number, line in enumerate(raw_lines, 1) if line.strip() and not line.lstrip().startswith("#")),
        len(raw_lines) + 1,
    )
    options: list[Option] = []
    late: list[Option] = []
    for number, line in enumerate(raw_lines, 1):
        match = _DIRECTIVE.match(line)
        if match is not None:
            words = _words(match.group(1))
            if words[:1] in (["hetjob"], ["packjob"]):
                # The options that follow are for another component of the job.
                break
            (options if number < first_command else late).extend(read_options(words, number))
    return tuple(options), tuple(late)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return text.split()
