"""All rules by name, and their application to a script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.errors import UserError
from dist_trainer.slurm.lint import directives, ending, meeting, ranks
from dist_trainer.slurm.lint.batch_file import Embedded, parse
from dist_trainer.slurm.lint.problem import Rule

# shlex needs seconds for a single word of this size, and minutes for a larger one.
_MOST_BYTES = 2**18

RULES: dict[str, Rule] = {
    "no-interpreter": directives.no_interpreter,
    "byte-order-mark": directives.byte_order_mark,
    "carriage-return": directives.carriage_return,
    "mac-line-ends": directives.mac_line_ends,
    "late-directive": directives.late_directive,
    "blank-in-directive": directives.blank_in_directive,
    "variable-in-directive": directives.variable_in_directive,
    "tasks-and-gpus": ranks.tasks_and_gpus,
    "gpus-per-task": ranks.gpus_per_task,
    "torchrun-per-task": ranks.torchrun_per_task,
    "torchrun-ranks": ranks.torchrun_ranks,
    "first-node-only": ranks.first_node_only,
    "early-variable": ranks.early_variable,
    "visible-devices": ranks.visible_devices,
    "cpus-per-task": ranks.cpus_per_task,
    "lost-rank": ranks.lost_rank,
    "local-master": meeting.local_master,
    "no-rendezvous": meeting.no_rendezvous,
    "fixed-port": meeting.fixed_port,
    "no-time": ending.no_time,
    "no-signal": ending.no_signal,
    "signal-unheard": ending.signal_unheard,
    "signal-waits": ending.signal_waits,
    "requeue-refused": ending.requeue_refused,
    "requeue-whole-array": ending.requeue_whole_array,
    "output-lost": ending.output_lost,
    "time-and-checkpoints": ending.time_and_checkpoints,
}
# The rules that hold for any shell script.
_OF_ANY_SCRIPT = ("carriage-return", "mac-line-ends")


@dataclass(frozen=True)
class Finding:
    """What a rule found, on which line, and what to do about it."""

    path: str
    line: int
    rule: str
    found: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.found} [{self.rule}]\n    do: {self.hint}"


def lint_file(path: Path) -> list[Finding]:
    """The findings in order of lines. Raises UserError if the file cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        # Not read_text, which would convert all line ends.
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError("This script cannot be read.", where="command line", found=f"{path}: {reason}") from error
    if len(data) > _MOST_BYTES:
        raise UserError(
            "This script is too long to be read.", where=str(path), expected=f"at most {_MOST_BYTES // 2**10} KiB"
        )
    return lint(text, str(path))


def lint(text: str, path: str) -> list[Finding]:
    file = parse(text)
    # A script that only submits others and has no #SBATCH lines is itself no batch script.
    names = _OF_ANY_SCRIPT if file.scripts and not file.has_directives else tuple(RULES)
    found = [
        Finding(path, offset + problem.line, name, problem.found, problem.hint)
        for part, offset, its_names in (
            (file, 0, names),
            *((one.file, one.offset, tuple(RULES)) for one in file.scripts),
        )
        for name in its_names
        for problem in RULES[name](part)
    ]
    if not file.has_directives:
        found += [finding for script in file.scripts for finding in _expanded_at_submission(script, path)]
    return sorted(found, key=lambda finding: finding.line)


def _expanded_at_submission(script: Embedded, path: str) -> Iterator[Finding]:
    for line, name in script.early:
        yield Finding(
            path,
            script.offset + line,
            "early-variable",
            f"the shell that submits the job expands ${name}, and has none",
            f"write \\${name}, or quote the heredoc's end (<<'EOF')",
        )
