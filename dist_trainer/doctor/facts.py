"""What hosts found out, as plain values that can be sent as JSON. None: it could not be found out."""

from __future__ import annotations

from dataclasses import dataclass

UNLIMITED = 2**63 - 1


@dataclass(frozen=True)
class Revision:
    """The project's code on a host. `digest`: of the bytes of its files. The rest is git's, None outside a checkout."""

    digest: str
    head: str | None = None
    is_dirty: bool | None = None


@dataclass(frozen=True)
class Port:
    """A port of the host. `holder`: the process that listens on it, None if this user may not know."""

    number: int
    is_free: bool
    holder: str | None = None


@dataclass(frozen=True)
class NumaNode:
    """`num_cpus`: those of the node that a process may use."""

    number: int
    num_cpus: int


@dataclass(frozen=True)
class Cpus:
    """`num_usable`: in this process's affinity mask. `quota`: a container's or job's limit, in CPUs."""

    num_logical: int
    num_usable: int
    quota: float | None = None
    numa: tuple[NumaNode, ...] = ()


@dataclass(frozen=True)
class MemoryFacts:
    """`limit_bytes`: what a container or a job allows all of its processes together."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None = None


@dataclass(frozen=True)
class ResourceLimits:
    """The soft limits (ulimit) of a process started the way ranks are; UNLIMITED for no limit."""

    open_files: int
    locked_memory_bytes: int


@dataclass(frozen=True)
class SharedMemory:
    """/dev/shm."""

    total_bytes: int
    free_bytes: int
    is_writable: bool


@dataclass(frozen=True)
class SystemFacts:
    """A host apart from its GPUs, folder and network. `packages`: name -> version, None if not installed."""

    hostname: str
    python: str
    interpreter: str
    packages: dict[str, str | None]
    torch_cuda: str | None
    revision: Revision
    kernel: str
    cpus: Cpus | None = None
    memory: MemoryFacts | None = None
    limits: ResourceLimits | None = None
    shared_memory: SharedMemory | None = None
    infiniband: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a GPU. `name` is None if the process is not visible from here."""

    pid: int
    name: str | None
    used_bytes: int | None


@dataclass(frozen=True)
class GpuFacts:
    """One GPU as NVML reports it. `used_bytes` is of all processes. `num_instances`: how many MIG instances it has."""

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
    """What a rank sees as one GPU: a whole GPU or a MIG instance."""

    uuid: str
    name: str
    total_bytes: int | None = None
    used_bytes: int | None = None


@dataclass(frozen=True)
class HostGpus:
    """All GPUs of a host. `num_said`: how many NVML counts. `devices`: those that a program started here sees.

    `kernel`: PCI addresses of the NVIDIA GPUs that the kernel lists; None if it lists no PCI devices at all.
    `trouble`: why NVML reports nothing; `has_library`: whether NVML is installed.
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
    """The runs' folder as seen from a host. `error`: why it could not be written.

    `write_s`: seconds it took to write and sync `write_bytes`.
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
    """The hosts whose file in the folder was not found on this host."""

    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listening:
    """The port on which the host waits for the others, and a free port for the ranks' rendezvous."""

    port: int
    meeting_port: int


@dataclass(frozen=True)
class Connection:
    """From this host to `peer`. `address` is the peer's, as its name resolves here; `interface` is this host's."""

    peer: str
    address: str | None = None
    interface: str | None = None
    mtu: int | None = None
    speed_mbit_per_s: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Connections:
    """`own_address`: what the host's own name resolves to on the host itself."""

    connections: tuple[Connection, ...]
    own_address: str | None = None


@dataclass(frozen=True)
class Transfer:
    """A transfer of `num_bytes` from rank `source` to rank `target`, in `seconds`."""

    source: int
    target: int
    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class RankReport:
    """One rank of the trial. `stage`: the last one that it reached; `error`: why it got no further.

    `device_bytes`: its GPU's memory, as CUDA reports it.
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
