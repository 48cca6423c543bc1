"""Executes a launch: from a plan to an exit status."""

from __future__ import annotations

import importlib.util
import math
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from dist_trainer.cluster.topology import is_own_name
from dist_trainer.disk import writing
from dist_trainer.errors import EXIT_FAILURE, EXIT_OK, UserError
from dist_trainer.launch.environment import without_what_pdsh_shows
from dist_trainer.launch.guards.coordinator import Coordinator
from dist_trainer.launch.guards.guarding import guarded, job_for, membership_for
from dist_trainer.launch.guards.membership import Membership, Trouble
from dist_trainer.launch.guards.protocol import FROM_SRUN
from dist_trainer.launch.hosts.network import address_towards
from dist_trainer.launch.hosts.run_secret import RunSecret, is_secret_id, new_secret, secret_by_hand
from dist_trainer.launch.launch_record import write_launch_record
from dist_trainer.launch.launchers.choose import build_plan
from dist_trainer.launch.open_files import allow_open_files
from dist_trainer.launch.outcome import RunRecord, is_at_its_end, say, say_interrupted, say_trouble
from dist_trainer.launch.plan import LaunchPlan, LaunchRequest, Rendezvous
from dist_trainer.launch.relay import relayed
from dist_trainer.launch.supervise import FAILURE_GRACE_S, GRACE_S, Ending, supervise
from dist_trainer.units import counted

START_LIMIT_S = 300.0
_BACKLOG = 4096
_CLOSING_S = 4.0
_STOP_MARGIN_S = 5.0
_OTHER_OPEN_FILES = 256
_NUM_LAUNCHER_LINES = 10
_PYTHON_MODULES = {"torchrun": "torch", "deepspeed": "deepspeed"}
_DEBIAN_PACKAGES = {"mpirun": "openmpi-bin", "srun": "slurm-client"}


@dataclass(frozen=True)
class Prepared:
    """A run that may start: its folder, which exists, and the complete arguments of `train`. `stop_within_s`: how long
    its ranks may take to save and end, once told to; None if they are another program's.
    """

    run_dir: Path
    arguments: tuple[str, ...]
    stop_within_s: float | None = None


def run_request(
    launcher: str,
    request: LaunchRequest,
    prepare: Callable[[], Prepared],
    *,
    secret: RunSecret,
    is_port_fixed: bool = False,
    start_limit_s: float = START_LIMIT_S,
) -> int:
    """Starts the guards, prepares the run, lets the guards start the ranks, and returns the ranks' status.

    If all ranks are on this host, `prepare` runs while the launcher starts, so that its time costs the user nothing; if
    it raises, nothing is left running. With other hosts nothing is started before it has returned; a `secret` in a file
    has then been brought to them.
    """
    membership = membership_for(launcher, request)
    with _taken_back(secret, membership, request):
        return _run(
            launcher, request, prepare, secret, membership, is_port_fixed=is_port_fixed, start_limit_s=start_limit_s
        )


@contextmanager
def _taken_back(secret: RunSecret, membership: Membership, request: LaunchRequest) -> Iterator[None]:
    """Guards remove the secret's file of their host; on hosts to which some guard never came, this removes it."""
    try:
        yield
    finally:
        missing = membership.missing_hosts()
        if secret.is_file and missing:
            from dist_trainer.launch.hosts.reach import take_back_secret

            logins = {host.name: host.login for host in request.topology.hosts}
            take_back_secret([logins.get(name, name) for name in missing], secret)


def _run(
    launcher: str,
    request: LaunchRequest,
    prepare: Callable[[], Prepared],
    secret: RunSecret,
    membership: Membership,
    *,
    is_port_fixed: bool,
    start_limit_s: float,
) -> int:
    prepared = None if request.is_local else prepare()
    refusal: BaseException | None = None
    record: RunRecord | None = None
    allow_connections(request.num_ranks)
    listener, host = _listen(launcher, request)
    address = f"{host}:{listener.getsockname()[1]}"
    plan = build_plan(launcher, guarded(request, address, secret))
    launcher_log = None if prepared is None else prepared.run_dir / "logs" / "launcher.log"

    def hand_out() -> None:
        """Prepares the run, records in RUN_DIR/resolved/launch.json what is started, and lets the guards start it."""
        nonlocal refusal, record
        try:
            ready = prepared or prepare()
        except (UserError, KeyboardInterrupt) as error:
            if launcher != "srun":
                raise
            # A killed srun leaves its step for SLURM to end, which takes time; guards without a job end it at once.
            refusal = error
            coordinator.end()
            return
        asked = replace(request, arguments=ready.arguments)
        job = job_for(
            launcher, asked, plan, ready.run_dir, is_port_fixed=is_port_fixed, grace_s=grace_of(ready.stop_within_s)
        )
        write_launch_record(launcher, asked, job, ready.run_dir, start_time_s=time.time())
        record = RunRecord(ready.run_dir)
        # Our output so far has to appear before that of the ranks.
        sys.stdout.flush()
        coordinator.hand_out(job)

    with (
        Coordinator(
            listener,
            secret.value,
            membership,
            start_limit_s=start_limit_s,
            say=say,
            # With a rendezvous rank 0 is on the endpoint's host, this one; else launcher or hostfile give the order.
            first_host=request.facts.hostname if request.rendezvous else None,
        ) as coordinator,
        _outputs(launcher_log) as (output, errors),
    ):
        ending = supervise(
            plan.argv,
            _launcher_env(request, plan, secret),
            guards=coordinator,
            output=output,
            errors=errors,
            meanwhile=hand_out,
        )
        # Another Ctrl-C now has nothing left to stop; it must not keep us from reporting the end.
        with suppress(KeyboardInterrupt):
            coordinator.end()
            coordinator.close(FAILURE_GRACE_S + _CLOSING_S)
    if refusal is not None:
        raise refusal
    return _status(launcher, ending, coordinator, launcher_log, record, is_local=request.is_local)


def allow_connections(num_ranks: int) -> None:
    """Raises the limit of open files to one connection per rank. Raises UserError if the system does not allow it."""
    needed = num_ranks + _OTHER_OPEN_FILES

    def refusal(hard: int) -> UserError:
        return UserError(
            f"{counted(num_ranks, 'rank')} need as many connections to this process, which may not have so many open.",
            where="ulimit -Hn",
            found=hard,
            expected=f"at least {needed}",
            hint="have the limit raised on this host, or submit slurm/many-nodes-srun.sbatch, which needs none",
        )

    allow_open_files(needed, refusal)


def _listen_beside(meeting: Rendezvous) -> socket.socket:
    """Listens on the port after the rendezvous's, where guards on the other hosts will look for it."""
    try:
        return socket.create_server(("", meeting.port + 1), backlog=_BACKLOG)
    except OSError as error:
        raise UserError(
            f"Port {meeting.port + 1}, where the ranks of the other hosts report, cannot be used.",
            where="--rdzv-endpoint",
            found=f"{meeting.endpoint} ({error.strerror})",
            hint="name another port, the same on every host",
        ) from error


def secret_for(launcher: str, request: LaunchRequest) -> RunSecret:
    """The run's secret, in a variable or a file depending on what starts the guards. Raises UserError."""
    if request.rendezvous is not None:
        if is_secret_id(request.rendezvous.job_id):
            say("--rdzv-id is this run's secret, and other users of this host can read it: ps shows it to them")
        return secret_by_hand(request.rendezvous.job_id, request.facts.environ)
    return new_secret(in_file=not request.is_local and launcher != "srun")


def _launcher_env(request: LaunchRequest, plan: LaunchPlan, secret: RunSecret) -> dict[str, str]:
    environ = dict(request.facts.environ)
    if plan.launcher == "deepspeed" and not request.is_local:
        environ = without_what_pdsh_shows(environ)
    return {**environ, **dict(plan.env), **secret.variables(environ)}


def grace_of(stop_within_s: float | None) -> float:
    """How long ranks get that end by themselves within `stop_within_s` of a signal; None: of another program."""
    return GRACE_S if stop_within_s is None else stop_within_s + _STOP_MARGIN_S


def run_beside(request: LaunchRequest, secret: RunSecret, *, stop_within_s: float | None = None) -> int:
    """Runs this host's ranks of a run whose rendezvous is on another host; their guards get their job from there."""
    meeting = request.rendezvous
    assert meeting is not None
    plan = build_plan("torchrun", guarded(request, f"{meeting.host}:{meeting.port + 1}", secret))
    ending = supervise(plan.argv, _launcher_env(request, plan, secret), grace_s=grace_of(stop_within_s))
    if ending.status and ending.stopped_by is None:
        say(f"this host's ranks ended with status {ending.status}; {meeting.host} says which rank failed first")
    return ending.status


@contextmanager
def _outputs(log: Path | None) -> Iterator[tuple[IO[bytes] | None, IO[bytes] | None]]:
    """Files for the launcher's output and errors; None: this process's own. Over several hosts they go to `log`,
    because the ranks' output comes through their guards.
    """
    if log is None:
        with relayed(1) as output, relayed(2) as errors:
            yield output, errors
        return
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("wb")
    with file:
        yield file, file


def _listen(launcher: str, request: LaunchRequest) -> tuple[socket.socket, str]:
    """A socket for the guards, and this host's address as they see it. Raises UserError if they could not reach it."""
    if request.is_local:
        return socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG), "127.0.0.1"
    if request.rendezvous is not None:
        return _listen_beside(request.rendezvous), request.rendezvous.host
    names = [host.name for host in request.topology.hosts]
    other = next(name for name in names if not is_own_name(name, request.facts.hostname))
    address = address_towards(other)
    if address is None and launcher == "srun":
        # A SLURM node's name need not resolve; but SLURM tells its tasks the address of the host on which srun runs.
        address = FROM_SRUN
    if address is None:
        raise UserError(
            f"The host {other} is not known here, or there is no way to it.",
            where=request.hostfile or "the hosts of the run",
            found=other,
            hint="correct the name, or see that it can be resolved: getent hosts " + other,
        )
    return socket.create_server(("", 0), backlog=_BACKLOG), address


def _status(
    launcher: str,
    ending: Ending,
    coordinator: Coordinator,
    launcher_log: Path | None,
    record: RunRecord | None,
    *,
    is_local: bool,
) -> int:
    """The exit status of the ranks, not of the launcher. If it is not 0, says and records why."""
    membership = coordinator.membership
    if membership.all_ended_well:
        return EXIT_OK
    if ending.stopped_by is not None:
        say_interrupted(ending.stopped_by, record, is_local=is_local)
        return 128 + ending.stopped_by
    trouble = coordinator.trouble or membership.first_trouble(math.inf)
    if trouble is None:
        began = "after some ranks had begun" if membership.members else "without starting a rank"
        said = launcher_log.read_text(errors="replace") if launcher_log else ""
        trouble = Trouble(
            f"{launcher} ended {began}",
            ending.status if 0 < ending.status < 128 else EXIT_FAILURE,
            lines=tuple(said.splitlines()[-_NUM_LAUNCHER_LINES:]),
        )
    if trouble.is_stop:
        say_interrupted(signal.Signals(trouble.status - 128), record, is_local=is_local)
    elif not is_at_its_end(trouble):
        say_trouble(trouble, is_local=is_local)
        if record is not None:
            record.failed(trouble)
    return trouble.status


def require_launcher(launcher: str) -> None:
    """Raises UserError when the launcher is not installed here."""
    module = _PYTHON_MODULES.get(launcher)
    if module is not None:
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"{module} is not installed for this Python.",
                where=sys.executable,
                hint="run ./launch.sh, which makes an environment that has it",
            )
    elif shutil.which(launcher) is None:
        raise UserError(
            f"{launcher} is not installed.",
            where="PATH",
            hint=f"install it (Debian: apt-get install {_DEBIAN_PACKAGES[launcher]}), or use --launcher torchrun",
        )
