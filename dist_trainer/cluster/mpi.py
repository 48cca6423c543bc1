"""The last resort for finding one's rank: asking MPI itself."""

from __future__ import annotations

import socket

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.errors import UserError


def ask_mpi() -> RankInfo:
    """Initialises MPI in this process and asks it; rank 0 chooses address and port. Collective."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "An MPI launcher started this process, no variable says its rank, and mpi4py cannot be used.",
            found=str(error),
            hint="install mpi4py and an MPI library, or start the ranks with ./launch.sh --launcher torchrun",
        ) from error
    world = MPI.COMM_WORLD
    local = world.Split_type(MPI.COMM_TYPE_SHARED)
    own_offer = (socket.gethostname(), _free_port()) if world.Get_rank() == 0 else None
    host, port = world.bcast(own_offer, root=0)
    is_one_host = local.Get_size() == world.Get_size()
    return RankInfo(
        rank=world.Get_rank(),
        world_size=world.Get_size(),
        local_rank=local.Get_rank(),
        local_world_size=local.Get_size(),
        master_addr="127.0.0.1" if is_one_host else host,
        master_port=port,
        source="mpi4py",
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
