"""Examinations for tests, made up: hosts on which all is well, unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dist_trainer.doctor.clock import Offset
from dist_trainer.doctor.examination import Asker, Examination, HostReport, MeetingPort, Trial
from dist_trainer.doctor.facts import (
    UNLIMITED,
    Connection,
    Connections,
    Cpus,
    Device,
    Folder,
    GpuFacts,
    HostGpus,
    MemoryFacts,
    NumaNode,
    Port,
    RankReport,
    RankReports,
    ResourceLimits,
    Revision,
    Seen,
    SharedMemory,
    SystemFacts,
    Transfer,
)
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.needs import Needs
from dist_trainer.units import GIB

PACKAGES: dict[str, str | None] = {"torch": "2.13.0", "deepspeed": "0.19.8", "numpy": "2.1.0"}
FACTS = SystemFacts(
    hostname="?",
    python="3.11.7",
    interpreter="/env/bin/python",
    packages=PACKAGES,
    torch_cuda="12.8",
    revision=Revision("d" * 64, "c" * 40, False),
    kernel="6.1.0",
    cpus=Cpus(64, 64, None, (NumaNode(0, 32), NumaNode(1, 32))),
    memory=MemoryFacts(512 * GIB, 500 * GIB),
    limits=ResourceLimits(65536, UNLIMITED),
    shared_memory=SharedMemory(256 * GIB, 256 * GIB, True),
    ports=(Port(29500, True),),
)
NEEDS = Needs(
    name="large",
    deepspeed="zero2.json",
    checkpoint_bytes=10 * GIB,
    num_checkpoints=3,
    num_workers=2,
    offloads_to_nvme=False,
)
ASKER = Asker(
    hostname="login",
    interpreter="/env/bin/python",
    cwd="/work",
    python="3.11.7",
    packages=PACKAGES,
    torch_cuda="12.8",
    revision=FACTS.revision,
    is_asked=False,
    sees_folder=True,
)
NO_GPUS = HostGpus(kernel=(), trouble="libnvidia-ml.so.1 is not on this host")


def gpu(index: int, host: str = "node1", **changes: Any) -> GpuFacts:
    known: dict[str, Any] = {
        "index": index,
        "uuid": f"GPU-{host}-{index}",
        "pci_bus_id": f"00000000:{16 + index:02X}:00.0",
        "name": "NVIDIA A100-SXM4-80GB",
        "total_bytes": 80 * GIB,
        "used_bytes": 0,
        "ecc_errors": 0,
        "throttle_reasons": ("gpu_idle",),
        "is_persistent": True,
        "numa_node": index % 2,
    }
    return GpuFacts(**{**known, **changes})


def gpus(*made: GpuFacts, **changes: Any) -> HostGpus:
    """A host's, all seen by a program, and all shown by the kernel at the places that the driver says."""
    known: dict[str, Any] = {
        "driver": "570.00",
        "driver_cuda": "12.8",
        "num_said": len(made),
        "gpus": made,
        "devices": tuple(Device(one.uuid, one.name, one.total_bytes, one.used_bytes) for one in made),
        "kernel": tuple(f"0000:{one.pci_bus_id[9:].lower()}" for one in made),
        "has_library": True,
    }
    return HostGpus(**{**known, **changes})


def host(name: str, *, num_slots: int = 2, neighbours: Iterable[str] = (), **changes: Any) -> HostReport:
    """`facts` among the changes is a mapping of what is different in FACTS."""
    facts = changes.pop("facts", {})
    known: dict[str, Any] = {
        "facts": replace(FACTS, hostname=name, **facts) if facts is not None else None,
        "gpus": gpus(*(gpu(index, name) for index in range(num_slots))),
        "clock": Offset(0.0001, 0.0002),
        "folder": Folder("/shared", "nfs4", "server:/shared", 2**50, 2**49, 2**26, 0.1),
        "seen": Seen(),
        "connections": Connections(
            tuple(Connection(peer, "10.0.0.2", "eth0", 9000, 100_000) for peer in neighbours), "10.0.0.1"
        ),
    }
    return HostReport(name, tuple(range(num_slots)), **{**known, **changes})


def exam(*hosts: HostReport, **changes: Any) -> Examination:
    known: dict[str, Any] = {
        "how": "ssh",
        "asker": ASKER,
        "hosts": hosts,
        "port": MeetingPort(29500, None),
        "folder": "/shared",
        "needs": NEEDS,
        "trial": Trial(why_not="it is made up"),
    }
    return Examination(**{**known, **changes})


def two_hosts(**changes: Any) -> Examination:
    """`changes` are to the second one."""
    return exam(host("node1", neighbours=["node2"]), host("node2", neighbours=["node1"], **changes))


def with_trial(hosts: list[HostReport], speeds: dict[tuple[str, str], float], **changes: Any) -> Examination:
    """Hosts whose first ranks found these speeds, bytes a second, from one to the other."""
    firsts, first = {}, 0
    for one in hosts:
        firsts[one.name] = first
        first += one.num_slots
    measured = []
    for one in hosts:
        transfers = tuple(
            Transfer(firsts[source], firsts[target], 2**20, 2**20 / speed)
            for (source, target), speed in speeds.items()
            if source == one.name
        )
        ranks = (RankReport(firsts[one.name], "end", None, 2**24, 0.01, transfers),)
        measured.append(replace(one, ranks=RankReports(ranks)))
    return exam(*measured, trial=Trial({one.name: one.slots for one in hosts}, "cuda"), **changes)


def lines(findings: Iterable[Finding], check: str | None = None) -> list[tuple[str, tuple[str, ...], str]]:
    """Level, hosts and what was found, of one check or of all."""
    return [(one.level, one.hosts, one.found) for one in findings if check in (None, one.check)]
