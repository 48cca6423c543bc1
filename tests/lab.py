"""Two hosts and a login node on this one machine, as Linux namespaces: what runs over several hosts runs for real.

    with lab(tmp_path) as hosts:
        ended = hosts.run("login", ["ssh", "node1", "hostname"])
        hosts.power_off("node2")

Each host has its own name, address, process numbers, /tmp, /run, /dev/shm and sshd; the rest of the file system is
shared, as over NFS. The switch between them is in the login node's network namespace, and the hosts are in its PID
namespace: when its process 1 is killed the kernel takes away every process, mount, interface and namespace.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from ranks import Ended, bin_environment

HOSTS = ("node1", "node2")
LOGIN = "login"
ADDRESSES = {LOGIN: "10.77.0.1", "node1": "10.77.0.11", "node2": "10.77.0.12"}
TIME_LIMIT_S = 120.0

_ROOT = Path(__file__).parents[1]
_INIT = Path(__file__).with_name("lab_host.sh")
_PROGRAMS = ("unshare", "nsenter", "setpriv", "setsid", "mount", "ip", "tc", "/usr/sbin/sshd", "ssh", "ssh-keygen")
_NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
# `setpriv` ends the lab with the thread that made it, `--kill-child` a host with its `unshare`.
_NEW_HOST = ("unshare", *_NAMESPACES, "--fork", "--kill-child=KILL", "--mount-proc")
_TIED_TO_PARENT = ("setpriv", "--pdeathsig", "KILL")
_PRIVATE_FOLDERS = ("/tmp", "/run", "/dev/shm", "/sys", "/mnt")
_POLL_S = 0.01
_DAEMONS = ("sshd:", "slurmd", "slurmstepd:")

_SSHD_CONFIG = """\
Port 22
HostKey {etc}/host_key
AuthorizedKeysFile {etc}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
"""

_SSH_CONFIG = """\
Host {hosts}
  IdentityFile {etc}/user_key
  IdentitiesOnly yes
  GlobalKnownHostsFile {etc}/known_hosts
  UserKnownHostsFile /dev/null
  UpdateHostKeys no
  StrictHostKeyChecking yes
"""


class HostProcess(subprocess.Popen[str]):
    """A command on a host, in a session of its own. `pid` is of the nsenter around it; signals reach the command."""

    def command_pid(self) -> int:
        """The command's process number as the tests see it."""
        while self.poll() is None:
            for child in psutil.Process(self.pid).children():
                # Before setsid has run the child is still in the process group of the tests.
                if os.getpgid(child.pid) == child.pid:
                    return child.pid
            time.sleep(_POLL_S)
        raise ProcessLookupError(f"{self.args!r} has ended")

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.command_pid(), sig)

    def signal_group(self, sig: int) -> None:
        """To the command's whole process group, as Ctrl-C sends SIGINT."""
        if self.poll() is None:
            os.killpg(self.command_pid(), sig)


class Lab:
    """`folder` is shared by all hosts, at the same path.

    Commands run on the login node too; but it holds the switch, so power and links are those of `hosts`.
    """

    hosts = HOSTS

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._etc = folder / ".lab"
        # Run on a host each time after it has booted: what else belongs to the host starts there.
        self.at_boot: list[Callable[[str], None]] = []
        self._boots: dict[str, subprocess.Popen[str]] = {}
        self._init_pids: dict[str, int] = {}
        self._own_pids: dict[str, set[int]] = {}
        self._environs: dict[str, dict[str, str]] = {}

    def address(self, host: str) -> str:
        return ADDRESSES[host]

    def environ(self, host: str) -> Mapping[str, str]:
        """What is set on this host only."""
        return self._environs[host]

    def is_on(self, host: str) -> bool:
        return host in self._init_pids

    def popen(
        self,
        host: str,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        environ: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> HostProcess:
        """The command's environment is the tests' own, with their interpreter first on the PATH, and `environ`."""
        around = ["setsid", "env", "-C", str(cwd or self.folder), *_assignments(self._environs[host])]
        # Whatever started the tests may ignore Ctrl-C, and then so would all commands.
        restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        kwargs = {"stdin": subprocess.DEVNULL, "text": True, "preexec_fn": restore} | kwargs
        return HostProcess([*self._enter(host), *around, *argv], env=_environment(environ), **kwargs)

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        environ: Mapping[str, str] | None = None,
        timeout_s: float = TIME_LIMIT_S,
    ) -> Ended:
        """Raises TimeoutError, with what was printed, when the command has to be killed."""
        # Not a pipe: what the command leaves behind would hold it open.
        with tempfile.TemporaryFile("w+", errors="replace") as printed:
            process = self.popen(host, argv, cwd=cwd, environ=environ, stdout=printed, stderr=subprocess.STDOUT)
            try:
                status = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.signal_group(signal.SIGKILL)
                process.wait()
                raise TimeoutError(f"{argv} has not ended on {host} after {timeout_s:g} s:\n{_read(printed)}") from None
            return Ended(status, _read(printed))

    def check(self, host: str, argv: Sequence[str], **kwargs: Any) -> str:
        """What the command prints; it has to succeed."""
        ended = self.run(host, argv, **kwargs)
        assert ended.status == 0, f"{argv} on {host}: {ended}"
        return ended.output

    def processes(self, host: str) -> list[tuple[int, tuple[str, ...]]]:
        """Process number, as the tests see it, and command of what runs on the host beyond its own daemons."""
        own = self._own_pids[host]
        return [(pid, argv) for pid, argv in self._all_processes(host) if pid not in own]

    def wait_until_nothing_runs(self, limit_s: float = 30.0) -> None:
        """On no host; fails the test, naming what still runs. A host that is off runs nothing.

        What the daemons start for a session or a job, and end in their own time, does not count.
        """

        def started(host: str) -> list[tuple[int, tuple[str, ...]]]:
            return [(pid, argv) for pid, argv in self.processes(host) if not argv or not argv[0].startswith(_DAEMONS)]

        deadline_s = time.monotonic() + limit_s
        while left := {host: found for host in self._init_pids if (found := started(host))}:
            assert time.monotonic() < deadline_s, f"still running after {limit_s:g} s: {left}"
            time.sleep(_POLL_S)

    def power_off(self, host: str, *, silently: bool = False) -> None:
        """Kills everything on the host at once. Its peers' connections are closed, unless the link goes down first."""
        if silently:
            self.cut_link(host)
        os.kill(self._init_pids.pop(host), signal.SIGKILL)
        self._boots.pop(host).wait()
        # Gone with the host's namespace, but the kernel may take its time over that.
        self._switch("ip", "link", "delete", _switch_end(host), check=False)

    def power_on(self, host: str, *, environ: Mapping[str, str] | None = None) -> None:
        """Boots the host. `environ` is set for all that runs on it, also what comes by ssh; but not for sshd itself."""
        self._environs[host] = dict(environ or {})
        config = _SSHD_CONFIG.format(etc=self._etc)
        if environ:
            config += f"SetEnv {' '.join(map(_quoted_for_sshd, _assignments(environ)))}\n"
        (self._etc / f"sshd_config.{host}").write_text(config)
        self._boot(host)
        for start in self.at_boot:
            self.start(host, start)

    def start(self, host: str, start: Callable[[str], None]) -> None:
        """Calls start(host); what runs on the host afterwards and did not before is the host's own."""
        before = {pid for pid, _ in self._all_processes(host)}
        start(host)
        self._own_pids[host] |= {pid for pid, _ in self._all_processes(host)} - before

    def cut_link(self, host: str) -> None:
        self._switch("ip", "link", "set", _switch_end(host), "down")

    def mend_link(self, host: str) -> None:
        self._switch("ip", "link", "set", _switch_end(host), "up")

    def slow_link(self, host: str, rate: str | None) -> None:
        """Both directions carry at most `rate`, as tc writes it ("10mbit"); None: as fast as it goes."""
        for inside, device in ((LOGIN, _switch_end(host)), (host, "eth0")):
            tc = [*self._enter(inside, "--net"), "tc", "qdisc"]
            if rate is None:
                # A host that has booted meanwhile has a new link, with nothing to take away.
                subprocess.run([*tc, "delete", "dev", device, "root"], check=False, stderr=subprocess.DEVNULL)
            else:
                shape = ["tbf", "rate", rate, "burst", "64kb", "latency", "400ms"]
                subprocess.run([*tc, "replace", "dev", device, "root", *shape], check=True)

    def boot_all(self, environs: Mapping[str, Mapping[str, str]]) -> None:
        self._write_etc()
        for host in (LOGIN, *HOSTS):
            self.power_on(host, environ=environs.get(host))

    def take_down(self) -> None:
        """Kills the login node, and the kernel the rest."""
        if LOGIN in self._init_pids:
            os.kill(self._init_pids[LOGIN], signal.SIGKILL)
        elif LOGIN in self._boots:
            self._boots[LOGIN].kill()
        for boot in self._boots.values():
            boot.wait()

    def _write_etc(self) -> None:
        self._etc.mkdir(parents=True)
        for name in ("host_key", "user_key"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(self._etc / name)]
            subprocess.run(keygen, check=True)
        names = [*ADDRESSES, *ADDRESSES.values()]
        host_key = (self._etc / "host_key.pub").read_text()
        (self._etc / "known_hosts").write_text(f"{','.join(names)} {host_key}")
        (self._etc / "ssh_config").write_text(_SSH_CONFIG.format(hosts=" ".join(names), etc=self._etc))
        lines = ["127.0.0.1 localhost", *(f"{address} {host}" for host, address in ADDRESSES.items())]
        (self._etc / "hosts").write_text("".join(f"{line}\n" for line in lines))

    def _boot(self, host: str) -> None:
        before = _TIED_TO_PARENT if host == LOGIN else self._enter(LOGIN)
        interface = "br0" if host == LOGIN else "eth0"
        words = [host, interface, ADDRESSES[host], _hardware_address(host), str(self._etc)]
        words += map(str, _to_keep(self.folder))
        log = self._etc / f"{host}.log"
        with log.open("a") as errors:
            boot = subprocess.Popen(
                [*before, *_NEW_HOST, str(_INIT), *words],
                env=_environment(None),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._boots[host] = boot
        assert boot.stdin is not None and boot.stdout is not None
        with boot.stdin, boot.stdout:
            _expect("alone", boot.stdout, log)
            init_pid = _last_descendant(boot.pid)
            self._init_pids[host] = init_pid
            if host != LOGIN:
                end = _switch_end(host)
                cable = ("type", "veth", "peer", "name", "eth0", "netns", str(init_pid))
                self._switch("ip", "link", "add", end, *cable)
                self._switch("ip", "link", "set", end, "master", "br0", "up")
            boot.stdin.write("\n")
            boot.stdin.flush()
            _expect("up", boot.stdout, log)
        self._own_pids[host] = {pid for pid, _ in self._all_processes(host)}
        if host != LOGIN:
            self._own_pids[LOGIN].add(psutil.Process(init_pid).ppid())

    def _enter(self, host: str, *namespaces: str) -> tuple[str, ...]:
        return ("nsenter", "--target", str(self._init_pids[host]), *(namespaces or _NAMESPACES), "--")

    def _switch(self, *command: str, check: bool = True) -> None:
        quiet = None if check else subprocess.DEVNULL
        subprocess.run([*self._enter(LOGIN, "--net"), *command], check=check, stderr=quiet)

    def _all_processes(self, host: str) -> list[tuple[int, tuple[str, ...]]]:
        namespace = _pid_namespace(self._init_pids[host])
        found = []
        for process in psutil.process_iter():
            try:
                if _pid_namespace(process.pid) == namespace and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process.pid, tuple(process.cmdline())))
            except (psutil.NoSuchProcess, OSError):
                continue  # It has ended, or it is none of ours.
        return found


def why_no_lab() -> str | None:
    """The reason why `lab` cannot work here, or None when it can."""
    if os.geteuid() != 0:
        return "hosts as namespaces need root"
    missing = [program for program in _PROGRAMS if shutil.which(program, path=_environment(None)["PATH"]) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    trial = "mount -t tmpfs tmpfs /mnt && ip link add br0 type bridge && ip link add one type veth peer name other"
    tried = subprocess.run(
        [*_NEW_HOST, "sh", "-c", trial], env=_environment(None), capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else f"this kernel gives no namespaces of one's own: {tried.stderr.strip()}"


@contextmanager
def lab(folder: Path, environs: Mapping[str, Mapping[str, str]] | None = None) -> Iterator[Lab]:
    """All hosts are on. `environs` has the variables of a host that differs from the others."""
    made = Lab(folder)
    try:
        made.boot_all(environs or {})
        yield made
    finally:
        made.take_down()


def clock_off_by(offset_s: int) -> dict[str, str]:
    """The variables with which a host's clock is wrong; skips the test where libfaketime is not installed."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        pytest.skip("not installed: faketime")
    # The monotonic clock stays right, or every time limit on that host would be over at once.
    return {"LD_PRELOAD": str(libraries[0]), "FAKETIME": f"{offset_s:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    environ = bin_environment()
    # A folder for temporary files that all hosts shared would not be what a host has.
    environ.pop("TMPDIR", None)
    environ["PATH"] += ":/usr/sbin:/sbin"
    return environ | dict(extra or {})


def _assignments(environ: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environ.items()]


def _quoted_for_sshd(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _to_keep(folder: Path) -> list[Path]:
    """The outermost folders that every host needs and a mount of its own would hide."""
    needed = {path.resolve() for path in (folder, _ROOT, Path(sys.prefix), Path(sys.base_prefix))}
    needed.add(Path("/sys/fs/cgroup"))
    hidden = [path for path in needed if path.is_dir() and _is_below(path, map(Path, _PRIVATE_FOLDERS))]
    return sorted(path for path in hidden if not _is_below(path, hidden))


def _is_below(path: Path, folders: Iterable[Path]) -> bool:
    return any(folder in path.parents for folder in folders)


def _switch_end(host: str) -> str:
    return f"to-{host}"


def _hardware_address(host: str) -> str:
    """The same at each boot: the peers remember it."""
    return ":".join(f"{int(part):02x}" for part in ("2", "0", *ADDRESSES[host].split(".")))


def _expect(word: str, stream: IO[str], log: Path) -> None:
    line = stream.readline().strip()
    if line != word:
        raise RuntimeError(f"{log.stem} did not boot: {log.read_text(errors='replace')}")


def _last_descendant(pid: int) -> int:
    while children := psutil.Process(pid).children():
        pid = children[0].pid
    return pid


def _pid_namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
