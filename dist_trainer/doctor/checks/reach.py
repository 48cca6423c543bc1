"""Whether a process can be started on every host, and answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dist_trainer.doctor.examination import Asker, Examination, HostReport
from dist_trainer.doctor.findings import Finding, grouped
from dist_trainer.launch.hosts.ssh import ProblemKind

_DO: Mapping[ProblemKind, str] = {
    "unknown host": "correct the name in the hostfile, or make it known (DNS, /etc/hosts)",
    "refused": "start sshd there, or say its port in ~/.ssh/config",
    "no route": "power the host on, or leave it out with --exclude",
    "no answer": "power the host on, or leave it out with --exclude; a firewall may drop port 22",
    "permission denied": "give it your key: ssh-copy-id HOST; keys with a passphrase need an agent",
    "host key": "connect once by hand: ssh HOST; a key that has changed is removed with ssh-keygen -R HOST",
    "lost": "look at the host's console and at sshd's log there",
    "time limit": "look at what the host is busy with",
    "ssh": "try it by hand: ssh -v HOST true",
}
_QUESTIONS = {
    "facts": "the host itself",
    "clock": "clock",
    "gpus": "GPUs",
    "write": "runs folder",
    "look": "runs folder",
    "listen": "network",
    "connect": "network",
    "reduce": "all-reduce",
}
_WHEN_SILENT = {
    "gpus": "try nvidia-smi there: a driver that hangs needs a reboot",
    "write": "try ls in the folder there: a file system that hangs is mounted again",
    "look": "try ls in the folder there: a file system that hangs is mounted again",
}


def check(exam: Examination) -> Iterator[Finding]:
    lost = [host for host in exam.hosts if host.unreachable is not None]
    for host in lost:
        yield _why(host, exam.asker)
    answering = len(exam.hosts) - len(lost)
    if answering:
        many = "1 host answers" if answering == 1 else f"{answering} hosts answer"
        ways = {"ssh": "over ssh", "srun": "in a SLURM step", "here": "(this one)"}
        of_all = f" of {len(exam.hosts)}" if lost else ""
        yield Finding("ok", "reachable", f"{many}{of_all} {ways[exam.how]}")
    yield from _silences(exam)
    noise = {
        host.name: f"its shell prints, also when nobody types: {host.noise[0]!r}" for host in exam.hosts if host.noise
    }
    yield from grouped("warn", "shell", noise, "let start files (~/.bashrc) print only when the shell is interactive")
    troubles = {host.name: "; ".join(host.facts.troubles) for host in exam.hosts if host.facts and host.facts.troubles}
    yield from grouped("warn", "not measured", troubles, None)


def _why(host: HostReport, asker: Asker) -> Finding:
    hosts, start = (host.name,), host.startup
    if host.unreachable_kind is not None:
        do = _DO[host.unreachable_kind].replace("HOST", host.name)
        return Finding("fail", "reachable", str(host.unreachable), hosts, do)
    if start is not None and not start.has_folder:
        do = "have the project at the same path on every host, or in a folder that all of them share"
        return Finding("fail", "project", f"there is no folder {asker.cwd}", hosts, do)
    if start is not None and not start.has_interpreter:
        do = "make the same environment there: ./launch.sh --setup, at the same path"
        return Finding("fail", "python", f"there is no {asker.interpreter}", hosts, do)
    if start is not None and start.python != asker.python:
        found = (
            f"{asker.interpreter} is {start.python or 'no Python that runs'}, where {asker.hostname} has {asker.python}"
        )
        do = "make the environment there again: ./launch.sh --setup, with the same Python"
        return Finding("fail", "python", found, hosts, do)
    if start is not None and start.import_error:
        do = "make the same environment there: ./launch.sh --setup, at the same path"
        return Finding("fail", "project", start.import_error, hosts, do)
    return Finding("fail", "reachable", str(host.unreachable), hosts, None)


def _silences(exam: Examination) -> Iterator[Finding]:
    for question, check_name in _QUESTIONS.items():
        silent = {host.name: host.unanswered[question] for host in exam.hosts if question in host.unanswered}
        yield from grouped("fail", check_name, silent, _WHEN_SILENT.get(question))
