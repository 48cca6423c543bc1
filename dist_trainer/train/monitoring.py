"""Which monitor watches a rank: its own, or in a large run that of its host."""

from __future__ import annotations

import secrets

import torch.distributed as dist

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.config.adapt import DeviceFacts
from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.endings import Start
from dist_trainer.monitor import host
from dist_trainer.monitor.memory import rank_device
from dist_trainer.monitor.rank import RankMonitor, RankSampler
from dist_trainer.train import process


def open_monitor(rank: RankInfo, resolved: ResolvedRun, started: Start, device: DeviceFacts) -> RankMonitor:
    """The monitor of this rank's GPU, from before the model is built to the end. In a large run local rank 0 monitors
    all ranks of its host. Collective in that case.
    """
    records_dir, interval_s = started.run_dir / "records", resolved.run.memory.sample_every_s
    start_id = started.events_size
    identity = rank_device(process.device_index(rank, device) if device.kind == "cuda" else None)
    if rank.world_size <= host.MAX_NUM_RANKS_ALONE:
        return RankSampler(records_dir, rank.rank, identity, interval_s, start_id=start_id)
    name = process.agree_on(secrets.token_hex(8) if rank.rank == 0 else None)
    place = host.PlaceOnHost(rank.rank, rank.local_rank, rank.local_world_size)
    return host.open_monitor(records_dir, place, identity, interval_s, start_id=start_id, name=name, meet=dist.barrier)


def stop_monitor(monitor: RankMonitor, rank: RankInfo) -> None:
    """To be called by all ranks when they are done; returns once every rank's samples are written."""
    if rank.world_size > host.MAX_NUM_RANKS_ALONE:
        # The monitor of a host has to wait for the last figures of the host's ranks.
        dist.barrier()
    monitor.stop()
    dist.barrier()
