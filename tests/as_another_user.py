"""What another user of the host can do: a function, in a process that is that user's."""

from __future__ import annotations

import encodings.idna  # noqa: F401 - another user may not read the interpreter's folder, and a name is looked up with it
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def as_another_user(do: Callable[..., Any], *args: object) -> Any:
    """What the function returns there."""
    with beside_another_user(do, *args) as answer:
        return answer()


@contextmanager
def beside_another_user(do: Callable[..., Any], *args: object) -> Iterator[Callable[[], Any]]:
    """Meanwhile it runs there; call what this gives to wait for its answer. At the end it is killed."""
    here, there = multiprocessing.Pipe()
    # A fork: the interpreter's own folder may be closed to others.
    process = multiprocessing.get_context("fork").Process(target=_run, args=(there, do, args), daemon=True)
    process.start()
    there.close()
    try:
        yield here.recv
    finally:
        process.kill()
        process.join()


def _run(answer: Connection, do: Callable[..., Any], args: tuple[object, ...]) -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    answer.send(do(*args))


def command_lines() -> dict[int, list[str]]:
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(entry.parent.name)] = entry.read_bytes().decode(errors="replace").split("\0")[:-1]
        except OSError:
            continue
    return found


def all_that_can_be_read(pids: list[int]) -> str:
    """Of these processes and of what they leave in folders that all users share."""
    paths = [Path("/proc", str(pid), name) for pid in pids for name in ("cmdline", "environ", "stat", "status", "maps")]
    paths += [path for folder in ("/tmp", "/dev/shm") for path in Path(folder).glob("dist_trainer*")]
    said = []
    for path in paths:
        try:
            said.append(path.read_bytes()[: 1 << 20].decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(said)
