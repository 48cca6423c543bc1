"""DeepSpeed's own launcher: this host, or several over pdsh."""

from __future__ import annotations

import re

from dist_trainer.cluster.topology import render_include
from dist_trainer.errors import UserError
from dist_trainer.launch.environment import UNSAYABLE, common_env, gpus_of_slots, refuse_users
from dist_trainer.launch.plan import LaunchPlan, LaunchRequest, argument_groups

# pdsh passes the arguments to a shell on the other host; DeepSpeed's quoting is correct for these characters only.
_SAFE_FOR_PDSH = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


def plan_deepspeed(request: LaunchRequest) -> LaunchPlan:
    """Raises UserError for what DeepSpeed's launcher would do wrong; each message says what."""
    if not (request.is_local or request.is_guarded):
        _refuse_what_pdsh_breaks(request)
    around: tuple[str, ...] = ("dist_trainer.launch.launchers.without_gc",) if request.is_guarded else ()
    where = _where(request)
    if request.is_hostfile_marked and "--hostfile" in where:
        around += ("dist_trainer.launch.launchers.unmarked_hostfile",)
    return LaunchPlan(
        launcher="deepspeed",
        command=(
            (request.facts.interpreter, "-m", *around, "deepspeed.launcher.runner", "--log_level", "critical"),
            (*where, "--master_port", str(request.master_port)),
            # The runner and the launch.py that it starts each take the start of an option's name for the option,
            # wherever it stands, until a '--': one for each of them.
            ("--no_local_rank", "--module", "--", "--", request.module, *request.arguments[:1]),
            *argument_groups(request.arguments[1:]),
        ),
        env=common_env(request),
        num_ranks=request.topology.num_ranks,
    )


def _where(request: LaunchRequest) -> tuple[str, ...]:
    if request.hostfile is None or _has_chosen_gpus(request):
        return _where_on_this_host(request)
    words: tuple[str, ...] = ("--hostfile", request.hostfile)
    if request.is_filtered:
        if any(host.user for host in request.topology.hosts):
            # The grammar NODE:SLOTS@NODE:SLOTS has no room for a user, and nodes are named as in the hostfile.
            refuse_users(request, whose="DeepSpeed's --include", why="takes '@' for the end of a host")
        words += ("--include", render_include(request.topology))
    if request.is_local:
        # With a hostfile DeepSpeed tries ssh even to localhost.
        return (*words, "--no_ssh_check", "--master_addr", "127.0.0.1")
    if len(request.topology.hosts) == 1:
        # Without --force_multi the ranks of a single remote host would be started on this host.
        words += ("--force_multi",)
    return words


def _has_chosen_gpus(request: LaunchRequest) -> bool:
    """Whether all ranks are to run on GPUs of this host that the user has chosen. Of a hostfile's slots 0, 1, ...
    DeepSpeed would make the host's GPUs 0, 1, ... instead.
    """
    facts = request.facts
    is_one_host = request.is_local and len(request.topology.hosts) == 1
    return is_one_host and facts.num_gpus > 0 and bool(facts.environ.get("CUDA_VISIBLE_DEVICES"))


def _where_on_this_host(request: LaunchRequest) -> tuple[str, ...]:
    (host,) = request.topology.hosts
    visible = request.facts.environ.get("CUDA_VISIBLE_DEVICES")
    if request.facts.num_gpus == 0 or (host.has_first_slots and not visible):
        return ("--num_accelerators", str(host.num_slots))
    # --num_accelerators would overwrite CUDA_VISIBLE_DEVICES with 0,1,...
    chosen = gpus_of_slots(request)
    if not all(device.isdigit() for device in chosen):
        raise UserError(
            "DeepSpeed's launcher knows GPUs by index only.",
            where="the environment",
            key="CUDA_VISIBLE_DEVICES",
            found=visible,
            hint="write the indices, or use --launcher torchrun",
        )
    return ("--include", f"localhost:{','.join(chosen)}")


def _refuse_what_pdsh_breaks(request: LaunchRequest) -> None:
    if not request.topology.is_even:
        raise UserError(
            "DeepSpeed's launcher gives wrong local ranks when hosts have different numbers of slots.",
            where=request.hostfile,
            found=render_include(request.topology),
            hint=UNSAYABLE + "make them equal with --nproc-per-node, --include or --exclude, or use --launcher mpirun",
        )
    for argument in request.arguments:
        if _SAFE_FOR_PDSH.fullmatch(argument) is None:
            raise UserError(
                "This argument would not reach other hosts as it stands: DeepSpeed passes it through a shell there.",
                where="the command line",
                found=argument,
                hint=UNSAYABLE + "write it into the run file or the DeepSpeed JSON, or use --launcher mpirun",
            )
