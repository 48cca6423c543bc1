"""`launch` over two real hosts: what arrives at the ranks, what they compute, and how a run ends that goes wrong."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import nvml_stub
import pytest
from lab import LOGIN, Lab
from launched import LAUNCHERS, ROOT, SHORT, Launched, allocated, echoing
from literal import any_words
from nvml_stub import Script
from ranks import BRISK, losses, mini_config

from dist_trainer.cluster.threads import count_host_cores, count_own_cores, threads_per_rank
from dist_trainer.errors import EXIT_HOST_LOST

pytestmark = pytest.mark.integration

# What launch.sh takes instead of making its own.
ENVIRONMENT = {"VIRTUAL_ENV": sys.prefix}

_A100 = str(ROOT / "hostfiles" / "a100")
AS_TYPED = {
    "deepspeed": ("--hostfile", _A100, "--include", "node1:0,1@node2:6,7"),
    "mpirun": ("--launcher", "mpirun", "--hostfile", _A100, "--nproc-per-node", "2"),
    "torchrun": (
        "--launcher",
        "torchrun",
        "--ssh",
        "--hostfile",
        "hosts",
        "--nnodes",
        "2",
        "--rdzv-endpoint",
        "node1:29541",
    ),
    "srun": ("--launcher", "srun"),
}

Start = Callable[..., dict[str, Launched]]


@pytest.fixture(autouse=True)
def programs() -> None:
    missing = [program for program in ("pdsh", "mpirun") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture
def start(lab: Lab, slurm_lab: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts echoing ranks under all launchers at once, so that one fault serves all."""
    with ExitStack() as stack:
        numbers = itertools.count()

        def start_all(behaviour: str, *words: str) -> dict[str, Launched]:
            folder = lab.folder / f"{request.node.name}-{next(numbers)}"
            return {
                launcher: stack.enter_context(echoing(lab, folder, launcher, slurm_lab, behaviour, *words))
                for launcher in LAUNCHERS
            }

        yield start_all
    lab.wait_until_nothing_runs()


@any_words(num_drawn=2)
def test_every_rank_knows_its_place_and_gets_its_arguments_literally(start: Start, words: list[str]) -> None:
    host_cores, own_cores = count_host_cores(), count_own_cores()
    for launcher, launched in start("end", *words).items():
        assert launched.status() == 0, launched.output()
        for rank, record in enumerate(launched.ranks()):
            assert record["argv"] == ["train", str(launched.out_dir), "end", *words], launcher
            place = {name: record["rank"][name] for name in ("rank", "world_size", "local_rank", "local_world_size")}
            assert place == {"rank": rank, "world_size": 4, "local_rank": rank % 2, "local_world_size": 2}, launcher
            assert record["rank"]["master_addr"] == "node1", launcher
            # Its own host's, whatever the host has on which `launch` was typed.
            threads = threads_per_rank({}, host_cores=host_cores, own_cores=own_cores, local_world_size=2)
            assert record["env"] == {"OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": None}, launcher
        assert launched.output() == "", launcher


@pytest.mark.parametrize(
    ("launcher", "hostfile"),
    [
        ("deepspeed", b"\xef\xbb\xbfroot@node1 slots=2\r\nroot@node2 slots=2 max-slots=4\r\n"),
        ("torchrun", b"\xef\xbb\xbfroot@node1 slots=2\r\nnode2 slots=2\r\n"),
        ("mpirun", b"node1\nnode2:2\nnode1\n"),
    ],
)
def test_a_hostfile_of_another_form(
    launcher: str, hostfile: bytes, lab: Lab, slurm_lab: dict[str, str], tmp_path: Path
) -> None:
    folder = lab.folder / tmp_path.name
    folder.mkdir()
    (folder / "hosts").write_bytes(hostfile)
    with echoing(lab, folder, launcher, slurm_lab, "end") as launched:
        assert launched.status() == 0, launched.output()
        assert launched.output() == ""
        ranks = [record["rank"] for record in launched.ranks()]
        places = [(rank["local_rank"], rank["local_world_size"], rank["master_addr"]) for rank in ranks]
        assert places == [(0, 2, "node1"), (1, 2, "node1"), (0, 2, "node1"), (1, 2, "node1")]
    lab.wait_until_nothing_runs()


def test_a_rank_that_fails(start: Start) -> None:
    for launched in start("exit:7").values():
        assert launched.status() == 7
        assert launched.output() == "dist_trainer: rank 1 on node1 ended with status 7\n"


def test_a_killed_rank(lab: Lab, start: Start) -> None:
    runs = start("wait")
    for launched in runs.values():
        lab.check("node2", ["kill", "-9", str(launched.ranks()[3]["pid"])])
    for launched in runs.values():
        assert launched.status() == 128 + signal.SIGKILL
        assert launched.output() == "dist_trainer: rank 3 on node2 was killed by SIGKILL\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_launch(number: signal.Signals, lab: Lab, start: Start) -> None:
    runs = start("wait")
    for launched in runs.values():
        launched.ranks()
    for pid, argv in lab.processes(LOGIN):
        if "launch_echo" in argv and argv[0] != "salloc":
            # Ctrl-C reaches the whole foreground group; launch alone must be enough.
            subprocess.run(["kill", f"-{int(number)}", str(pid)], check=True)
    for launched in runs.values():
        assert launched.status() == 128 + number, launched.output()


def test_a_host_that_goes_down(lab: Lab, start: Start) -> None:
    runs = start("wait")
    for launched in runs.values():
        launched.ranks()
    lab.power_off("node2")
    try:
        for launched in runs.values():
            assert launched.status() == EXIT_HOST_LOST
            assert "node2 (ranks 2-3) is gone" in launched.output()
        lab.wait_until_nothing_runs()
    finally:
        lab.power_on("node2")


def test_a_link_that_is_cut_ends_the_ranks_on_both_sides(lab: Lab, start: Start) -> None:
    runs = start("wait")
    for launched in runs.values():
        launched.ranks()
    lab.cut_link("node2")
    try:
        for launched in runs.values():
            assert launched.status() == EXIT_HOST_LOST
            assert "nothing was heard for 10 s from node2" in launched.output()
        lab.wait_until_nothing_runs()
    finally:
        lab.mend_link("node2")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_losses_are_those_of_one_host(
    launcher: str, lab: Lab, slurm_lab: dict[str, str], folder: Path, expected: list[float]
) -> None:
    words = ["--config", str(mini_config(folder)), "--run-dir", str(folder / f"launch-{launcher}"), *BRISK, *SHORT]
    command = [*allocated(launcher), str(ROOT / "launch.sh"), *AS_TYPED[launcher], *words]
    ended = lab.run(LOGIN, command, cwd=folder, environ=slurm_lab | ENVIRONMENT)
    assert ended.status == 0, ended.output
    assert losses(folder / f"launch-{launcher}") == expected
    assert "step 1 " in ended.output
    for rank in (1, 2, 3):
        assert (folder / f"launch-{launcher}" / "logs" / f"rank-{rank}.log").exists()


def test_torchrun_started_by_hand_on_each_host(lab: Lab, folder: Path, expected: list[float]) -> None:
    where = ["--launcher", "torchrun", "--nnodes", "2", "--rdzv-endpoint", "node1:29500", "--nproc-per-node", "2"]
    words = ["--config", str(mini_config(folder)), "--run-dir", str(folder / "by-hand"), *BRISK, *SHORT]
    command = [str(ROOT / "launch.sh"), *where, *words]
    with (folder / "by-hand-node2.out").open("w") as printed:
        environ = ENVIRONMENT | {"XDG_CONFIG_HOME": str(folder)}
        other = lab.popen("node2", command, cwd=folder, environ=environ, stdout=printed, stderr=printed)
        first = lab.run("node1", command, cwd=folder, environ=environ)
        assert (first.status, other.wait(60)) == (0, 0), first.output
    assert losses(folder / "by-hand") == expected
    lab.wait_until_nothing_runs()


def test_ranks_of_a_run_started_by_hand_begin_on_the_host_of_the_endpoint(lab: Lab, folder: Path) -> None:
    where = ["--launcher", "torchrun", "--nnodes", "2", "--rdzv-endpoint", "node2:29511", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", "launch_echo", *where, "--", str(folder / "by-hand-echo"), "end"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "launch")])
    environ = {"PYTHONPATH": path, "XDG_CONFIG_HOME": str(folder)}
    (folder / "by-hand-echo").mkdir()
    other = lab.popen("node1", command, cwd=folder, environ=environ, stderr=subprocess.DEVNULL)
    first = lab.run("node2", command, cwd=folder, environ=environ)
    assert (first.status, other.wait(60)) == (0, 0), first.output
    ranks = [json.loads((folder / "by-hand-echo" / f"rank-{rank}.json").read_text()) for rank in range(4)]
    assert [(rank["host"], rank["rank"]["local_rank"]) for rank in ranks] == [
        ("node2", 0),
        ("node2", 1),
        ("node1", 0),
        ("node1", 1),
    ]


def test_a_host_with_other_gpus_than_slots_is_named_with_its_line(lab: Lab, folder: Path) -> None:
    driver, script = nvml_stub.build(lab.folder / "driver-of-four"), Script()
    for _ in range(4):
        script.gpu()
    words = ["--hostfile", "hosts", "--config", str(mini_config(folder)), "--run-dir", str(folder / "gpus"), *SHORT]
    command = [str(ROOT / "launch.sh"), "--launcher", "torchrun", "--ssh", *words]
    lab.power_off("node2")
    lab.power_on(
        "node2", environ={"LD_LIBRARY_PATH": str(driver.folder), "NVML_STUB_SCRIPT": str(driver.script_path(script))}
    )
    lab.run("node1", ["sh", "-c", "rm -f /tmp/dist_trainer-*"])
    try:
        ended = lab.run(LOGIN, command, cwd=folder, environ=ENVIRONMENT)
    finally:
        lab.power_off("node2")
        lab.power_on("node2")
    assert ended.status == 2
    assert "the slots of 1 of 2 hosts are not their GPUs" in ended.output
    assert "node2 (hosts:2): it has 4 GPUs, and slots=2" in ended.output
    assert not (folder / "gpus").exists()
    # The secret had been brought to both before they were compared.
    assert lab.run("node1", ["sh", "-c", "ls -d /tmp/dist_trainer-*"]).status == 2


def test_hosts_on_which_ranks_could_not_start_are_named_before_anything_is_started(lab: Lab, folder: Path) -> None:
    lab.check(LOGIN, ["sh", "-c", f"mkdir -p /run/here && ln -sf {sys.executable} /run/here/python"])
    where = ["--launcher", "mpirun", "--hostfile", "hosts", "--config", str(mini_config(folder))]
    command = ["/run/here/python", "-m", "dist_trainer", "launch", *where, "--run-dir", str(folder / "lacks"), *SHORT]
    lab.cut_link("node2")
    try:
        ended = lab.run(LOGIN, command, cwd=folder, environ={"PYTHONPATH": f"{ROOT}:{':'.join(sys.path)}"})
    finally:
        lab.mend_link("node2")
    assert ended.status == 2
    assert "ranks could not start on 2 of 2 hosts" in ended.output
    assert "node1: " in ended.output
    assert "/run/here/python" in ended.output
    assert "node2: " in ended.output
    assert not (folder / "lacks").exists()
