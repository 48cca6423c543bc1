"""Another user on each host of a run, and what becomes of a run whose hosts do not share a secret."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab import HOSTS, LOGIN, HostProcess, Lab
from launched import LAUNCHERS, ROOT, Launched, echoing

from dist_trainer.launch.hosts.run_secret import VARIABLE

pytestmark = pytest.mark.integration

GUARD = "dist_trainer.launch.guards.rank_guard"
OF_THE_USER = "only-the-user-may-know-this"
ALL_THAT_CAN_BE_READ = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ /tmp/dist_trainer-* 2>/dev/null | tr '\\0' '\\n'"
PATH = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "launch")])


@pytest.fixture(autouse=True)
def programs() -> None:
    missing = [program for program in ("pdsh", "mpirun") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture
def runs(lab: Lab, slurm_lab: dict[str, str], request: pytest.FixtureRequest) -> Iterator[dict[str, Launched]]:
    """Under all launchers at once."""
    folder = lab.folder / request.node.name
    # Of a launch that was killed while its guards came up one stays.
    for host in HOSTS:
        lab.run(host, ["sh", "-c", "rm -f /tmp/dist_trainer-*"])
    with ExitStack() as stack:
        yield {
            launcher: stack.enter_context(
                echoing(lab, folder, launcher, slurm_lab, "wait", named_env={"HF_TOKEN": OF_THE_USER})
            )
            for launcher in LAUNCHERS
        }
    lab.wait_until_nothing_runs(60)


def as_nobody(lab: Lab, host: str, script: str) -> str:
    who = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    return lab.run(host, [*who, "sh", "-c", script], cwd=Path("/")).output


def secret_files(lab: Lab, host: str) -> list[str]:
    return lab.run(host, ["sh", "-c", "stat -c %a /tmp/dist_trainer-* 2>/dev/null"]).output.split()


def kill(lab: Lab, number: int) -> None:
    for pid, argv in lab.processes(LOGIN):
        if "launch_echo" in argv and argv[0] != "salloc":
            subprocess.run(["kill", f"-{number}", str(pid)], check=True)


def test_another_user_on_its_hosts_learns_nothing_and_is_not_let_in(lab: Lab, runs: dict[str, Launched]) -> None:
    for launched in runs.values():
        launched.ranks()
    # torchrun, deepspeed and mpirun have a file each; srun passes on its environment.
    found = [secret_files(lab, host) for host in HOSTS]
    assert found == [["600"] * 3] * len(HOSTS)
    seen = "\n".join(as_nobody(lab, host, ALL_THAT_CAN_BE_READ) for host in (LOGIN, *HOSTS))
    assert GUARD in seen
    assert OF_THE_USER not in seen
    assert VARIABLE not in seen
    words = seen.splitlines()
    addresses = {words[i + 1] for i, word in enumerate(words) if word == GUARD}
    for host, _, port in (address.rpartition(":") for address in addresses if not address.startswith("@")):
        knock = f"exec 3<>/dev/tcp/{host}/{port}"
        assert "refused" in as_nobody(lab, "node2", f"bash -c '{knock}' 2>&1"), f"{host}:{port}"
    kill(lab, signal.SIGTERM)
    for launcher, launched in runs.items():
        assert launched.status() == 128 + signal.SIGTERM, launcher
        # On a machine that is busy it may say so.
        said = [line for line in launched.output().splitlines() if "still waiting for" not in line]
        assert said == ["dist_trainer: interrupted before the first step (SIGTERM)"], launcher
        assert OF_THE_USER not in (launched.out_dir / "resolved" / "launch.json").read_text()
    lab.wait_until_nothing_runs()
    assert [secret_files(lab, host) for host in HOSTS] == [[]] * len(HOSTS)


def test_a_launch_that_is_killed_before_its_guards_are_there_leaves_nothing(
    lab: Lab, runs: dict[str, Launched]
) -> None:
    deadline_s = time.monotonic() + 60
    while sum(GUARD in argv and "launch_echo" not in argv for _, argv in lab.processes(LOGIN)) < len(LAUNCHERS):
        assert time.monotonic() < deadline_s, {launcher: launched.output() for launcher, launched in runs.items()}
        time.sleep(0.05)
    kill(lab, signal.SIGKILL)
    lab.wait_until_nothing_runs(60)


def by_hand(lab: Lab, host: str, out_dir: Path, environ: Mapping[str, str], *switches: str) -> HostProcess:
    where = ["--launcher", "torchrun", "--nnodes", "2", "--rdzv-endpoint", "node1:29520", "--nproc-per-node", "1"]
    command = [sys.executable, "-m", "launch_echo", *where, *switches, "--", str(out_dir), "end"]
    out_dir.mkdir(exist_ok=True)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return lab.popen(host, command, cwd=lab.folder, environ={"PYTHONPATH": PATH, **environ}, **pipes)


@pytest.mark.parametrize("has_id", [False, True])
def test_hosts_that_were_started_by_hand_need_the_same_secret(has_id: bool, lab: Lab) -> None:
    out_dir = lab.folder / f"by-hand-secret-{has_id}"
    switches = ["--rdzv-id", os.urandom(32).hex()] if has_id else ["--start-limit", "20"]
    started = {
        host: by_hand(lab, host, out_dir, {"XDG_CONFIG_HOME": str(lab.folder / f"config-{host}")}, *switches)
        for host in HOSTS
    }
    ended = {host: (process.communicate(timeout=90)[0], process.returncode) for host, process in started.items()}
    if has_id:
        assert [status for _, status in ended.values()] == [0, 0], ended
    else:
        assert all(status != 0 for _, status in ended.values())
        assert "who answers to node2 does not know this run's secret" in ended["node2"][0]
        assert "10.77.0.12 did not know this run's secret" in ended["node1"][0]
        assert not list(out_dir.glob("rank-*.json"))
    lab.wait_until_nothing_runs()
