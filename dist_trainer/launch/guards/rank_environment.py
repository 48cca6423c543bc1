"""The environment of one rank: its guard's, the job's, and what follows from the host."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from dist_trainer.cluster.environments import Place
from dist_trainer.cluster.threads import threads_here
from dist_trainer.launch.guards.protocol import Message
from dist_trainer.launch.hosts.network import interface_towards
from dist_trainer.launch.hosts.ports import first_free_port


def rank_environ(environ: Mapping[str, str], place: Place, job: Message) -> dict[str, str]:
    """The complete environment. If the job lets this host find the rendezvous's port, MASTER_PORT holds the result."""
    found = {**environ, **job["env"], **_place_env(place, job)}
    if "OMP_NUM_THREADS" not in job["env"]:
        found["OMP_NUM_THREADS"] = str(threads_here(found, int(found["LOCAL_WORLD_SIZE"])))
    if job["finds_port"]:
        found["MASTER_PORT"] = str(first_free_port(int(job["master_port"])))
    if job["peers"] and "GLOO_SOCKET_IFNAME" not in found:
        found |= _interface_env(job["peers"], found)
    return found


def _place_env(place: Place, job: Message) -> dict[str, str]:
    local_rank = place.local_rank if job["local_rank"] is None else job["local_rank"]
    local_world_size = place.local_world_size if job["local_world_size"] is None else job["local_world_size"]
    pairs = {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_world_size),
    }
    if job["master_port"] is not None:
        pairs |= {"MASTER_ADDR": job["master_addr"], "MASTER_PORT": str(job["master_port"])}
    return pairs


def _interface_env(peers: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """For gloo and NCCL: the interface that leads to the other hosts, unless the user has named one."""
    own = socket.gethostname()
    other = next((peer for peer in peers if own not in (peer, peer.split(".")[0])), peers[0])
    interface = interface_towards(other)
    if interface in (None, "lo"):
        return {}
    return {name: environ.get(name) or str(interface) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
