"""How many processes read data for a rank, where nobody says it."""

from __future__ import annotations

_MAX_WORKERS = 4


def default_num_workers(cores: int, local_world_size: int) -> int:
    """Loader workers for each rank on a host with `cores`: none unless a rank has a core to spare."""
    return min(_MAX_WORKERS, max(0, cores // local_world_size - 1))
