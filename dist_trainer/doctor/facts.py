"""What hosts found out, as plain values that travel as JSON. None stands for what could not be found out."""

from __future__ import annotations

from dataclasses import dataclass

UNLIMITED = 2**63 - 1


@dataclass(frozen=True)
class Revision:
    """The project's code on a host. `digest` changes with any byte of it; the rest is git's, in a checkout."""

    digest: str
    head: str | None = None
    is_dirty: bool | None = None


@dataclass(frozen=True)
class Port:
    """A port of the host; `holder` is the process that listens there, where this user may know it."""

    number: int
    is_free: bool
    holder: str | None = None


@dataclass(frozen=True)
class NumaNode:
    """`num_cpus` are those of it that a process may use."""

    number: int
    num_cpus: int


@dataclass(frozen=True)
class Cpus:
    """`num_usable`: those this process is bound to. `quota`: what a container or a job lets it use, in CPUs."""

    num_logical: int
    num_usable: int
    quota: float | None = None
    numa: tuple[NumaNode, ...] = ()


@dataclass(frozen=True)
class Memory:
    """`limit_bytes`: what a container or a job lets its processes use together."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None = None


@dataclass(frozen=True)
class Limits:
    """The soft limits (ulimit) of a process that is started as the ranks are; UNLIMITED where there is none."""

    open_files: int
    locked_memory_bytes: int


@dataclass(frozen=True)
class SharedMemory:
    """/dev/shm."""

    total_bytes: int
    free_bytes: int
    is_writable: bool


@dataclass(frozen=True)
class HostFacts:
    """What a host is and has, but for GPUs, folders and network. `packages`: version by name, None where missing."""

    hostname: str
    python: str
    interpreter: str
    packages: dict[str, str | None]
    torch_cuda: str | None
    revision: Revision
    kernel: str
    cpus: Cpus | None = None
    memory: Memory | None = None
    limits: Limits | None = None
    shared_memory: SharedMemory | None = None
    infiniband: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a GPU. `name` is None where the process cannot be seen from here."""

    pid: int
    name: str | None
    used_bytes: int | None


@dataclass(frozen=True)
class GpuFacts:
    """One GPU as NVML tells it. `used_bytes` counts everybody's. `num_instances`: parts that MIG has made of it."""

    index: int
    uuid: str
    pci_bus_id: str
    name: str
    total_bytes: int | None = None
    used_bytes: int | None = None
    ecc_errors: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    temperature_c: int | None = None
    is_persistent: bool | None = None
    num_instances: int = 0
    processes: tuple[GpuProcess, ...] = ()
    numa_node: int | None = None


@dataclass(frozen=True)
class Device:
    """What a rank sees as one GPU: a whole one, or an instance of one."""

    uuid: str
    name: str
    total_bytes: int | None = None
    used_bytes: int | None = None


@dataclass(frozen=True)
class HostGpus:
    """All GPUs of a host. `num_said`: how many NVML says there are; `devices`: those that a program started here sees.

    `kernel`: the PCI addresses at which the kernel shows an NVIDIA GPU, None where it shows none of any kind.
    `trouble`: why NVML says nothing at all; `has_library`: whether NVML is there.
    """

    driver: str | None = None
    driver_cuda: str | None = None
    num_said: int = 0
    gpus: tuple[GpuFacts, ...] = ()
    devices: tuple[Device, ...] = ()
    devices_problem: str | None = None
    kernel: tuple[str, ...] | None = None
    has_library: bool = False
    trouble: str | None = None
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Folder:
    """The folder of the runs as a host sees it. `error`: why nothing could be written there.

    `write_s` is what it took to write `write_bytes` through to the storage.
    """

    path: str
    kind: str | None = None
    source: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    write_bytes: int = 0
    write_s: float = 0.0
    error: str | None = None
    is_missing: bool = False


@dataclass(frozen=True)
class Seen:
    """Hosts whose file in that folder a host did not find."""

    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listening:
    """Where the host waits for the others, and a free port at which ranks could meet."""

    port: int
    meeting_port: int


@dataclass(frozen=True)
class Connection:
    """From a host to another. `address` is the other's, as its name resolves here; `interface` is this host's."""

    peer: str
    address: str | None = None
    interface: str | None = None
    mtu: int | None = None
    speed_mbit_per_s: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Connections:
    """`own_address`: what the host's own name means on itself."""

    connections: tuple[Connection, ...]
    own_address: str | None = None


@dataclass(frozen=True)
class Transfer:
    """`num_bytes` went from one rank to another in `seconds`."""

    source: int
    target: int
    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class RankReport:
    """What one rank of the trial did. `stage` is the last that it reached; `error` why it went no further.

    `device_bytes`: the memory of its GPU, as CUDA says it.
    """

    rank: int
    stage: str
    error: str | None = None
    all_reduce_bytes: int | None = None
    all_reduce_s: float | None = None
    transfers: tuple[Transfer, ...] = ()
    device_bytes: int | None = None


@dataclass(frozen=True)
class RankReports:
    ranks: tuple[RankReport, ...]


@dataclass(frozen=True)
class ClockReading:
    time_s: float
