"""The process of one rank: its environment, threads, device and process group, from the first line to the last."""

from __future__ import annotations

import logging
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.cluster.threads import threads_here
from dist_trainer.config.adapt import DeviceFacts
from dist_trainer.errors import EXIT_OK, EXIT_TARGET_MISSED, UserError
from dist_trainer.logs import open_rank_log, rank_log_path
from dist_trainer.train import meeting, op_builds
from dist_trainer.train.async_io import has_async_io
from dist_trainer.train.preemption import Preemption
from dist_trainer.units import counted

_Value = TypeVar("_Value")


def set_threads(rank: RankInfo) -> int:
    """Gives torch this rank's share of the host's cores; returns how many threads that is."""
    threads = threads_here(os.environ, rank.local_world_size)
    torch.set_num_threads(threads)
    return threads


def quiet_profiler() -> None:
    """Silences torch's profiler, which prints at start and stop unless this is set before its first use."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def measure_on_the_cpu() -> None:
    """To be called before DeepSpeed is imported: trains and profiles on the CPU, even on a host with GPUs."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    quiet_profiler()


def export_rank(rank: RankInfo) -> None:
    """Sets the rank's variables for torch and DeepSpeed. No other code writes them."""
    os.environ.update(
        RANK=str(rank.rank),
        WORLD_SIZE=str(rank.world_size),
        LOCAL_RANK=str(rank.local_rank),
        LOCAL_WORLD_SIZE=str(rank.local_world_size),
    )
    if rank.world_size > 1:
        os.environ.update(MASTER_ADDR=rank.master_addr, MASTER_PORT=str(rank.master_port))


def device_facts(*, asks_async_io: bool = False) -> DeviceFacts:
    """What this rank's accelerator supports, by DeepSpeed's account. NVMe is checked only with `asks_async_io`."""
    import shutil

    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    kind: Literal["cpu", "cuda"] = "cuda" if accelerator.device_name() == "cuda" else "cpu"
    return DeviceFacts(
        kind=kind,
        supports_bf16=bool(accelerator.is_bf16_supported()),
        supports_fp16=bool(accelerator.is_fp16_supported()),
        has_compiler=any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")),
        name=torch.cuda.get_device_name(0) if kind == "cuda" else "CPU",
        has_async_io=not asks_async_io or has_async_io(),
    )


def device_index(rank: RankInfo, device: DeviceFacts) -> int:
    """This rank's device among those that it sees; with SLURM's --gpus-per-task each task sees only its own GPU. Ranks
    that all see the same one are found when they meet.

    CPUs have no index: for them it is the local rank, also on a host whose GPUs are not to be used. Raises UserError if
    there are more ranks than visible GPUs.
    """
    if device.kind == "cpu":
        return rank.local_rank
    visible = torch.cuda.device_count()
    if visible == 1:
        return 0
    if rank.local_rank >= visible:
        raise UserError(
            "more ranks on this host than GPUs",
            where="launcher",
            key="ranks per host",
            found=rank.local_world_size,
            expected=f"at most {visible}",
            hint="start one rank per GPU, or make more GPUs visible (CUDA_VISIBLE_DEVICES)",
        )
    return rank.local_rank


def join_process_group(rank: RankInfo, device: DeviceFacts, *, is_launched: bool = False) -> None:
    """Joins all ranks in torch's process group, which DeepSpeed then takes over. Collective.

    `is_launched`: `launch` started the ranks, and itself reports the hosts that it waits for. Raises UserError if the
    rendezvous (MASTER_ADDR, MASTER_PORT) cannot be used, and on all but the first of the ranks that have one GPU.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    _check_meeting_place(rank)
    export_rank(rank)
    # One rank of each host does it; not the first, because rank 0 plans while the others wait.
    if rank.local_rank == rank.local_world_size - 1:
        op_builds.delete_abandoned_locks(op_builds.build_folder(os.environ))
    if device.kind == "cpu":
        # An op for inference only, which DeepSpeed would compile at the first start, for half a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        torch.cuda.set_device(device_index(rank, device))
    backend = get_accelerator().communication_backend_name()
    try:
        if rank.world_size == 1:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        else:
            store = meeting.meet(rank, is_launched=is_launched)
            if device.kind == "cuda":
                _claim_gpu(store, rank, device_index(rank, device))
            dist.init_process_group(
                backend, store=store, rank=rank.rank, world_size=rank.world_size, timeout=timedelta(minutes=30)
            )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise UserError(
            "the ranks could not meet",
            where="environment",
            key="MASTER_ADDR, MASTER_PORT",
            found=f"{rank.master_addr}:{rank.master_port} ({str(error).splitlines()[0]})",
            hint="set MASTER_PORT to a free port, and MASTER_ADDR to an address of rank 0's host",
        ) from error
    deepspeed.init_distributed(auto_mpi_discovery=False)


def _claim_gpu(store: Any, rank: RankInfo, index: int) -> None:
    """Raises UserError if another rank has claimed this GPU before. NCCL would refuse it too, but only in the first
    collective and with less said. One rank alone cannot know: under torchrun all ranks of a host may see one GPU, and
    with SLURM's --gpus-per-task each sees one of its own.
    """
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    if store.add(f"dist_trainer/gpu/{uuid}", 1) == 1:
        return
    raise UserError(
        "another rank has the same GPU",
        where=f"rank {rank.rank}",
        found=f"GPU-{uuid}, of {counted(torch.cuda.device_count(), 'visible GPU')}",
        expected=f"a GPU for each of the {rank.local_world_size} ranks on this host",
        hint="start one rank per GPU, or make more GPUs visible (CUDA_VISIBLE_DEVICES)",
    )


def _check_meeting_place(rank: RankInfo) -> None:
    """Resolves MASTER_ADDR, because with an unknown name torch would retry for half an hour."""
    if rank.world_size == 1:
        return
    try:
        socket.getaddrinfo(rank.master_addr, rank.master_port)
    except OSError as error:
        raise UserError(
            "the name of the ranks' meeting place cannot be resolved",
            where="environment",
            key="MASTER_ADDR",
            found=f"{rank.master_addr} ({error.strerror})",
            hint="set MASTER_ADDR to a name or an address of rank 0's host that every host knows",
        ) from error


def stop_together(preemption: Preemption, *, limit_s: float) -> None:
    """From now on all ranks stop when one gets a signal. `limit_s`: how long that may take."""
    store = distributed_c10d.PrefixStore("dist_trainer/stop", distributed_c10d._get_default_store())
    preemption.join(store, rank=dist.get_rank(), world_size=dist.get_world_size(), limit_s=limit_s)


def agree_on(value: _Value | None) -> _Value:
    """Rank 0's value, on every rank. Collective."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return box[0]


def open_logs(run_dir: Path, rank: RankInfo) -> None:
    """Sends log lines, warnings, and on ranks above 0 all printed output, to the rank's own log file."""
    handler = open_rank_log(run_dir, rank.rank)
    for name in ("DeepSpeed", "py.warnings", "torch"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    logging.captureWarnings(True)
    if rank.rank > 0:
        sys.stdout.flush()
        log_fd = os.open(rank_log_path(run_dir, rank.rank), os.O_WRONLY | os.O_APPEND)
        os.dup2(log_fd, sys.stdout.fileno())
        os.dup2(log_fd, sys.stderr.fileno())
        os.close(log_fd)


def leave(status: int) -> NoReturn:
    """Ends the process. Not by returning: gloo's threads can abort a Python that shuts down while they still run."""
    if status in (EXIT_OK, EXIT_TARGET_MISSED) and dist.is_initialized():
        dist.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
