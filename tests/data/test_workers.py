from __future__ import annotations

import pytest

from dist_trainer.data.workers import default_num_workers


@pytest.mark.parametrize(
    ("cores", "ranks", "workers"),
    [(2, 2, 0), (2, 1, 1), (1, 1, 0), (1, 8, 0), (8, 4, 1), (16, 4, 3), (128, 8, 4), (9, 8, 0)],
)
def test_workers_are_for_the_cores_that_ranks_do_not_need(cores: int, ranks: int, workers: int) -> None:
    assert default_num_workers(cores, ranks) == workers
