"""A real SLURM on this one host, for as long as a test lasts: its own ports, all its state in one folder.

The daemons and every job live in a PID namespace of their own: ending its first process ends them all.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "sinfo", "scontrol", "unshare")
_START_LIMIT_S = 30.0
_POLL_S = 0.05

_DAEMONS = "slurmctld -c && slurmd -N n1 && exec sleep infinity"

# auth/none keeps munge out of it; linuxproc and task/none keep the kernel's cgroups out of it.
_CONFIG = """\
ClusterName=onehost
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs={num_cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=n1 Default=YES MaxTime=INFINITE State=UP
"""


def why_no_slurm() -> str | None:
    """The reason why `one_host_slurm` cannot work here, or None when it can."""
    if os.geteuid() != 0:
        return "a SLURM of one's own needs root"
    missing = [program for program in _PROGRAMS if shutil.which(program, path=_search_path()) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@contextmanager
def one_host_slurm(folder: Path, num_cpus: int = 4) -> Iterator[dict[str, str]]:
    """Yields the environment (SLURM_CONF, PATH) in which srun, sbatch and scontrol reach a SLURM of one node, n1.

    On the way out every daemon, job and rank is killed; what is left is `folder`, with the logs in it.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    with ExitStack() as ports:
        controller_port, node_port = (_free_port(ports) for _ in range(2))
    config = folder / "slurm.conf"
    config.write_text(
        _CONFIG.format(
            host=socket.gethostname(),
            controller_port=controller_port,
            node_port=node_port,
            folder=folder,
            num_cpus=num_cpus,
        )
    )
    environ = {"SLURM_CONF": str(config), "PATH": _search_path()}
    with (folder / "daemons.log").open("wb") as log:
        # The first process of the PID namespace: when it is killed the kernel kills the rest.
        daemons = subprocess.Popen(
            ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child=KILL", "sh", "-c", _DAEMONS],
            env=_without_slurm(os.environ) | environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _wait_until_idle(environ, daemons, folder)
        yield environ
    finally:
        daemons.send_signal(signal.SIGKILL)
        daemons.wait()


def wait_for_job(environ: dict[str, str], job_id: str, limit_s: float = 120.0) -> dict[str, str]:
    """The facts of a job that has ended, as `scontrol show job` names them (JobState, ExitCode, ...)."""
    deadline_s = time.monotonic() + limit_s
    while True:
        text = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job_id],
            env=os.environ | environ,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        facts = dict(part.split("=", 1) for part in text.split() if "=" in part)
        if facts["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            return facts
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"job {job_id} has not ended after {limit_s:.0f} s: {text}")
        time.sleep(_POLL_S)


def _wait_until_idle(environ: dict[str, str], daemons: subprocess.Popen[bytes], folder: Path) -> None:
    deadline_s = time.monotonic() + _START_LIMIT_S
    while True:
        answer = subprocess.run(
            ["sinfo", "--noheader", "--states=idle", "--format=%D"],
            env=os.environ | environ,
            check=False,
            capture_output=True,
            text=True,
        )
        if answer.stdout.strip() == "1":
            return
        if daemons.poll() is not None or time.monotonic() > deadline_s:
            logs = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"SLURM did not start: {answer.stderr}\n{logs}")
        time.sleep(_POLL_S)


def _free_port(keep_open: ExitStack) -> int:
    listener = keep_open.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    return int(listener.getsockname()[1])


def _search_path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _without_slurm(environ: os._Environ[str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith("SLURM")}
