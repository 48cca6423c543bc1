"""A rank for tests: writes what it was given to OUT_DIR/rank-N.json, then does as its first arguments say.

    echo_rank train OUT_DIR BEHAVIOUR ANYTHING...

BEHAVIOUR is 'end', 'exit:STATUS', 'kill:SIGNAL' (of rank 1, once every rank has written; the others wait), 'wait', or
'tell:RANK': all ranks tell their guards the same mistake once all have written, this one first.
Before it exits so, rank 1 prints what follows, a line a word.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
import time
from pathlib import Path

from dist_trainer.cause import Cause, tell_guard
from dist_trainer.cluster.rank import find_rank

_WAIT_S = 120.0


def main(argv: list[str]) -> int:
    _, out_dir, behaviour, *words = argv
    info = find_rank(os.environ)
    variables = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "DS_ACCELERATOR")}
    record = {
        "rank": dataclasses.asdict(info),
        "host": socket.gethostname(),
        "argv": argv,
        "pid": os.getpid(),
        "env": variables,
    }
    path = Path(out_dir) / f"rank-{info.rank}.json"
    path.with_suffix(".part").write_text(json.dumps(record))
    path.with_suffix(".part").rename(path)
    kind, _, number = behaviour.partition(":")
    if kind == "wait" or (kind in ("exit", "kill") and info.rank != 1):
        time.sleep(_WAIT_S)
    if kind in ("exit", "kill"):
        sys.stdout.writelines(f"{word}\n" for word in words)
        _wait_for([path.with_name(f"rank-{rank}.json") for rank in range(info.world_size)])
    if kind == "tell":
        _wait_for([path.with_name(f"rank-{rank}.json") for rank in range(info.world_size)])
        time.sleep(0.0 if info.rank == int(number) else 0.1)
        return 2 if tell_guard(Cause("no such checkpoint", may_be_echo=False), os.environ) else 1
    if kind == "kill":
        os.kill(os.getpid(), int(number))
    return int(number) if kind == "exit" else 0


def _wait_for(paths: list[Path]) -> None:
    deadline_s = time.monotonic() + _WAIT_S
    while not all(path.exists() for path in paths) and time.monotonic() < deadline_s:
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
