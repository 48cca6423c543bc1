"""Where the states of two checkpoints differ, whatever ranks, ZeRO stages and precisions they were written by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import Index, Parameter, elements_of
from dist_trainer.exchange.reading import DTYPES, Reader

# Compared at a time.
_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True)
class Difference:
    """Of one state of one parameter. `max_absolute` is infinite where one of two elements is no number, and
    `max_relative` is |a - b| / max(|a|, |b|).
    """

    parameter: str
    state: str
    num_elements: int
    num_different: int
    max_absolute: float
    max_relative: float

    def __str__(self) -> str:
        return (
            f"{self.parameter}'s {self.state}: {self.num_different} of {self.num_elements} elements, by "
            f"{self.max_absolute:.3g} at most, relatively by {self.max_relative:.3g}"
        )


@dataclass(frozen=True)
class Comparison:
    """`not_comparable`: one line for each shape that differs, and for what only one of both has. `other_dtypes`: states
    that were compared though one was kept in another dtype. `num_same`: states of parameters without a difference.
    """

    num_same: int
    differences: tuple[Difference, ...]
    not_comparable: tuple[str, ...]
    other_dtypes: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        return not self.differences and not self.not_comparable


def compare(first: Found, second: Found) -> Comparison:
    """Reads every element of both. Elements are compared by value: 0.0 is -0.0, and no number is no number.

    Raises DamageError for files that cannot be read.
    """
    ours, theirs = first.index.parameters, second.index.parameters
    num_same = 0
    differences: list[Difference] = []
    not_comparable: list[str] = []
    other_dtypes: list[str] = []
    with Reader(first.folder, first.index) as a, Reader(second.folder, second.index) as b:
        for name in dict.fromkeys((*ours, *theirs)):
            problem = _not_comparable(name, ours.get(name), theirs.get(name))
            if problem is not None:
                not_comparable.append(problem)
                continue
            states, others = ours[name].states, theirs[name].states
            for state in dict.fromkeys((*states, *others)):
                if state not in states or state not in others:
                    not_comparable.append(f"{name}'s {state} is only in {'A' if state in states else 'B'}")
                    continue
                num_elements = elements_of(ours[name], states[state])
                if num_elements != elements_of(theirs[name], others[state]):
                    not_comparable.append(f"{name}'s {state} has another number of elements in A than in B")
                    continue
                kept = states[state].dtype, others[state].dtype
                if kept[0] != kept[1]:
                    other_dtypes.append(f"{name}'s {state} is {kept[0]} in A, and {kept[1]} in B")
                dtype = DTYPES[kept[0]] if kept[0] == kept[1] else torch.float64
                found = _difference(a, b, name, state, num_elements, dtype)
                if found is None:
                    num_same += 1
                else:
                    differences.append(found)
    return Comparison(num_same, tuple(differences), tuple(not_comparable), tuple(other_dtypes))


def position_differences(first: Index, second: Index) -> Iterator[str]:
    """One line for each count in which they differ that does not follow from the batch."""
    a, b = _counts(first), _counts(second)
    for name in dict.fromkeys((*a, *b)):
        if a.get(name) != b.get(name):
            yield f"{name} is {_said(a.get(name))} in A, and {_said(b.get(name))} in B"


def _not_comparable(name: str, ours: Parameter | None, theirs: Parameter | None) -> str | None:
    if ours is None or theirs is None:
        return f"{name} is only in {'B' if ours is None else 'A'}"
    if ours.shape != theirs.shape:
        return f"{name} has shape {list(ours.shape)} in A, and {list(theirs.shape)} in B"
    return None


def _difference(
    a: Reader, b: Reader, parameter: str, state: str, num_elements: int, dtype: torch.dtype
) -> Difference | None:
    num_different, absolute, relative = 0, 0.0, 0.0
    blocks = torch.empty(2, min(_BLOCK_ELEMENTS, num_elements), dtype=dtype)
    for start in range(0, num_elements, _BLOCK_ELEMENTS):
        length = min(_BLOCK_ELEMENTS, num_elements - start)
        ours, theirs = blocks[0, :length], blocks[1, :length]
        a.read_into(ours, parameter, state, start)
        b.read_into(theirs, parameter, state, start)
        if torch.equal(ours, theirs):
            continue
        count, most, most_relative = _by_how_much(ours.double(), theirs.double())
        num_different += count
        absolute, relative = max(absolute, most), max(relative, most_relative)
    if not num_different:
        return None
    return Difference(parameter, state, num_elements, num_different, absolute, relative)


def _by_how_much(ours: Tensor, theirs: Tensor) -> tuple[int, float, float]:
    """The number of elements that differ, and the largest differences. fp64."""
    differ = (ours != theirs) & ~(ours.isnan() & theirs.isnan())
    ours, theirs = ours[differ], theirs[differ]
    if not ours.numel():
        return 0, 0.0, 0.0
    absolute = (ours - theirs).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    relative = (absolute / torch.maximum(ours.abs(), theirs.abs())).nan_to_num(nan=math.inf, posinf=math.inf)
    return ours.numel(), absolute.max().item(), relative.max().item()


def _counts(index: Index) -> dict[str, float]:
    position, counters = index.position, index.counters
    counts: dict[str, float] = {"step": position.step}
    for phase, progress in position.phases.items():
        counts[f"phase {phase}: steps"] = progress.steps
        counts[f"phase {phase}: tokens"] = progress.tokens
    for order, place in position.places.items():
        counts[f"data {order}: epoch"] = place.epoch
        counts[f"data {order}: tokens"] = place.tokens
    counts["skipped steps"] = counters.skipped_steps
    return {**counts, **_named("optimizer", counters.optimizer), **_named("loss scaler", counters.loss_scaler)}


def _named(what: str, counts: Mapping[str, float]) -> dict[str, float]:
    return {f"{what}: {name}": value for name, value in counts.items()}


def _said(count: float | None) -> str:
    return "not there" if count is None else f"{count:.15g}"
