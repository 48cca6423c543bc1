"""The lab that the tests over several hosts stand on: are its hosts hosts, and does nothing of it stay?"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from lab import HOSTS, LOGIN, Lab, clock_off_by, why_no_lab

EVERYWHERE = (LOGIN, *HOSTS)
TESTS = Path(__file__).parents[1]
LIMIT_S = 120.0
SSH = ("ssh", "-o", "BatchMode=yes")
IN_VAIN = (*SSH, "-o", "ConnectTimeout=1")


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not is_true():
        assert time.monotonic() < deadline_s, "it has not come true"
        time.sleep(0.01)


def test_hosts_reach_each_other_by_name(lab: Lab) -> None:
    chain = "hostname; ssh node2 'hostname; ssh login hostname'"
    assert lab.check(LOGIN, [*SSH, "node1", chain]).split() == ["node1", "node2", "login"]
    assert lab.check("node1", ["getent", "hosts", "node1"]).split() == [lab.address("node1"), "node1"]
    assert lab.check("node1", ["hostname", "-I"]).split() == [lab.address("node1")]
    lab.wait_until_nothing_runs()


def test_a_host_has_processes_and_temporary_files_of_its_own(lab: Lab) -> None:
    places = ("/dev/shm", "/tmp", "/run")
    lab.check("node1", ["touch", *(f"{place}/mine" for place in places)])
    assert [lab.run("node2", ["test", "-e", f"{place}/mine"]).status for place in places] == [1, 1, 1]
    assert not any(Path(place, "mine").exists() for place in places)
    sleeping = lab.popen("node1", ["sleep", "1000"])
    try:
        sleeping_pid = sleeping.command_pid()
        assert "sleep" in lab.check("node1", ["ps", "-e"])
        assert "sleep" not in lab.check("node2", ["ps", "-e"])
        assert [pid for pid, _ in lab.processes("node1")] == [sleeping_pid]
        assert lab.processes("node2") == []
    finally:
        sleeping.terminate()
        assert sleeping.wait(LIMIT_S) == -signal.SIGTERM
    lab.wait_until_nothing_runs()


def test_the_folder_the_project_and_the_interpreter_are_shared(lab: Lab) -> None:
    lab.check("node1", [sys.executable, "-c", "import dist_trainer; open('written', 'w').write('by node1')"])
    assert lab.check("node2", ["cat", str(lab.folder / "written")]) == "by node1"


def test_a_ctrl_c_reaches_all_that_was_started_with_the_command(lab: Lab) -> None:
    process = lab.popen("node1", ["sh", "-c", "sleep 1000 | sleep 1000"])
    wait_until(lambda: [argv for _, argv in lab.processes("node1")].count(("sleep", "1000")) == 2)
    process.signal_group(signal.SIGINT)
    process.wait(LIMIT_S)
    lab.wait_until_nothing_runs()


def test_a_command_that_does_not_end_is_killed_and_shown(lab: Lab) -> None:
    with pytest.raises(TimeoutError, match="half way"):
        lab.run("node1", ["sh", "-c", "echo half way; sleep 1000"], timeout_s=0.3)
    lab.wait_until_nothing_runs()


def test_a_host_without_power_is_gone_until_it_boots_again(lab: Lab) -> None:
    remote = lab.popen(LOGIN, [*SSH, "node2", "sleep 1000"])
    wait_until(lambda: any("sleep" in argv for _, argv in lab.processes("node2")))
    lab.power_off("node2")
    assert remote.wait(LIMIT_S) == 255
    assert lab.run(LOGIN, [*IN_VAIN, "node2", "true"]).status == 255
    lab.power_on("node2", environ={"ONLY_HERE": 'a "b" c'})
    assert lab.check(LOGIN, [*SSH, "node2", "echo $ONLY_HERE"]) == 'a "b" c\n'
    assert lab.check("node2", ["sh", "-c", "echo $ONLY_HERE"]) == 'a "b" c\n'
    assert lab.check(LOGIN, [*SSH, "node1", "echo $ONLY_HERE"]) == "\n"
    lab.power_off("node2")
    lab.power_on("node2")
    assert lab.check("node2", ["sh", "-c", "echo $ONLY_HERE"]) == "\n"
    assert lab.processes("node2") == []


def test_a_host_that_goes_silently_leaves_its_peers_waiting(lab: Lab) -> None:
    remote = lab.popen(LOGIN, [*SSH, "node2", "sleep 1000"])
    wait_until(lambda: any("sleep" in argv for _, argv in lab.processes("node2")))
    lab.power_off("node2", silently=True)
    with pytest.raises(subprocess.TimeoutExpired):
        remote.wait(0.5)
    remote.kill()
    assert remote.wait(LIMIT_S) == -signal.SIGKILL
    lab.power_on("node2")


def test_the_clock_of_one_host_can_be_wrong(lab: Lab) -> None:
    look = [sys.executable, "-c", "import time; print(time.time(), time.monotonic())"]
    lab.power_off("node2")
    lab.power_on("node2", environ=clock_off_by(-90))
    try:
        (right, right_monotonic), (wrong, wrong_monotonic) = (
            map(float, lab.check(LOGIN, [*SSH, host, shlex.join(look)]).split()) for host in HOSTS
        )
    finally:
        lab.power_off("node2")
        lab.power_on("node2")
    assert wrong - right < wrong_monotonic - right_monotonic - 89


def test_a_cut_link_carries_nothing_until_it_is_mended(lab: Lab) -> None:
    lab.cut_link("node2")
    assert lab.run("node1", [*IN_VAIN, "node2", "true"]).status == 255
    assert lab.run("node1", [*SSH, LOGIN, "true"]).status == 0
    lab.mend_link("node2")
    assert lab.run("node1", [*SSH, "node2", "true"]).status == 0


def test_a_slow_link_takes_its_time(lab: Lab) -> None:
    """Not how long: what the queue let through and what it had to hold back."""
    lab.slow_link("node2", "20mbit")
    try:
        lab.check("node1", ["sh", "-c", f"head -c 2000000 /dev/zero | {' '.join(SSH)} node2 'cat >/dev/null'"])
        shown = lab.check(LOGIN, ["tc", "-s", "qdisc", "show", "dev", "to-node2"])
    finally:
        lab.slow_link("node2", None)
    assert "rate 20Mbit" in shown
    assert "overlimits 0" not in shown
    assert "tbf" not in lab.check(LOGIN, ["tc", "qdisc", "show", "dev", "to-node2"])


def test_slurm_hands_out_gpus_on_both_hosts(lab: Lab, slurm_lab: dict[str, str]) -> None:
    show = "echo $(hostname) $SLURM_PROCID $CUDA_VISIBLE_DEVICES"
    srun = ["srun", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-task=1", "sh", "-c", show]
    printed = lab.check(LOGIN, srun, environ=slurm_lab)
    assert sorted(printed.splitlines()) == ["node1 0 0", "node1 1 1", "node2 2 0", "node2 3 1"]
    too_many = lab.run(LOGIN, ["srun", "--nodes=1", "--gpus-per-node=3", "true"], environ=slurm_lab)
    assert too_many.status == 1
    lab.wait_until_nothing_runs()


def test_a_host_that_booted_again_takes_jobs_and_its_own_variables(lab: Lab, slurm_lab: dict[str, str]) -> None:
    srun = ["srun", "--nodes=2", "sh", "-c", "echo $(hostname) $ONLY_HERE"]
    lab.power_off("node2")
    lab.power_on("node2", environ={"ONLY_HERE": "a b"})
    wait_until(lambda: lab.run(LOGIN, srun, environ=slurm_lab).status == 0)
    assert sorted(lab.check(LOGIN, srun, environ=slurm_lab).splitlines()) == ["node1", "node2 a b"]
    lab.power_off("node2")
    lab.power_on("node2")
    wait_until(lambda: sorted(lab.run(LOGIN, srun, environ=slurm_lab).output.split()) == ["node1", "node2"])
    lab.wait_until_nothing_runs()


def test_a_job_in_the_high_partition_has_the_others_requeued(lab: Lab, slurm_lab: dict[str, str]) -> None:
    whole = ["--nodes=2", "--exclusive"]
    submit = ["sbatch", "--parsable", "--requeue", "--output=/dev/null", *whole, "--wrap", "sleep 1000"]
    job_id = lab.check(LOGIN, submit, environ=slurm_lab).strip()

    def job() -> str:
        return lab.check(LOGIN, ["scontrol", "--oneliner", "show", "job", job_id], environ=slurm_lab)

    wait_until(lambda: "JobState=RUNNING" in job())
    lab.check(LOGIN, ["srun", "--partition=high", *whole, "true"], environ=slurm_lab)
    assert "Restarts=1" in job()
    lab.check(LOGIN, ["scancel", job_id], environ=slurm_lab)
    lab.wait_until_nothing_runs()


LAB_THAT_WAITS = """
import sys
from pathlib import Path
from lab import lab

with lab(Path(sys.argv[1])) as hosts:
    hosts.popen("node1", ["ssh", "node2", "sleep 1000"])
    while not any("sleep" in argv for _, argv in hosts.processes("node2")):
        pass
    print("up", flush=True)
    sys.stdin.read()
"""
KINDS = ("net", "uts", "ipc", "mnt", "pid")


def namespaces(pid: int) -> set[str]:
    return {str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in KINDS}


def in_use(spaces: set[str]) -> bool:
    for pid in psutil.pids():
        try:
            if namespaces(pid) & spaces:
                return True
        except OSError:
            continue  # It has ended, or it is none of ours.
    return False


@pytest.mark.cluster
@pytest.mark.parametrize("how", ["leave", "kill"])
def test_nothing_of_a_lab_stays(how: str, tmp_path: Path) -> None:
    """Neither when its block is left nor when the process that made it is killed."""
    reason = why_no_lab()
    if reason is not None:
        pytest.skip(reason)
    interfaces, mounts = sorted(Path("/sys/class/net").iterdir()), Path("/proc/self/mountinfo").read_text()
    maker = subprocess.Popen(
        [sys.executable, "-c", LAB_THAT_WAITS, str(tmp_path / "shared")],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "up\n"
        started = psutil.Process(maker.pid).children(recursive=True)
        spaces = set().union(*(namespaces(process.pid) for process in started)) - namespaces(os.getpid())
        assert len(spaces) == len(EVERYWHERE) * len(KINDS)
        if how == "kill":
            maker.kill()
    if how == "leave":
        assert maker.returncode == 0
    wait_until(lambda: not any(process.is_running() for process in started) and not in_use(spaces))
    assert sorted(Path("/sys/class/net").iterdir()) == interfaces
    assert Path("/proc/self/mountinfo").read_text() == mounts
