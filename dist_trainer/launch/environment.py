"""Variables that a launch needs and people forget. Each function says what the user can override."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dist_trainer.errors import UserError
from dist_trainer.launch.plan import LaunchRequest

# Passed on if set here: a rank on another host needs them to find the same programs and libraries.
SEARCH_PATHS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
# The beginning of a hint where guards could do what the plain command of --dry-run cannot express.
UNSAYABLE = "leave --dry-run out, for `launch` itself can start these; as a plain command, "
# Variables of this process's environment with these prefixes also go to ranks on other hosts.
_PREFIXES = ("NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "TORCHINDUCTOR_", "DS_", "UCX_", "MLFLOW_")
# DeepSpeed writes these variables with their values into the command line of pdsh and ssh, which everybody can read.
_SHOWN_BY_PDSH = ("MLFLOW", "UCX", "MV2")


def common_env(request: LaunchRequest) -> tuple[tuple[str, str], ...]:
    """OMP_NUM_THREADS, an equal share of the cores; DS_ACCELERATOR if there is no GPU; and what the user named.

    The first two follow from this host's hardware, so they are left out for ranks on other hosts.
    """
    facts = request.facts
    threads, accelerator = None, None
    if request.is_local:
        threads = max(1, facts.num_cores // request.topology.num_ranks)
        accelerator = "cpu" if facts.num_gpus == 0 else None
    return kept_env(request, threads, accelerator)


def kept_env(
    request: LaunchRequest, num_threads: int | None, accelerator: str | None = None
) -> tuple[tuple[str, str], ...]:
    """OMP_NUM_THREADS and DS_ACCELERATOR if set in this environment, else as given; and what the user named."""
    environ = request.facts.environ
    threads = environ.get("OMP_NUM_THREADS") or (str(num_threads) if num_threads else None)
    pairs = (("OMP_NUM_THREADS", threads), ("DS_ACCELERATOR", environ.get("DS_ACCELERATOR") or accelerator))
    return (*((name, value) for name, value in pairs if value), *request.env)


def mpi_env(request: LaunchRequest) -> tuple[tuple[str, str], ...]:
    """What the ranks of an mpirun need besides its own variables: threads, rendezvous, this host's chosen GPUs."""
    return (
        *common_env(request),
        ("MASTER_ADDR", "127.0.0.1" if request.is_local else request.topology.hosts[0].name),
        ("MASTER_PORT", str(request.master_port)),
        *(visible_gpus_env(request) if request.is_local and len(request.topology.hosts) == 1 else ()),
    )


def visible_gpus_env(request: LaunchRequest) -> tuple[tuple[str, str], ...]:
    """CUDA_VISIBLE_DEVICES, for a launcher on this host that cannot leave slots out itself; empty if not needed."""
    (host,) = request.topology.hosts
    if request.facts.num_gpus == 0 or host.has_first_slots:
        return ()
    return (("CUDA_VISIBLE_DEVICES", ",".join(gpus_of_slots(request))),)


def gpus_of_slots(request: LaunchRequest) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs of this host's chosen slots: slot 0 is the first that is visible here.

    Raises UserError where a slot has none.
    """
    (host,) = request.topology.hosts
    visible = request.facts.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(request.facts.num_gpus)]
    if host.slots[-1] >= len(devices):
        raise UserError(
            f"There is no GPU for slot {host.slots[-1]}.",
            where="--include or --exclude",
            found=len(devices),
            expected=f"{host.slots[-1] + 1} visible GPUs",
        )
    return [devices[slot] for slot in host.slots]


def refuse_stray_rank(environ: Mapping[str, str], *, whose: str, again: str) -> None:
    """Raises UserError if RANK or WORLD_SIZE is set: every rank would inherit it and take it for its own.

    `whose` ranks they are, and what to do to start `again`, are words for the message.
    """
    for name in ("RANK", "WORLD_SIZE"):
        if environ.get(name):
            raise UserError(
                f"{name} is set here and would reach every rank {whose}.",
                where="the environment",
                key=name,
                found=environ[name],
                hint=f"unset RANK WORLD_SIZE LOCAL_RANK, then {again} again",
            )


def refuse_left_out_slots(request: LaunchRequest) -> None:
    """Raises UserError for a host on which mpirun would use other slots than those that were chosen."""
    for host in request.topology.hosts:
        if not host.has_first_slots:
            raise UserError(
                f"mpirun cannot choose the slots {', '.join(map(str, host.slots))} of {host.name}.",
                where="--include or --exclude",
                hint=UNSAYABLE + "use --launcher deepspeed, or --nproc-per-node for the first slots of each host",
            )


def refuse_users(request: LaunchRequest, *, whose: str = "mpirun", why: str = "takes no user before a host") -> None:
    """Raises UserError for a host that the hostfile has a user for."""
    for host in request.topology.hosts:
        if host.user:
            raise UserError(
                f"{whose} {why}.",
                where=host.place,
                found=host.login,
                expected=host.name,
                hint=f"write it so, and the user into ~/.ssh/config: 'Host {host.name}', then 'User {host.user}'",
            )


def named_env(words: Sequence[str], environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """From --env NAME (its value here) or NAME=VALUE. Raises UserError for an invalid name, or one that is not set."""
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name.isidentifier():
            raise UserError("This is not a variable's name.", where="--env", found=word, expected="NAME or NAME=VALUE")
        if not equals and name not in environ:
            raise UserError(
                f"{name} is not set here.", where="--env", found=word, hint=f"set it, or write --env {name}=VALUE"
            )
        pairs[name] = value if equals else environ[name]
    return tuple(pairs.items())


def without_what_pdsh_shows(environ: Mapping[str, str]) -> dict[str, str]:
    """For DeepSpeed's runner over several hosts: without variables that pdsh would show; ranks get them from guards."""
    return {name: value for name, value in environ.items() if not name.startswith(_SHOWN_BY_PDSH)}


def forwarded_env(request: LaunchRequest) -> dict[str, str]:
    """The part of this process's environment that goes to ranks on other hosts, besides what `--env` names."""
    environ = request.facts.environ
    return {
        name: value
        for name, value in environ.items()
        if value and (name in (*SEARCH_PATHS, "VIRTUAL_ENV") or name.startswith(_PREFIXES))
    }
