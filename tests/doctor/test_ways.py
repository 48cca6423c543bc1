from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import pytest
from examinations import NEEDS

from dist_trainer.cluster.topology import Host, Topology
from dist_trainer.config.request import Request
from dist_trainer.doctor.examination import MeetingPort, Task
from dist_trainer.doctor.ways import enough_files, routes, srun_command
from dist_trainer.errors import UserError

TWO = Topology((Host("box", (0,)), Host("node2", (0, 1))))


def task(**changes: Any) -> Task:
    known: dict[str, Any] = {
        "how": "ssh",
        "topology": TWO,
        "request": Request(),
        "needs": NEEDS,
        "port": MeetingPort(29500, None),
        "folder": "/shared",
        "cwd": "/my work",
        "interpreter": "/env/bin/python",
    }
    return Task(**{**known, **changes})


def test_a_host_is_asked_as_the_user_that_the_hostfile_names() -> None:
    (there,) = routes(task(topology=Topology((Host("node2", (0,), user="me"),))), {}, "box", open_files=1024)
    assert there.hosts == ("node2",)
    assert there.command[-2] == "me@node2"
    assert there.command[-1].endswith(" node2")


def test_each_host_has_a_way_of_its_own() -> None:
    here, there = routes(task(), {"PYTHONPATH": "/src"}, "box", open_files=1024)
    assert (here.hosts, there.hosts) == (("box",), ("node2",))
    words = "cd '/my work' && exec env PYTHONPATH=/src /env/bin/python -m dist_trainer.doctor.host"
    assert here.command == ("/bin/sh", "-c", f"ulimit -Sn 1024; {words} box")
    assert there.command[0] == "ssh"
    assert there.command[-2:] == ("node2", f"{words} node2")


def test_in_a_job_one_step_reaches_all_nodes() -> None:
    (way,) = routes(task(how="srun"), {}, "box", open_files=1024)
    assert way.hosts == ("box", "node2")
    assert way.command[-3:] == ("/env/bin/python", "-m", "dist_trainer.doctor.host")
    for word in ("--overlap", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--nodelist=box,node2"):
        assert word in way.command


@pytest.mark.parametrize(
    ("a_task", "slots", "words"),
    [
        ("1", (4, 4), ["--gpus-per-node=4"]),
        ("a100:2", (2, 2), ["--gpus-per-node=4"]),
        ("1", (4, 2), []),
        ("", (4, 4), []),
    ],
    ids=["one a task", "of a type", "uneven nodes", "not by task"],
)
def test_the_step_has_all_gpus_that_the_job_has_on_a_node(
    a_task: str, slots: tuple[int, ...], words: list[str]
) -> None:
    topology = Topology(tuple(Host(f"n{place}", tuple(range(count))) for place, count in enumerate(slots)))
    command = srun_command(topology, ("true",), {"SLURM_GPUS_PER_TASK": a_task})
    assert [word for word in command if word.startswith("--gpus")] == words
    assert command[:3] == ("env", "-u", "SLURM_GPUS_PER_TASK")


def limited(soft: int, hard: int, code: str) -> str:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_many_connections_raise_the_limit_of_open_files_for_as_long_as_they_last() -> None:
    code = (
        "import resource\nfrom dist_trainer.doctor.ways import enough_files\n"
        "with enough_files(1000) as usual: print(usual, resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert limited(1024, 4096, code).splitlines() == ["1024 (3064, 4096)", "(1024, 4096)"]
    assert "1000 connections need 3064 open files" in limited(1024, 2048, code)


def test_few_connections_leave_the_limit_alone() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with enough_files(2) as usual:
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
    assert usual == before[0]


def test_a_limit_that_cannot_be_raised_is_the_users_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 100))
    with pytest.raises(UserError, match="open files"), enough_files(1000):
        pass
