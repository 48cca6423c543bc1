"""The default number of data loader workers of a rank."""

from __future__ import annotations

_MAX_WORKERS = 4


def default_num_workers(cores: int, local_world_size: int) -> int:
    """Workers for each rank on a host with `cores` CPU cores: none unless each rank has a core to spare."""
    return min(_MAX_WORKERS, max(0, cores // local_world_size - 1))
