"""Which ranks measure the way between them at the same time: few rounds, however many hosts there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")
Pair = tuple[int, int]


def rank_pairs(ranks_by_host: Sequence[Sequence[int]], *, has_own_ways: bool) -> list[list[Pair]]:
    """Rounds of pairs of ranks; in a round no rank is in two pairs, and after all rounds every host has been measured
    with the next one in the ring.

    Where ranks have ways of their own (GPUs, with a network card near each), all ranks of a host take part, each with
    the one at the same place on the other host, and on one host they make a ring; else one rank stands for its host.
    """
    if not has_own_ways:
        return ring_rounds([ranks[0] for ranks in ranks_by_host])
    if len(ranks_by_host) == 1:
        return ring_rounds(ranks_by_host[0])
    return [
        [pair for here, there in pairs for pair in zip(here, there, strict=False)]
        for pairs in ring_rounds(ranks_by_host)
    ]


def ring_rounds(items: Sequence[Item]) -> list[list[tuple[Item, Item]]]:
    """Every item with the next one, the last with the first: in two rounds, or three where the number is odd."""
    count = len(items)
    if count < 2:
        return []
    if count == 2:
        return [[(items[0], items[1])]]
    pairs = [(items[place], items[(place + 1) % count]) for place in range(count)]
    if count % 2 == 0:
        return [pairs[0::2], pairs[1::2]]
    return [pairs[0:-1:2], pairs[1:-1:2], pairs[-1:]]
