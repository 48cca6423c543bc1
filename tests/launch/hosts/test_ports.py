from __future__ import annotations

import socket
from pathlib import Path

from dist_trainer.cluster.rank import FIRST_PORT, NUM_PORTS
from dist_trainer.launch.hosts.ports import first_free_port, planned_port


def test_a_port_that_is_taken_is_passed_over() -> None:
    planned = planned_port(Path("runs/tiny-zero2-001"))
    assert planned == planned_port(Path("runs/tiny-zero2-001")) != planned_port(Path("runs/tiny-zero2-002"))
    wanted = first_free_port(planned)
    with socket.socket() as listener:
        listener.bind(("", wanted))
        listener.listen()
        other = first_free_port(wanted)
    assert other != wanted
    assert FIRST_PORT <= other < FIRST_PORT + NUM_PORTS
