"""Which rank this process is, of how many, and where the ranks rendezvous. A pure function of the environment."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from dist_trainer.cluster.environments import READERS, Environ, Place, mpi_launcher_variable, read_count
from dist_trainer.errors import UserError
from dist_trainer.units import counted

FIRST_PORT = 20_000
NUM_PORTS = 10_000
LAST_PORT = 65_535
_THIS_HOST = "127.0.0.1"


@dataclass(frozen=True)
class RankInfo:
    """The rank of one process. `master_port` is None only for a single rank whose environment names no port.

    `source` is 'torch' (torchrun, deepspeed), 'openmpi', 'pmi', 'slurm', 'mpi4py' or 'single'.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int | None
    source: str


def find_rank(environ: Environ, ask_mpi: Callable[[], RankInfo] | None = None) -> RankInfo:
    """This process's rank, from the variables of torchrun/deepspeed, Open MPI, PMI or SLURM, whichever are set first in
    this order.

    `ask_mpi` is called only if an MPI launcher is evidently at work but no variable says rank and size. Writes nothing.
    Raises UserError, naming the variable, for values that are missing or contradict each other.
    """
    place = next((found for found in (read(environ) for read in READERS) if found is not None), None)
    if place is None:
        evidence = mpi_launcher_variable(environ)
        if evidence is not None:
            return _from_mpi(environ, evidence, ask_mpi)
        place = Place("single", 0, 1, 0, 1)
    _check(place, environ)
    return RankInfo(
        rank=place.rank,
        world_size=place.world_size,
        local_rank=place.local_rank,
        local_world_size=place.local_world_size,
        master_addr=_master_addr(place, environ),
        master_port=_master_port(place, environ),
        source=place.source,
    )


def port_from(job_id: str) -> int:
    """A port that every rank derives from the job's id alone, below the kernel's range of ephemeral ports."""
    return FIRST_PORT + zlib.crc32(job_id.encode(errors="surrogateescape")) % NUM_PORTS


def _check(place: Place, environ: Environ) -> None:
    for smaller, larger, what in (
        (place.rank, place.world_size, "rank {} of {} ranks"),
        (place.local_rank, place.local_world_size, "local rank {} of {} ranks on this host"),
        (place.local_world_size - 1, place.world_size, "more ranks on this host than ranks: rank {} of {}"),
    ):
        if smaller >= larger:
            raise UserError(
                "The ranks do not fit together.",
                where=f"the environment, as {place.source} sets it",
                found=what.format(smaller, larger),
                expected="RANK < WORLD_SIZE, and LOCAL_RANK < LOCAL_WORLD_SIZE <= WORLD_SIZE",
                hint="start the ranks with ./launch.sh, or set these variables for every rank",
            )
    told = read_count(environ, "WORLD_SIZE")
    if told is not None and told != place.world_size:
        raise UserError(
            f"WORLD_SIZE says {told}, but this is one of {counted(place.world_size, 'rank')}.",
            where="the environment",
            key="WORLD_SIZE",
            found=told,
            hint="unset WORLD_SIZE, or set RANK too for every rank",
        )


def _master_addr(place: Place, environ: Environ) -> str:
    told = environ.get("MASTER_ADDR")
    if told:
        return told
    if place.local_world_size == place.world_size:
        return _THIS_HOST
    if place.first_host:
        return place.first_host
    raise UserError(
        "The ranks are on several hosts, and nothing says where they meet.",
        where="the environment",
        key="MASTER_ADDR",
        expected="the name of rank 0's host",
        hint="set MASTER_ADDR for every rank, or start the ranks with ./launch.sh",
    )


def _master_port(place: Place, environ: Environ) -> int | None:
    told = _told_port(environ)
    if told is not None or place.world_size == 1:
        return told
    if place.job_id:
        return port_from(place.job_id)
    raise UserError(
        "Nothing says on which port the ranks meet.",
        where="the environment",
        key="MASTER_PORT",
        expected=f"a port of rank 0's host, 1 to {LAST_PORT}",
        hint="set MASTER_PORT for every rank, or start the ranks with ./launch.sh",
    )


def _told_port(environ: Environ) -> int | None:
    port = read_count(environ, "MASTER_PORT")
    if port is not None and not 1 <= port <= LAST_PORT:
        raise UserError(
            "This is not a port.",
            where="the environment",
            key="MASTER_PORT",
            found=port,
            expected=f"1 to {LAST_PORT}",
        )
    return port


def _from_mpi(environ: Environ, evidence: str, ask_mpi: Callable[[], RankInfo] | None) -> RankInfo:
    if ask_mpi is None:
        raise UserError(
            "An MPI launcher started this process, but no variable says its rank.",
            where="the environment",
            key=evidence,
            found=environ[evidence],
            hint="set RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE for every rank",
        )
    info = ask_mpi()
    return dataclasses.replace(
        info,
        master_addr=environ.get("MASTER_ADDR") or info.master_addr,
        master_port=_told_port(environ) or info.master_port,
    )
