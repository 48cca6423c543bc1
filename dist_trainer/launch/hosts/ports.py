"""The port of the ranks' rendezvous."""

from __future__ import annotations

import socket
from pathlib import Path

from dist_trainer.cluster.rank import FIRST_PORT, NUM_PORTS, port_from
from dist_trainer.errors import UserError


def planned_port(run_dir: Path) -> int:
    """The first choice of port for a run in this folder: computed from its path, not probed."""
    return port_from(str(run_dir))


def first_free_port(wanted: int) -> int:
    """The first port from `wanted` on that nobody on this host listens on. Raises UserError if there is none."""
    for offset in range(NUM_PORTS):
        port = FIRST_PORT + (wanted - FIRST_PORT + offset) % NUM_PORTS
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", port))
            except OSError:
                continue
        return port
    raise UserError(
        "No port is free for the ranks to meet at.",
        expected=f"one of {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}",
        hint="name one with MASTER_PORT",
    )
