"""How long it takes until so many ranks have connected, all on this host and without doing anything else:

    python tests/launch/at_scale.py guards 8192     the ranks' guards, to the launching process
    python tests/launch/at_scale.py store 8192      torch's ranks, to the store through which they meet; each sets
                                                    a key of 128 bytes and reads one that all read

Clients of four processes stand for the ranks. torch looks up the name of each client's address: where that takes long
(`getent hosts 127.0.0.1`), so does this.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.queues import SimpleQueue
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from dist_trainer.launch.run import allow_connections

NUM_PROCESSES = 4
HOST_SIZE = 8
WATCH_S = 10.0
LIMIT_S = 300.0
SECRET = b"what launch and its guards know."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("what", choices=("guards", "store"))
    parser.add_argument("num_ranks", type=int)
    args = parser.parse_args()
    allow_connections(args.num_ranks)
    {"guards": measure_guards, "store": measure_store}[args.what](args.num_ranks)


def measure_guards(num_ranks: int) -> None:
    from dist_trainer.launch.guards.coordinator import Coordinator
    from dist_trainer.launch.guards.job import Job
    from dist_trainer.launch.guards.membership import Membership

    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    places = [(rank // HOST_SIZE, rank % HOST_SIZE) for rank in range(num_ranks)]
    job = Job(
        argv=("python", "-m", "dist_trainer", "train"),
        cwd="/",
        env=tuple((f"VARIABLE_{number}", "value") for number in range(10)),
        master_addr="host0",
        master_port=20_000,
        is_port_fixed=True,
        logs_dir="logs",
        is_local=False,
        grace_s=20.0,
        local_ranks=tuple((local_rank, HOST_SIZE) for _, local_rank in places),
    )
    membership = Membership(num_ranks, tuple(f"host{host}" for host, _ in places))
    with Coordinator(listener, SECRET, membership, start_limit_s=LIMIT_S, say=print) as coordinator:
        coordinator.hand_out(job)
        started_s = time.monotonic()
        processes = start_clients(guards, listener.getsockname()[1], num_ranks)
        while not membership.is_complete:
            assert time.monotonic() - started_s < LIMIT_S, f"{len(membership.members)} of {num_ranks} connected"
            time.sleep(0.05)
        print(f"{num_ranks} guards connected in {time.monotonic() - started_s:.1f} s, {time.process_time():.1f} s CPU")
        cpu_s = time.process_time()
        time.sleep(WATCH_S)
        print(
            f"then {1000 * (time.process_time() - cpu_s) / WATCH_S:.0f} ms CPU a second; trouble: {coordinator.trouble}"
        )
        for process in processes:
            process.terminate()


def guards(port: int, ranks: range, _: SimpleQueue[float]) -> None:
    """Connects as guards do, and lives as they do."""
    from dist_trainer.launch.guards.connecting import connect
    from dist_trainer.launch.guards.protocol import BEAT_S, encode

    selector = selectors.DefaultSelector()
    connections = []
    beat = encode("beat")

    def live(for_s: float) -> None:
        end_s = time.monotonic() + for_s
        while (left_s := end_s - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                os.read(key.fd, 1 << 16)
        for connection, channel in connections:
            connection.sendall(channel.seal(beat))

    def come(rank: int) -> None:
        connection, channel = connect(("127.0.0.1", port), SECRET, told_to_end=lambda: False)
        connection.setblocking(True)
        hello = encode("hello", rank=rank, local_rank=rank % HOST_SIZE, host=f"host{rank // HOST_SIZE}")
        connection.sendall(channel.seal(hello))
        selector.register(connection, selectors.EVENT_READ)
        connections.append((connection, channel))

    # Guards do not wait for each other.
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(come, ranks))
    while True:
        live(BEAT_S)


def measure_store(num_ranks: int) -> None:
    import psutil
    import torch.distributed as dist

    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    done: SimpleQueue[float] = multiprocessing.get_context("spawn").SimpleQueue()
    processes = start_clients(stores, server.port, num_ranks, done)
    connected, exchanged = ([done.get() for _ in processes] for _ in range(2))
    memory_mb = psutil.Process().memory_info().rss / 1e6
    print(f"{num_ranks} clients connected in {max(connected):.1f} s, exchanged in {max(exchanged):.1f} s")
    print(f"the store's process: {time.process_time():.1f} s CPU with the import of torch, {memory_mb:.0f} MB")


def stores(port: int, ranks: range, done: SimpleQueue[float]) -> None:
    import torch.distributed as dist

    allow_connections(len(ranks))
    started_s = time.perf_counter()
    with ThreadPoolExecutor(256) as pool:
        clients = list(
            pool.map(lambda _: dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False), ranks)
        )
    done.put(time.perf_counter() - started_s)
    started_s = time.perf_counter()
    for rank, client in zip(ranks, clients, strict=True):
        client.set(f"rank {rank}", "x" * 128)
    for client in clients:
        client.get(f"rank {ranks[0]}")
    done.put(time.perf_counter() - started_s)


def start_clients(
    run: Callable[[int, range, SimpleQueue[float]], None],
    port: int,
    num_ranks: int,
    done: SimpleQueue[float] | None = None,
) -> list[multiprocessing.process.BaseProcess]:
    # Not forked: this process has threads, and torch's are not to be copied.
    context = multiprocessing.get_context("spawn")
    share = -(-num_ranks // NUM_PROCESSES)
    processes = []
    for first in range(0, num_ranks, share):
        ranks = range(first, min(first + share, num_ranks))
        processes.append(context.Process(target=run, args=(port, ranks, done), daemon=True))
        processes[-1].start()
    return processes


if __name__ == "__main__":
    main()
