"""What every rank runs, and what the guard of one rank is told of it."""

from __future__ import annotations

from dataclasses import dataclass

from dist_trainer.launch.guards.protocol import encode


@dataclass(frozen=True)
class Job:
    """What every rank runs. `env` is added to the guard's environment, `host_env` to that of one host's ranks.

    `master_port`: where rank 0's host first looks for a free port; None leaves the rendezvous to the launcher.
    `grace_s`: how long a rank that is told to stop may take before it is killed.
    `is_local`: the ranks share this process's output and, if `has_terminal`, its terminal.
    """

    argv: tuple[str, ...]
    cwd: str
    env: tuple[tuple[str, str], ...]
    master_addr: str
    master_port: int | None
    is_port_fixed: bool
    logs_dir: str | None
    is_local: bool
    grace_s: float
    has_terminal: bool = False
    peers: tuple[str, ...] = ()
    local_ranks: tuple[tuple[int, int], ...] = ()
    host_env: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()

    def message(self, rank: int, host: str, port: int | None) -> bytes:
        """The message for the guard of `rank`, expected on `host` ("" if none was). `port`: of the rendezvous; None
        while it is unknown, and then rank 0's guard finds one.
        """
        local_rank, local_world_size = self.local_ranks[rank] if self.local_ranks else (None, None)
        return encode(
            "job",
            rank=rank,
            argv=self.argv,
            cwd=self.cwd,
            env=dict(self.env) | dict(dict(self.host_env).get(host, ())),
            local_rank=local_rank,
            local_world_size=local_world_size,
            master_addr=self.master_addr,
            master_port=self.master_port if port is None else port,
            finds_port=rank == 0 and self.master_port is not None and port is None,
            logs_dir=self.logs_dir,
            is_local=self.is_local,
            grace_s=self.grace_s,
            has_terminal=self.has_terminal,
            peers=self.peers,
        )
