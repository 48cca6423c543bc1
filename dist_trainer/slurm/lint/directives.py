"""Rules about whether sbatch reads the script as it was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dist_trainer.slurm.lint.batch_file import BatchFile
from dist_trainer.slurm.lint.problem import Problem

# Does not match the placeholder `$_`, which stands for a value that the submitting shell has put in.
_VARIABLE = re.compile(r"\$(?!_\b)[A-Za-z_{(]|`")
_BLANK_IN_DIRECTIVE = re.compile(r"#\s+SBATCH\s+-")


def no_interpreter(file: BatchFile) -> Iterator[Problem]:
    if not file.raw_lines or not file.raw_lines[0].startswith("#!"):
        yield Problem(
            1, "the first line names no interpreter, and sbatch refuses the script", "begin it with #!/bin/bash"
        )


def byte_order_mark(file: BatchFile) -> Iterator[Problem]:
    if file.has_byte_order_mark:
        yield Problem(
            1,
            "an invisible byte-order mark stands before the first line, which so does not begin with #!, and sbatch "
            "refuses the script",
            "take it out: sed -i '1s/^\\xEF\\xBB\\xBF//' FILE, or save the file as UTF-8 without BOM",
        )


def carriage_return(file: BatchFile) -> Iterator[Problem]:
    if file.dos_line is not None:
        yield Problem(
            file.dos_line,
            "the line ends as in DOS (\\r\\n), and sbatch refuses the script",
            "convert it: sed -i 's/\\r$//' FILE",
        )


def mac_line_ends(file: BatchFile) -> Iterator[Problem]:
    if file.mac_line is not None:
        yield Problem(
            file.mac_line,
            "the line ends as on an old Mac (\\r alone): for sbatch and bash it goes on, and what follows, directives "
            "too, is lost",
            "convert it: sed -i 's/\\r*$//; s/\\r/\\n/g' FILE",
        )


def late_directive(file: BatchFile) -> Iterator[Problem]:
    for option in file.late_options:
        yield Problem(
            option.line,
            f"sbatch does not read --{option.name} here: it stops at the first command",
            "move it above the first command",
        )


def blank_in_directive(file: BatchFile) -> Iterator[Problem]:
    for number, line in enumerate(file.raw_lines, 1):
        if _BLANK_IN_DIRECTIVE.match(line):
            yield Problem(
                number,
                f"{line.strip()!r} is a comment for sbatch",
                "write #SBATCH without the blank, or ##SBATCH where it is meant as a comment",
            )


def variable_in_directive(file: BatchFile) -> Iterator[Problem]:
    for option in file.options:
        if _VARIABLE.search(option.value):
            yield Problem(
                option.line,
                f"sbatch expands no variables: it takes --{option.name}={option.value} to the letter",
                f"write the value, or give it on the command line: sbatch --{option.name}=... FILE; in names of files "
                "%j is the job, %x its name, %u the user",
            )
