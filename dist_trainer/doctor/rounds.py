"""Which pairs of ranks measure their link at the same time: few rounds, however many hosts there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")
Pair = tuple[int, int]


def rank_pairs(ranks_by_host: Sequence[Sequence[int]], *, has_own_ways: bool) -> list[list[Pair]]:
    """Rounds of pairs of ranks. In a round no rank is in two pairs; after all rounds every host has been measured with
    its successor in the ring of hosts.

    `has_own_ways`: ranks have links of their own (GPUs with a network card near each). Then all ranks of a host take
    part, each paired with the rank at the same position on the other host, and the ranks of a single host form a ring.
    Otherwise one rank stands for its host.
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
    """Every item paired with its successor, the last with the first: in two rounds, or three for an odd number."""
    count = len(items)
    if count < 2:
        return []
    if count == 2:
        return [[(items[0], items[1])]]
    pairs = [(items[place], items[(place + 1) % count]) for place in range(count)]
    if count % 2 == 0:
        return [pairs[0::2], pairs[1::2]]
    return [pairs[0:-1:2], pairs[1:-1:2], pairs[-1:]]
