"""Runs one command on several hosts at once:
`python -m dist_trainer.launch.launchers.over_ssh HOST:SLOTS... -- COMMAND...`.

In the command's words NODE_RANK and NUM_SLOTS are replaced by the host's index and its number of slots. The words
arrive literally, and run in the current directory of this process. The exit status is that of the host that failed
first; the others are then told to end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from dist_trainer.cluster.topology import is_own_name
from dist_trainer.launch.hosts import ssh

NODE_RANK = "@node_rank@"
NUM_SLOTS = "@num_slots@"
_POLL_S = 0.05
_GRACE_S = 5.0


def command_for(
    host: str, node_rank: int, num_slots: int, words: Sequence[str], *, hostname: str, cwd: str
) -> list[str]:
    """The command that runs the words on the host: directly on this host, through ssh and a shell on another."""
    said = [word.replace(NODE_RANK, str(node_rank)).replace(NUM_SLOTS, str(num_slots)) for word in words]
    if is_own_name(host, hostname):
        return said
    env = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if os.environ.get(name)}
    return [*ssh.command_for(host, ssh.shell_text(said, cwd=cwd, env=env), hostname=hostname)]


def main(argv: list[str]) -> int:
    cut = argv.index("--")
    started = []
    for node_rank, place in enumerate(argv[:cut]):
        host, _, num_slots = place.rpartition(":")
        command = command_for(
            host,
            node_rank,
            int(num_slots),
            argv[cut + 1 :],
            hostname=socket.gethostname(),
            cwd=os.getcwd(),  # noqa: PTH109
        )
        started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))

    def end_all(*_: object) -> None:
        for process in started:
            if process.poll() is None:
                process.terminate()

    signal.signal(signal.SIGTERM, end_all)
    first_status = 0
    kill_at_s: float | None = None
    while any(process.poll() is None for process in started):
        failed = next((process.returncode for process in started if process.returncode), 0)
        if failed and not first_status:
            first_status = failed
            kill_at_s = time.monotonic() + _GRACE_S
        if kill_at_s is not None and time.monotonic() > kill_at_s:
            end_all()
            kill_at_s += _GRACE_S
        time.sleep(_POLL_S)
    first_status = first_status or next((process.returncode for process in started if process.returncode), 0)
    return 128 - first_status if first_status < 0 else first_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
