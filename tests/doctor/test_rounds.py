from __future__ import annotations

import pytest

from dist_trainer.doctor.rounds import rank_pairs, ring_rounds


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9, 1000, 1001])
def test_every_neighbour_is_met_in_few_rounds_and_nobody_twice_in_one(count: int) -> None:
    rounds = ring_rounds(range(count))
    assert len(rounds) <= 3
    for pairs in rounds:
        busy = [item for pair in pairs for item in pair]
        assert len(busy) == len(set(busy))
    met = {frozenset(pair) for pairs in rounds for pair in pairs}
    assert met == {frozenset((place, (place + 1) % count)) for place in range(count)}


def test_one_alone_has_nobody_to_measure_with() -> None:
    assert ring_rounds([0]) == []


@pytest.mark.parametrize(
    ("ranks_by_host", "has_own_ways", "rounds"),
    [
        ([[0, 1], [2, 3]], False, [[(0, 2)]]),
        ([[0, 1], [2, 3]], True, [[(0, 2), (1, 3)]]),
        ([[0, 1, 2], [3]], True, [[(0, 3)]]),
        ([[0, 1]], False, []),
        ([[0, 1, 2]], True, [[(0, 1)], [(1, 2)], [(2, 0)]]),
    ],
    ids=["a rank for its host", "each GPU its own way", "uneven hosts", "one host", "the GPUs of one host"],
)
def test_which_ranks_measure_together(
    ranks_by_host: list[list[int]], has_own_ways: bool, rounds: list[list[tuple[int, int]]]
) -> None:
    assert rank_pairs(ranks_by_host, has_own_ways=has_own_ways) == rounds
