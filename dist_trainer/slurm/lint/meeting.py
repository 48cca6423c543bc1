"""Rules about the ranks' rendezvous."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dist_trainer.cluster.rank import FIRST_PORT, NUM_PORTS
from dist_trainer.slurm.lint.batch_file import BatchFile
from dist_trainer.slurm.lint.problem import Problem
from dist_trainer.slurm.lint.steps import node_launcher, num_nodes
from dist_trainer.units import whole_number

_PLACE = r"(?:MASTER_ADDR=|--master[-_]addr[= ]|--main[-_]process[-_]ip[= ]|--rdzv[-_]endpoint[= ])"
_LOOPBACK = re.compile(_PLACE + r"[\"']?(?:localhost|127\.0\.0\.1|::1|\[::1\])(?![\w.-])")
_WHERE_SRUN_IS = re.compile(_PLACE + r"\S*SLURM_LAUNCH_NODE_IPADDR")
_PORT = re.compile(
    r"(?:MASTER_PORT=|--(?:master|main[-_]process)[-_]port[= ]|--rdzv[-_]endpoint[= ]\S*:)[\"']?([0-9]{2,5})(?![0-9$])"
)
# The nodes of torchrun: a number, a range such as 1:4, or a variable.
_NUM_NODES = re.compile(r"--nnodes[= ][\"']?([0-9]{1,9}(?::[0-9]{1,9})?|\$\{?\w+\}?)[\"']?")
_RENDEZVOUS = re.compile(r"--(?:rdzv[-_]endpoint|master[-_]addr)[= ]")
_TORCHRUN_VARIABLE = re.compile(r"\bPET_(?:RDZV_ENDPOINT|MASTER_ADDR)=")
_UNKNOWN_WORDS = re.compile(r"(?<!\S)[\"']?\$[\w{@*]")
_FIRST_HOST = 'use $(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'


def local_master(file: BatchFile) -> Iterator[Problem]:
    if num_nodes(file) == 1:
        return
    for line in file.lines:
        if _LOOPBACK.search(line.text):
            yield Problem(
                line.number, "the ranks of each node would look for the others on their own node", _FIRST_HOST
            )
        elif _WHERE_SRUN_IS.search(line.text):
            yield Problem(
                line.number,
                "SLURM_LAUNCH_NODE_IPADDR is the host where srun was called, which may have no rank",
                _FIRST_HOST,
            )


def no_rendezvous(file: BatchFile) -> Iterator[Problem]:
    """torchrun does not read MASTER_ADDR: its default is its own host. Its variables are called PET_..."""
    if any(_TORCHRUN_VARIABLE.search(line.text) for line in file.lines):
        return
    for command in file.commands:
        match = _NUM_NODES.search(command.text)
        if node_launcher(command) != "torchrun" or match is None or _RENDEZVOUS.search(command.text):
            continue
        most = whole_number(match.group(1).rpartition(":")[2])
        if most is None and match.group(1).startswith("$"):
            most = num_nodes(file)
        # What stands in a variable that is not known may name the place.
        if most is not None and most > 1 and not _UNKNOWN_WORDS.search(_NUM_NODES.sub("", command.text)):
            yield Problem(
                command.line,
                f"torchrun on {most} nodes is not told where they meet: each waits on its own node for the others",
                'add --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT": the first node and a port',
            )


def fixed_port(file: BatchFile) -> Iterator[Problem]:
    exclusive = file.option("exclusive")
    if exclusive is not None and not exclusive.value:
        # No other job can be on its nodes; with --exclusive=user another of the same user's can.
        return
    for line in file.lines:
        match = _PORT.search(line.text)
        if match is not None:
            yield Problem(
                line.number,
                f"two jobs on one node would both use port {match.group(1)}",
                f"derive it from the job: $(({FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS}))",
            )
