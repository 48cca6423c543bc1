"""What a rank may use of its host besides the GPU: /dev/shm, open files, locked memory, CPUs and NUMA nodes."""

from __future__ import annotations

from collections.abc import Iterator

from dist_trainer.data.workers import default_num_workers
from dist_trainer.doctor.examination import Examination, HostReport
from dist_trainer.doctor.facts import UNLIMITED, Cpus, SystemFacts
from dist_trainer.doctor.findings import Finding, all_well, grouped
from dist_trainer.doctor.needs import Needs
from dist_trainer.units import MIB, counted, format_bytes

# NCCL's buffers in /dev/shm. A container's default of 64 MiB is too little for two ranks.
_SHM_BYTES_A_GPU = 128 * MIB
_SHM_BYTES_A_CPU_RANK = 8 * MIB
# Python, torch's libraries and the rank's own files; and two connections to each other rank.
_FILES_A_RANK = 256
_FILES_A_PEER = 2


def check(exam: Examination) -> Iterator[Finding]:
    hosts = [(host, host.facts) for host in exam.hosts if host.facts is not None]
    if not hosts:
        return
    yield from _shared_memory(hosts, exam)
    yield from _open_files(hosts, exam)
    yield from _locked_memory(hosts, exam.needs)
    yield from _cpus(hosts, exam.needs)
    yield from _numa(hosts)


Known = list[tuple[HostReport, SystemFacts]]


def _shared_memory(hosts: Known, exam: Examination) -> Iterator[Finding]:
    a_rank = _SHM_BYTES_A_GPU if exam.device == "cuda" else _SHM_BYTES_A_CPU_RANK
    blocked, short, free = {}, {}, {}
    for host, facts in hosts:
        shm = facts.shared_memory
        if shm is None:
            continue
        wanted = host.num_slots * a_rank
        free[host.name] = shm.free_bytes
        if not shm.is_writable:
            blocked[host.name] = "it cannot be written to"
        elif shm.free_bytes < wanted:
            short[host.name] = f"{format_bytes(shm.free_bytes)} free, and the ranks may want {format_bytes(wanted)}"
    yield from grouped("fail", "/dev/shm", blocked, "mount it for all: mode=1777")
    yield from grouped(
        "fail", "/dev/shm", short, "make it larger: mount -o remount,size=8G /dev/shm; docker run --shm-size=8g"
    )
    if not blocked and not short:
        yield from all_well(
            "/dev/shm", f"at least {format_bytes(min(free.values(), default=0))} free", free, _names(hosts)
        )


def _open_files(hosts: Known, exam: Examination) -> Iterator[Finding]:
    wanted = _FILES_A_RANK + _FILES_A_PEER * exam.num_ranks
    limits = {host.name: facts.limits.open_files for host, facts in hosts if facts.limits}
    short = {
        name: f"{limit}, and each of {counted(exam.num_ranks, 'rank')} may need {wanted}"
        for name, limit in limits.items()
        if limit < wanted
    }
    yield from grouped("fail", "open files", short, "raise the limit: ulimit -n 65536, or nofile in limits.conf")
    if not short:
        yield from all_well("open files", f"at least {_limit(min(limits.values(), default=0))}", limits, _names(hosts))


def _locked_memory(hosts: Known, needs: Needs) -> Iterator[Finding]:
    """Locked memory is needed by what registers memory with a device: InfiniBand, and DeepSpeed's NVMe offload."""
    short = {}
    for host, facts in hosts:
        uses = [f"InfiniBand ({', '.join(facts.infiniband)})"] if facts.infiniband else []
        uses += ["offload to NVMe"] if needs.offloads_to_nvme else []
        if uses and facts.limits and facts.limits.locked_memory_bytes < UNLIMITED:
            amount = format_bytes(facts.limits.locked_memory_bytes)
            short[host.name] = f"{amount} may be locked, and {' and '.join(uses)} locks more"
    do = "lift the limit: memlock unlimited in limits.conf; under SLURM for slurmd (LimitMEMLOCK=infinity)"
    yield from grouped("warn", "locked memory", short, do)
    if not short:
        limits = {host.name: facts.limits.locked_memory_bytes for host, facts in hosts if facts.limits}
        least = min(limits.values(), default=0)
        text = _limit(least) if least == UNLIMITED else f"at least {format_bytes(least)}"
        yield from all_well("locked memory", text, limits, _names(hosts))


def _cpus(hosts: Known, needs: Needs) -> Iterator[Finding]:
    crowded, few, room = {}, {}, {}
    for host, facts in hosts:
        if facts.cpus is None:
            continue
        count = usable_cpus(facts.cpus)
        workers = _workers_a_rank(needs, facts.cpus, host.num_slots)
        of_all = f" of {facts.cpus.num_logical}" if count < facts.cpus.num_logical else ""
        if count < host.num_slots:
            few[host.name] = f"{count:g}{of_all} CPUs for {counted(host.num_slots, 'rank')}"
        elif count < host.num_slots * (1 + workers):
            crowded[host.name] = (
                f"{count:g}{of_all} CPUs for {counted(host.num_slots, 'rank')} "
                f"with {counted(workers, 'loader worker')} each"
            )
        room[host.name] = (count, host.num_slots, workers)
    yield from grouped("warn", "CPUs", few, "ask the batch system or the container for more CPUs, or start fewer ranks")
    yield from grouped(
        "warn", "CPUs", crowded, "lower data.num_workers (--set data.num_workers=N), or ask for more CPUs"
    )
    if not few and not crowded:
        count, ranks, workers = min(room.values(), default=(0, 0, 0))
        text = f"at least {count:g} for {counted(ranks, 'rank')} with {counted(workers, 'loader worker')} each"
        yield from all_well("CPUs", text, room, _names(hosts))


def _numa(hosts: Known) -> Iterator[Finding]:
    """Warns of a GPU whose nearest CPUs this process may not use: its data then crosses the link between sockets."""
    far = {}
    for host, facts in hosts:
        nodes = {node.number: node.num_cpus for node in facts.cpus.numa} if facts.cpus else {}
        gpus = host.gpus.gpus if host.gpus else ()
        away = [gpu for gpu in gpus if gpu.numa_node is not None and nodes.get(gpu.numa_node) == 0]
        if away:
            numbers = ", ".join(str(gpu.index) for gpu in away)
            where = ", ".join(sorted({str(gpu.numa_node) for gpu in away}))
            far[host.name] = f"GPU {numbers}: on NUMA node {where}, of which no CPU may be used here"
    yield from grouped("warn", "NUMA", far, "ask for whole nodes, or bind each rank to the CPUs near its GPU")
    counts = {host.name: len(facts.cpus.numa) for host, facts in hosts if facts.cpus and facts.cpus.numa}
    if not far:
        text = " or ".join(map(str, sorted(set(counts.values()))))
        text = f"{text} node{'' if set(counts.values()) == {1} else 's'} a host"
        yield from all_well("NUMA", text, counts, _names(hosts))


def _names(hosts: Known) -> list[str]:
    return [host.name for host, _ in hosts]


def usable_cpus(cpus: Cpus) -> float:
    """The CPUs that a process can keep busy: its affinity mask, or a smaller quota of its cgroups."""
    return cpus.num_usable if cpus.quota is None else min(cpus.num_usable, cpus.quota)


def _workers_a_rank(needs: Needs, cpus: Cpus | None, num_ranks: int) -> int:
    if needs.num_workers is not None:
        return needs.num_workers
    return 0 if cpus is None else default_num_workers(cpus.num_logical, num_ranks)


def _limit(value: int) -> str:
    return "unlimited" if value == UNLIMITED else str(value)
