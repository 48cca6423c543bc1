from __future__ import annotations

import pytest

from dist_trainer.cluster.threads import threads_per_rank

TORCHRUN_DEFAULT = {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("environ", "host", "own", "ranks", "threads"),
    [
        ({}, 16, 16, 4, 4),
        ({}, 2, 2, 4, 1),
        ({}, 16, 2, 4, 2),
        ({"OMP_NUM_THREADS": "3"}, 16, 16, 4, 3),
        ({"OMP_NUM_THREADS": "1"}, 16, 16, 4, 1),
        (TORCHRUN_DEFAULT, 16, 16, 4, 4),
        ({"OMP_NUM_THREADS": "many"}, 16, 16, 4, 4),
    ],
)
def test_threads_are_what_the_user_says_or_a_share_of_the_cores(
    environ: dict[str, str], host: int, own: int, ranks: int, threads: int
) -> None:
    assert threads_per_rank(environ, host_cores=host, own_cores=own, local_world_size=ranks) == threads
