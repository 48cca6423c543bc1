"""Parses the options of sbatch and srun."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Short forms of the options that rules look at; all of these take a value.
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
# Further options that take a value, which may be the next word.
_LONG = {
    *("ntasks-per-node", "gres", "gpus-per-node", "gpus-per-task", "cpus-per-gpu", "mem", "mem-per-gpu", "mem-per-cpu"),
    *("signal", "open-mode", "export", "mail-type", "mail-user", "reservation", "time-min", "comment", "mpi"),
    *("container-image", "container-mounts", "container-name", "container-workdir", "wrap", "gpu-bind", "cpu-bind"),
}
_WITH_VALUE = {*_SHORT.values(), *_LONG}
_SHORT_FLAGS = {"-K": "kill-on-bad-exit"}


@dataclass(frozen=True)
class Option:
    """An option by its long name without dashes; `value` is empty if it has none."""

    name: str
    value: str
    line: int


def read_options(words: Sequence[str], line: int) -> Iterator[Option]:
    """Accepts --name=value, --name value, -n value and -nvalue; stops at the first word that is no option."""
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
