"""A real SLURM for as long as a test lasts, its state in one folder: on this one host, or over the hosts of the lab.

On one host the daemons and every job live in a PID namespace of their own: ending its first process ends them all.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from lab import LOGIN, Lab
from ranks import Ended, bin_environment, run

_PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "sinfo", "scontrol", "unshare")
_START_LIMIT_S = 30.0
_POLL_S = 0.05

_ACCOUNTING_PROGRAMS = ("mariadbd", "mariadb-install-db", "slurmdbd", "sacctmgr", "sacct")

_DAEMONS = "slurmctld -c && slurmd -N {node} && exec sleep infinity"

# The cluster has to be known to the accounting before its controller starts.
_ACCOUNTANTS = """\
mariadb-install-db --no-defaults --user=root --datadir={folder}/database --auth-root-authentication-method=socket \
    --skip-test-db >/dev/null
mariadbd --no-defaults --user=root --datadir={folder}/database --socket=$MYSQL_UNIX_PORT --skip-networking \
    --pid-file={folder}/mariadbd.pid --log-error={folder}/mariadbd.log &
until [ -S "$MYSQL_UNIX_PORT" ]; do sleep 0.05; done
slurmdbd
until sacctmgr --immediate add cluster tests; do sleep 0.1; done
"""

# linuxproc and task/none keep the kernel's cgroups out of it; config_overrides gives a node more CPUs than there are.
_COMMON = """\
ClusterName=tests
SlurmUser=root
SlurmdUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
"""

# auth/none keeps munge out of it.
_ONE_HOST = """\
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/none
CredType=cred/none
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdLogFile={folder}/slurmd.log
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={num_cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE State=UP
"""

# The controller forgets a job seconds after its end, and then the accounting alone knows it.
_WITH_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
MinJobAge=2
"""
_SLURMDBD = """\
AuthType=auth/none
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""

# A requeued job may start again when its credential has expired: after 2 minutes, if nothing is said.
_OVER_HOSTS = """\
SlurmctldHost=login({login_address})
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5
SlurmdTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
GresTypes=gpu
TaskProlog={folder}/task_prolog
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmdLogFile={folder}/slurmd.%n.log
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

# What SLURM hands over from a task prolog to the task.
_TASK_PROLOG = """\
#!/bin/sh
exec cat {folder}/environ.$(hostname)
"""


def why_no_slurm(*, with_accounting: bool = False) -> str | None:
    """The reason why `one_host_slurm` cannot work here, or None when it can."""
    if os.geteuid() != 0:
        return "a SLURM of one's own needs root"
    return _missing(*_PROGRAMS, *(_ACCOUNTING_PROGRAMS if with_accounting else ()))


@contextmanager
def one_host_slurm(
    folder: Path, num_cpus: int = 4, node: str = "n1", *, with_accounting: bool = False
) -> Iterator[dict[str, str]]:
    """Yields the environment (SLURM_CONF, PATH) in which srun, sbatch and scontrol reach a SLURM of one node.

    On the way out every daemon, job and rank is killed; what is left is `folder`, with the logs in it.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    with ExitStack() as ports:
        controller_port, node_port, accounting_port = (_free_port(ports) for _ in range(3))
    facts = {
        "host": socket.gethostname(),
        "controller_port": controller_port,
        "node_port": node_port,
        "accounting_port": accounting_port,
        "folder": folder,
        "num_cpus": num_cpus,
        "node": node,
    }
    config = folder / "slurm.conf"
    config.write_text((_COMMON + _ONE_HOST + (_WITH_ACCOUNTING if with_accounting else "")).format(**facts))
    environ = {"SLURM_CONF": str(config), "PATH": _search_path()}
    daemons_environ = _without_slurm(os.environ) | environ
    script = _DAEMONS
    if with_accounting:
        (folder / "slurmdbd.conf").write_text(_SLURMDBD.format(**facts))
        (folder / "slurmdbd.conf").chmod(0o600)
        daemons_environ["MYSQL_UNIX_PORT"] = str(folder / "database.sock")
        script = _ACCOUNTANTS + _DAEMONS
    with (folder / "daemons.log").open("wb") as log:
        # The first process of the PID namespace: when it is killed the kernel kills the rest.
        daemons = subprocess.Popen(
            ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child=KILL", "sh", "-ec", script.format(**facts)],
            env=daemons_environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until_idle(1, environ, folder)
        yield environ
    finally:
        daemons.send_signal(signal.SIGKILL)
        daemons.wait()


def why_no_slurm_over() -> str | None:
    return _missing(*_PROGRAMS, "munged")


@contextmanager
def slurm_over(lab: Lab) -> Iterator[dict[str, str]]:
    """Yields the environment (SLURM_CONF, PATH) in which srun, sbatch and scontrol on any host reach the lab's SLURM.

    Its nodes are the lab's hosts, with 4 CPUs and 2 GPUs each, whose device files are stand-ins; jobs in the partition
    `high` have those in `main` requeued. On the way out the daemons and what runs in jobs are killed.
    """
    folder = lab.folder / ".slurm"
    (folder / "state").mkdir(parents=True)
    config = folder / "slurm.conf"
    nodes = [
        f"NodeName={host} NodeAddr={lab.address(host)} CPUs=4 RealMemory=4000 Gres=gpu:a100:2" for host in lab.hosts
    ]
    text = (_COMMON + _OVER_HOSTS).format(folder=folder, login_address=lab.address(LOGIN), nodes="\n".join(nodes))
    config.write_text(text)
    for index in range(2):
        # SLURM hands out character devices only; these have the numbers of /dev/null.
        os.mknod(folder / f"nvidia{index}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (folder / "gres.conf").write_text(f"Name=gpu Type=a100 File={folder}/nvidia[0-1]\n")
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o600)
    (folder / "task_prolog").write_text(_TASK_PROLOG.format(folder=folder))
    (folder / "task_prolog").chmod(0o755)
    environ = {"SLURM_CONF": str(config), "PATH": f"{bin_environment()['PATH']}:/usr/sbin:/sbin"}

    def start_daemons(host: str) -> None:
        lines = (f"export {name}={value}\n" for name, value in lab.environ(host).items())
        (folder / f"environ.{host}").write_text("".join(lines))
        (folder / f"spool.{host}").mkdir(exist_ok=True)
        files = ["--key-file", folder / "munge.key", "--log-file", folder / f"munged.{host}.log"]
        files += ["--socket", "/run/munge/munge.socket.2", "--pid-file", "/run/munge/munged.pid"]
        lab.check(host, ["munged", "--force", *map(str, files), "--seed-file", "/run/munge/seed"], environ=environ)
        if host != LOGIN:
            # It goes on in the fork of a fork, which alone writes the file.
            lab.check(
                host, ["sh", "-c", "slurmd && until [ -s /run/slurmd.pid ]; do sleep 0.02; done"], environ=environ
            )
            return
        lab.check(host, ["slurmctld", "-c"], environ=environ)
        # When it answers it has started its helper process too, which then counts as the host's own.
        _wait_until(lambda: _run(["scontrol", "ping"], environ, lab).status == 0, folder)

    lab.at_boot.append(start_daemons)
    try:
        for host in (LOGIN, *lab.hosts):
            lab.start(host, start_daemons)
        wait_until_idle(len(lab.hosts), environ, folder, lab)
        yield environ
    finally:
        lab.at_boot.remove(start_daemons)
        # The daemons, and the jobs, whose environment SLURM makes of the submitting command's; slurmstepd has none.
        running = [process for host in lab.hosts if lab.is_on(host) for process in lab.processes(host)]
        steps = {pid for pid, argv in running if argv and argv[0].startswith("slurmstepd")}
        for process in psutil.process_iter(["environ"]):
            if process.pid in steps or (process.info["environ"] or {}).get("SLURM_CONF") == str(config):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def wait_for_job(
    environ: Mapping[str, str], job_id: str, limit_s: float = 120.0, *, lab: Lab | None = None
) -> dict[str, str]:
    """The facts of a job that has ended, as `scontrol show job` names them (JobState, ExitCode, ...)."""
    deadline_s = time.monotonic() + limit_s
    while True:
        shown = _run(["scontrol", "--oneliner", "show", "job", job_id], environ, lab)
        assert shown.status == 0, shown.output
        facts = dict(part.split("=", 1) for part in shown.output.split() if "=" in part)
        if facts["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING"):
            return facts
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"job {job_id} has not ended after {limit_s:.0f} s: {shown.output}")
        time.sleep(_POLL_S)


def _run(command: Sequence[str], environ: Mapping[str, str], lab: Lab | None) -> Ended:
    """On this host, or on the lab's login node."""
    if lab is not None:
        return lab.run(LOGIN, command, environ=environ)
    return run(command, cwd=Path.cwd(), environ=environ)


def wait_until_idle(num_nodes: int, environ: Mapping[str, str], folder: Path, lab: Lab | None = None) -> None:
    count = ["sinfo", "--noheader", "--states=idle", "--partition=main", "--format=%D"]
    _wait_until(lambda: _run(count, environ, lab).output.strip() == str(num_nodes), folder)


def _wait_until(is_true: Callable[[], bool], folder: Path) -> None:
    deadline_s = time.monotonic() + _START_LIMIT_S
    while not is_true():
        if time.monotonic() > deadline_s:
            logs = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"SLURM did not start:\n{logs}")
        time.sleep(_POLL_S)


def _free_port(keep_open: ExitStack) -> int:
    listener = keep_open.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    return int(listener.getsockname()[1])


def _missing(*programs: str) -> str | None:
    missing = [program for program in programs if shutil.which(program, path=_search_path()) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def _search_path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _without_slurm(environ: os._Environ[str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith("SLURM")}
