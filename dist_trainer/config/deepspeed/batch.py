"""train_batch_size = micro batch x accumulation x world size: derived where something is missing, never guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dist_trainer.config.deepspeed.keys import Facts
from dist_trainer.errors import UserError

TRAIN = "train_batch_size"
MICRO = "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"


@dataclass(frozen=True)
class Batch:
    micro: int
    accumulation: int
    world_size: int

    @property
    def train(self) -> int:
        return self.micro * self.accumulation * self.world_size

    def __str__(self) -> str:
        return f"{self.train} = {self.micro} x {self.accumulation} x {self.world_size}"


def _divisors(value: int) -> set[int]:
    """Divisors up to its square root, or up to a million if that is less, and the quotients they leave."""
    small = {size for size in range(1, min(math.isqrt(value), 10**6) + 1) if value % size == 0}
    return small | {value // size for size in small}


def nearest(train: int, micro: int, accumulation: int, world_size: int) -> list[Batch]:
    """Consistent batches near to what was asked: two of size `train` at most, then the one that keeps micro batch and
    accumulation. If `train` is no multiple of the world size, the multiples below and above take its place, one each.
    """
    totals = (
        [train] if train % world_size == 0 else [train - train % world_size, train - train % world_size + world_size]
    )
    found: list[Batch] = []
    for total in (total for total in totals if total > 0):
        per_rank = total // world_size
        pairs = [Batch(size, per_rank // size, world_size) for size in _divisors(per_rank)]
        pairs.sort(
            key=lambda batch: (
                abs(math.log(batch.micro / micro)) + abs(math.log(batch.accumulation / accumulation)),
                batch.micro,
            )
        )
        found += pairs[: 2 if len(totals) == 1 else 1]
    keeping = Batch(micro, accumulation, world_size)
    return found if keeping in found else [*found, keeping]


def _does_not_multiply(train: int, micro: int | None, accumulation: int | None, world: int, source: str) -> UserError:
    shown_micro = "?" if micro is None else micro
    shown_accumulation = "?" if accumulation is None else accumulation
    known = (micro or 1) * (accumulation or 1) * world
    product = f"which is {known}" if micro and accumulation else f"a multiple of {known}"
    guess_micro = micro or max(1, train // world // (accumulation or 1))
    guess_accumulation = accumulation or max(1, train // world // guess_micro)
    options = nearest(train, guess_micro, guess_accumulation, world)
    return UserError(
        f"{TRAIN} is not micro batch x accumulation x world size",
        where=source,
        key=TRAIN,
        found=train,
        expected=f"{shown_micro} x {shown_accumulation} x {world}, {product}",
        hint="make it one of these (batch = micro x accumulation x world size): " + "; ".join(map(str, options)),
    )


def derive(config: Mapping[str, Any], facts: Facts, *, source: str) -> Batch:
    """The three sizes for this world size; a missing one is derived as by DeepSpeed's _set_batch_related_parameters.

    An "auto" counts as missing, but if the others leave it open it is facts.micro_batch or facts.accumulation.
    Raises UserError if nothing says how large a batch is, or if the product is not train_batch_size.
    """
    world = facts.world_size

    def said(key: str) -> int | None:
        value = config.get(key)
        return value if isinstance(value, int) else None

    def automatic(key: str) -> bool:
        return config.get(key) == "auto"

    train, micro, accumulation = said(TRAIN), said(MICRO), said(ACCUMULATION)
    if train is None and micro is None and not (automatic(TRAIN) or automatic(MICRO)):
        raise UserError(
            "nothing says how large a batch is",
            where=source,
            key=MICRO,
            expected=f"{TRAIN} or {MICRO}",
            hint=f'add "{MICRO}": 1, or "auto"',
        )
    if train is None:
        default_accumulation = facts.accumulation if automatic(ACCUMULATION) else 1
        return Batch(micro or facts.micro_batch, accumulation or default_accumulation, world)
    if micro is None and accumulation is None:
        if automatic(MICRO):
            micro = facts.micro_batch
        else:
            accumulation = 1
    per_rank = train // world
    batch = Batch(
        micro or per_rank // (accumulation or 1),
        accumulation or per_rank // (micro or 1),
        world,
    )
    if batch.train != train:
        raise _does_not_multiply(train, micro, accumulation, world, source)
    return batch
