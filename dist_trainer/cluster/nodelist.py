"""SLURM's compressed forms, expanded: lists of nodes, and numbers of tasks per node."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import product

from dist_trainer.errors import UserError

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
_LAST_NUMBER = re.compile(r"(.*?)([0-9]{1,18})([^0-9]*)")
_REPEATED = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,5})\))?")
# SLURM's own limit, MAX_RANGE. A longer range is not a list of nodes, and would exhaust the memory.
_MAX_NUM_IN_RANGE = 1 << 16


def expand_nodelist(text: str, *, where: str = "SLURM_JOB_NODELIST") -> tuple[str, ...]:
    """'node[01-03,7],gpu1' -> ('node01', 'node02', 'node03', 'node7', 'gpu1'), in the order written.

    Raises UserError, naming `where`, when the text is not a node list.
    """
    names: list[str] = []
    for part in _split_outside_brackets(text, where):
        pieces = _BRACKETS.split(part)
        # re.split with one group alternates: text, ranges, text, ranges, ..., text
        choices = [_expand_ranges(piece, text, where) if index % 2 else (piece,) for index, piece in enumerate(pieces)]
        if any(bracket in "".join(pieces[::2]) for bracket in "[]"):
            raise _not_a_nodelist(text, where)
        if len(names) + math.prod(map(len, choices)) > _MAX_NUM_IN_RANGE:
            raise _not_a_nodelist(text, where)
        names.extend("".join(choice) for choice in product(*choices))
    return tuple(names)


def fold_nodelist(names: Iterable[str]) -> str:
    """The compressed form of the names, as `expand_nodelist` reads it: 'node[01-03,7],gpu1'.

    Names keep their order; neighbours are folded if they differ in their last number only.
    """
    parts: list[tuple[str, list[str], str]] = []
    for name in names:
        match = _LAST_NUMBER.fullmatch(name)
        front, number, back = match.groups() if match else (name, "", "")
        if number and parts and parts[-1][1] and (parts[-1][0], parts[-1][2]) == (front, back):
            parts[-1][1].append(number)
        else:
            parts.append((front, [number] if number else [], back))
    return ",".join(f"{front}{_fold_numbers(numbers)}{back}" for front, numbers, back in parts)


def expand_tasks_per_node(text: str, *, where: str = "SLURM_TASKS_PER_NODE") -> tuple[int, ...]:
    """'2(x3),1' -> (2, 2, 2, 1). Raises UserError, naming `where`, for any other text."""
    counts: list[int] = []
    for part in text.split(","):
        match = _REPEATED.fullmatch(part)
        if match is None or len(counts) + int(match.group(2) or 1) > _MAX_NUM_IN_RANGE:
            raise UserError(
                "This is not SLURM's form of numbers per node.",
                where="the environment",
                key=where,
                found=text,
                expected="a form like '2(x3),1'",
            )
        counts.extend([int(match.group(1))] * int(match.group(2) or 1))
    return tuple(counts)


def _fold_numbers(numbers: list[str]) -> str:
    if len(numbers) < 2:
        return "".join(numbers)
    ranges: list[list[str]] = []
    for number in numbers:
        last = ranges[-1][-1] if ranges else None
        if last is not None and number == f"{int(last) + 1:0{len(last)}d}" and len(number) == len(last):
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return f"[{','.join('-'.join(ends) for ends in ranges)}]"


def _split_outside_brackets(text: str, where: str) -> list[str]:
    parts = re.split(r",(?![^\[]*\])", text)
    if not all(parts) or any(character.isspace() for character in text):
        raise _not_a_nodelist(text, where)
    return parts


def _expand_ranges(ranges: str, text: str, where: str) -> tuple[str, ...]:
    names: list[str] = []
    for part in ranges.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise _not_a_nodelist(text, where)
        first, last = match.group(1), match.group(2) or match.group(1)
        if not 0 <= int(last) - int(first) < _MAX_NUM_IN_RANGE:
            raise _not_a_nodelist(text, where)
        if len(names) + int(last) - int(first) >= _MAX_NUM_IN_RANGE:
            raise _not_a_nodelist(text, where)
        names.extend(f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return tuple(names)


def _not_a_nodelist(text: str, where: str) -> UserError:
    return UserError(
        "This is not a SLURM node list.",
        where="the environment",
        key=where,
        found=text,
        expected="a form like 'node[01-03,7],gpu1'",
    )
