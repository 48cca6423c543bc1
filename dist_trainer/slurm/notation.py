"""SLURM's notations for times, GPUs, arrays, nodes and jobs. Parsers raise ValueError for any other text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from dist_trainer.units import GIB, MIB, whole_number

_ENDLESS = ("UNLIMITED", "INFINITE", "NONE", "NOT_SET", "N/A")
# A number of at most 12 digits; longer ones are no count of anything here.
_N = "([0-9]{1,12})"
_DAYS = re.compile(f"{_N}-{_N}(?::{_N})?(?::{_N})?")
_CLOCK = re.compile(f"(?:(?:{_N}:)?{_N}:)?{_N}")
_FIELD = re.compile(r"(?:^|\s)([A-Z][A-Za-z0-9_/:]*)=")
_ARRAY_PART = re.compile(f"{_N}(?:-{_N}(?::{_N})?)?")
_MOST_TASKS = 100_000
_MEMORY = re.compile(f"{_N}([KMGT]?)")
_MEMORY_UNITS = {"K": 2**10, "": MIB, "M": MIB, "G": GIB, "T": 2**40}


def parse_time_s(text: str) -> float:
    """A time limit in seconds, infinity for UNLIMITED: '90' is minutes, '12:00:00' hours, '2-12' days and hours."""
    if text.upper() in _ENDLESS:
        return math.inf
    days = _DAYS.fullmatch(text)
    if days is not None:
        day, hour, minute, second = (int(part or 0) for part in days.groups())
        return float(day * 86_400 + hour * 3_600 + minute * 60 + second)
    clock = _CLOCK.fullmatch(text)
    if clock is None:
        raise ValueError(f"{text!r} is not a time as SLURM writes it: MINUTES, HH:MM:SS or DAYS-HH:MM:SS")
    hours, middle, last = clock.groups()
    # A single number is minutes; two numbers are minutes and seconds.
    if middle is None:
        return 60.0 * int(last)
    return float(int(hours or 0) * 3_600 + int(middle) * 60 + int(last))


def format_time(seconds: float) -> str:
    """Seconds as '12 h', '90 min' or '1 h 30 min', for people."""
    if math.isinf(seconds):
        return "no limit"
    minutes, rest = divmod(round(seconds), 60)
    if rest or not minutes:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return " ".join([*([f"{hours} h"] if hours else []), *([f"{minutes} min"] if minutes else [])])


def parse_memory_bytes(text: str) -> int:
    """The value of --mem in bytes: '64G', '4000' (MiB), or '0', which means all memory of a node."""
    match = _MEMORY.fullmatch(text.upper())
    if match is None:
        raise ValueError(f"{text!r} is not an amount of memory as SLURM writes it: 64G, or a number of MiB")
    return int(match.group(1)) * _MEMORY_UNITS[match.group(2)]


def parse_moment(text: str) -> float | None:
    """'2026-11-24T18:15:00' in this host's time zone as seconds since the epoch; None if SLURM gives no time."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").timestamp()
    except ValueError:
        return None


@dataclass(frozen=True)
class Gpus:
    """Numbers of GPUs by type; the type None means any."""

    by_kind: tuple[tuple[str | None, int], ...]

    @property
    def count(self) -> int:
        return sum(count for _, count in self.by_kind)

    def holds(self, asked: Gpus) -> bool:
        """Whether a node with these GPUs can serve a request for `asked`."""
        have = dict(self.by_kind)
        return self.count >= asked.count and all(
            kind is None or have.get(kind, 0) >= count for kind, count in asked.by_kind
        )

    def __str__(self) -> str:
        return ", ".join(f"{count} x {kind or 'GPU'}" for kind, count in self.by_kind) or "no GPU"


NO_GPUS = Gpus(())


def parse_gpu_counts(text: str) -> Gpus:
    """The value of --gpus-per-node, --gpus-per-task or --gpus: '8', 'a100:8', 'a100:4,h100:4'."""
    return Gpus(tuple(_kind_and_count(part.split(":"), text) for part in text.split(",")))


def parse_gres(text: str) -> Gpus:
    """The GPUs in --gres or in a node's Gres: 'gpu:2', 'gpu:a100:8(S:0-1),nvme:1', 'gpu', '(null)'."""
    found = []
    for part in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *rest = part.removeprefix("gres/").removeprefix("gres:").split(":")
        if name == "gpu":
            found.append(_kind_and_count(rest or ["1"], text))
    return Gpus(tuple(found))


def _kind_and_count(parts: list[str], text: str) -> tuple[str | None, int]:
    if len(parts) == 1 and whole_number(parts[0]) is None:
        # `gpu:a100` means one GPU of that type.
        parts = [*parts, "1"]
    kind, count = (None, parts[0]) if len(parts) == 1 else (":".join(parts[:-1]), parts[-1])
    number = whole_number(count)
    if number is None or (kind is not None and not kind[:1].isalnum()):
        raise ValueError(f"{text!r} is not a number of GPUs: write it like 8 or a100:8")
    return kind, number


def parse_array(text: str) -> tuple[int, ...]:
    """The task numbers of a job array: '0-3', '1,3,5', '0-15:4', '0-9%2'."""
    numbers: list[int] = []
    listed, percent, limit = text.partition("%")
    for part in listed.split(","):
        match = _ARRAY_PART.fullmatch(part)
        first, last, step = (int(piece) if piece else None for piece in match.groups()) if match else (None,) * 3
        if first is None or step == 0 or (last is not None and last < first) or (percent and not whole_number(limit)):
            raise ValueError(f"{text!r} is not an array: write it like 0-3, 1,3,5 or 0-15:4%2")
        part_of_it = range(first, (first if last is None else last) + 1, step or 1)
        if len(part_of_it) + len(numbers) > _MOST_TASKS:
            raise ValueError(f"{text!r} has more than {_MOST_TASKS} tasks")
        numbers.extend(part_of_it)
    return tuple(dict.fromkeys(numbers))


def read_fields(line: str) -> dict[str, str]:
    """One line of `scontrol show ... --oneliner`. A value may hold spaces: it ends where the next NAME= begins."""
    marks = list(_FIELD.finditer(line))
    ends = [mark.start() for mark in marks[1:]] + [len(line)]
    return {mark.group(1): line[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)}


def records_of(text: str, first_field: str) -> Iterator[dict[str, str]]:
    """The lines of `scontrol show ... --oneliner` that begin with this field; other lines say that there are none."""
    for line in text.splitlines():
        if line.startswith(f"{first_field}="):
            yield read_fields(line)
