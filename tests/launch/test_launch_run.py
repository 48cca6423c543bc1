from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.cluster.process_table import list_descendants
from dist_trainer.cluster.topology import Topology
from dist_trainer.errors import UserError
from dist_trainer.launch.guards.guarding import job_for
from dist_trainer.launch.hosts.run_secret import new_secret
from dist_trainer.launch.launch_record import write_launch_record
from dist_trainer.launch.launchers.choose import build_plan
from dist_trainer.launch.plan import HostFacts, LaunchRequest
from dist_trainer.launch.run import Prepared, require_launcher, run_request

ROOT = Path(__file__).parents[2]


def local_request(**facts: Any) -> LaunchRequest:
    host = HostFacts(socket.gethostname(), sys.executable, num_cores=2, num_gpus=0, is_root=False, environ=os.environ)
    return LaunchRequest(("train",), Topology.of_this_host(2), master_port=23456, facts=replace(host, **facts))


def test_a_mistake_found_while_the_launcher_comes_up_leaves_nothing_running() -> None:
    seen: list[int] = []

    def prepare() -> Prepared:
        seen.extend(process.pid for process in list_descendants(os.getpid()) if not process.has_ended)
        raise UserError("no such key")

    before = {process.pid for process in list_descendants(os.getpid())}
    with pytest.raises(UserError, match="no such key"):
        run_request("torchrun", local_request(), prepare, secret=new_secret(in_file=False))
    assert set(seen) - before, "the launcher was on its way"
    assert {process.pid for process in list_descendants(os.getpid()) if not process.has_ended} <= before


@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_a_launcher_that_is_not_there(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=f"{launcher} is not installed") as caught:
        require_launcher(launcher)
    assert "apt-get install" in str(caught.value)


def test_what_was_started_is_written_down(tmp_path: Path) -> None:
    asked = LaunchRequest(
        arguments=("train", "--ds", "zero2", "--set", "comet.api_key=of-the-user"),
        topology=Topology.of_this_host(2),
        master_port=23456,
        facts=HostFacts("box", "/env/bin/python", num_cores=8, num_gpus=0, is_root=False, environ={"PATH": "/bin"}),
        env=(("A", "1"),),
    )
    job = job_for("mpirun", asked, build_plan("mpirun", asked), tmp_path, is_port_fixed=False, grace_s=5)
    write_launch_record("mpirun", asked, job, tmp_path, start_time_s=5.0)
    hidden = ("--set", "comet.api_key=(not recorded)")
    assert json.loads((tmp_path / "resolved" / "launch.json").read_text()) == {
        "launcher": "mpirun",
        "argv": ["/env/bin/python", "-m", "dist_trainer", "train", "--ds", "zero2", *hidden],
        "env": {
            "OMP_NUM_THREADS": "4",
            "DS_ACCELERATOR": "cpu",
            "A": "(not recorded)",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "23456",
        },
        "num_ranks": 2,
        "hosts": "localhost:0,1",
        "host": "box",
        "start_time_s": 5.0,
    }


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_record_has_the_mode_that_the_umask_gives(umask: int, mode: int, tmp_path: Path) -> None:
    asked = local_request()
    job = job_for("torchrun", asked, build_plan("torchrun", asked), tmp_path, is_port_fixed=False, grace_s=5)
    before = os.umask(umask)
    try:
        write_launch_record("torchrun", asked, job, tmp_path, start_time_s=5.0)
    finally:
        os.umask(before)
    assert (tmp_path / "resolved" / "launch.json").stat().st_mode & 0o777 == mode


def test_what_launch_and_rank_finding_import() -> None:
    script = (
        "import sys, os\n"
        "import dist_trainer.launch.run, dist_trainer.launch.launchers.choose, dist_trainer.launch.hosts.placement\n"
        "import dist_trainer.config.run_dir, dist_trainer.launch.hosts.ports, dist_trainer.launch.launchers.elastic\n"
        "import dist_trainer.cluster.mpi\n"
        "from dist_trainer.launch.hosts.facts import read_host_facts\n"
        "read_host_facts(os.environ)\n"
        "print(*sorted({'torch', 'deepspeed', 'pydantic', 'numpy', 'psutil', 'mpi4py', 'yaml'} & set(sys.modules)))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert answer.stdout.split() == []


@pytest.mark.parametrize(
    ("limits", "num_ranks", "then"),
    [
        ((1000, 5000), 8, "1000"),
        ((300, 1000), 500, "756"),
        ((300, 1024), 8192, "8192 ranks need as many connections to this process, which may not have so many open."),
    ],
)
def test_there_may_be_a_connection_a_rank(limits: tuple[int, int], num_ranks: int, then: str) -> None:
    """In a process of its own: a limit once lowered cannot be raised again by everybody."""
    code = (
        "import resource as r\n"
        "from dist_trainer.errors import UserError\n"
        "from dist_trainer.launch.run import allow_connections\n"
        f"r.setrlimit(r.RLIMIT_NOFILE, {limits})\n"
        "try:\n"
        f"    allow_connections({num_ranks})\n"
        "    print(r.getrlimit(r.RLIMIT_NOFILE)[0])\n"
        "except UserError as error:\n"
        "    print(error.problem)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == then
