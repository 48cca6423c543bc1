"""Whether the software is the same on every host, and can use the hardware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dist_trainer.doctor.examination import Examination
from dist_trainer.doctor.facts import Revision, SystemFacts
from dist_trainer.doctor.findings import Finding, Level, grouped, sameness
from dist_trainer.units import counted

_SAME_ENVIRONMENT = "make the environments the same: ./launch.sh --setup on each host, from the same constraints.txt"
_SAME_CODE = "bring every host to the same revision (git pull), or use a folder that all of them share"
_MISSING = "not installed"
_NO_CUDA = "built without CUDA"
_NAMED = ("torch", "deepspeed")


def check(exam: Examination) -> Iterator[Finding]:
    facts = {host.name: host.facts for host in exam.hosts if host.facts is not None}
    if not facts:
        return
    here = exam.asker
    pythons = {name: found.python for name, found in facts.items()}
    is_minor_same = len({python.rpartition(".")[0] for python in pythons.values()}) == 1
    yield from sameness(
        "python", pythons, level="warn" if is_minor_same else "fail", do=_SAME_ENVIRONMENT, here=here.python
    )
    for package in _NAMED:
        yield from _package(package, facts, level="fail", here=here.packages.get(package))
    for package in sorted({name for found in facts.values() for name in found.packages}.difference(_NAMED)):
        level: Level = "fail" if package == "nccl" else "warn"
        findings = _package(package, facts, level=level, here=here.packages.get(package))
        # An "ok" for each of these packages would only fill the table.
        yield from (finding for finding in findings if finding.level != "ok")
    yield from _cuda(exam, facts)
    yield from _driver(exam)
    yield from _code(facts, here.revision)


def _package(name: str, facts: Mapping[str, SystemFacts], *, level: Level, here: str | None) -> Iterator[Finding]:
    absent = {host: _MISSING for host, found in facts.items() if not found.packages.get(name)}
    yield from grouped(level, name, absent, _SAME_ENVIRONMENT)
    versions = {host: version for host, found in facts.items() if (version := found.packages.get(name))}
    yield from sameness(name, versions, level=level, do=_SAME_ENVIRONMENT, here=here)


def _cuda(exam: Examination, facts: Mapping[str, SystemFacts]) -> Iterator[Finding]:
    """The CUDA that torch was built for, against the other hosts, the driver, and whether there are GPUs at all."""
    built = {host: found.torch_cuda or _NO_CUDA for host, found in facts.items() if found.packages.get("torch")}
    useless, newer = {}, {}
    for host in exam.hosts:
        version = built.get(host.name)
        if host.gpus is None or not host.gpus.devices or version is None:
            continue
        if version == _NO_CUDA:
            useless[host.name] = f"{counted(len(host.gpus.devices), 'GPU')}, and a torch that is {_NO_CUDA}"
        elif host.gpus.driver_cuda and _major(version) > _major(host.gpus.driver_cuda):
            newer[host.name] = f"torch is built for {version}, and the driver knows CUDA up to {host.gpus.driver_cuda}"
    alike = sameness("torch's CUDA", built, level="fail", do=_SAME_ENVIRONMENT, here=exam.asker.torch_cuda or _NO_CUDA)
    yield from (finding for finding in alike if finding.level != "ok" or not (useless or newer))
    yield from grouped("fail", "torch's CUDA", useless, "install a torch for CUDA: see pytorch.org for the command")
    yield from grouped("fail", "torch's CUDA", newer, "update the driver, or install a torch for an older CUDA")


def _driver(exam: Examination) -> Iterator[Finding]:
    drivers = {host.name: host.gpus.driver for host in exam.hosts if host.gpus and host.gpus.driver}
    yield from sameness("driver", drivers, level="warn", do="install the same driver on all hosts")


def _code(facts: Mapping[str, SystemFacts], here: Revision | None) -> Iterator[Finding]:
    """Compares the files' bytes: a commit says little if there are local changes, and a copy may have no commit."""
    names: dict[str, str] = {}
    for revision in [found.revision for found in facts.values()]:
        known = names.get(revision.digest)
        if known is None or (revision.head and "commit" not in known):
            names[revision.digest] = _revision_text(revision)
    yield from sameness(
        "project's code",
        {host: names[found.revision.digest] for host, found in facts.items()},
        level="fail",
        do=_SAME_CODE,
        here=None if here is None else names.get(here.digest, _revision_text(here)),
    )


def _revision_text(revision: Revision) -> str:
    text = f"files {revision.digest[:10]}"
    if revision.head is None:
        return text
    return f"commit {revision.head[:10]}{' with local changes' if revision.is_dirty else ''}, {text}"


def _major(version: str) -> int:
    return int(version.partition(".")[0])
