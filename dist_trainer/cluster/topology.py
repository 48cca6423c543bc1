"""Which hosts take part in a run, and which of their slots."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dist_trainer.errors import UserError
from dist_trainer.units import counted

_LOOPBACK_NAMES = ("localhost", "127.0.0.1")
# An error message has to stay readable: of a thousand hosts it names a few.
_MAX_NUM_NAMED = 8


@dataclass(frozen=True)
class Host:
    """One host and its slots that are used, in ascending order. A slot is the place of one rank, as a rule a GPU.

    `place`: FILE:LINE of the hostfile's line, None if there is no file; ignored in comparisons. `user`: the name to log
    in with, empty if not given.
    """

    name: str
    slots: tuple[int, ...]
    place: str | None = field(default=None, compare=False)
    user: str = ""

    @property
    def login(self) -> str:
        """The destination for ssh: `user@name`, or `name` alone."""
        return f"{self.user}@{self.name}" if self.user else self.name

    @property
    def num_slots(self) -> int:
        return len(self.slots)

    @property
    def has_first_slots(self) -> bool:
        """Whether the slots are 0 ... num_slots - 1, as `slots=N` means."""
        return self.slots == tuple(range(self.num_slots))


@dataclass(frozen=True)
class Topology:
    """The hosts in order of ranks; each slot is one rank."""

    hosts: tuple[Host, ...]

    @classmethod
    def of_this_host(cls, num_slots: int) -> Topology:
        return cls((Host("localhost", tuple(range(num_slots))),))

    @property
    def num_ranks(self) -> int:
        return sum(host.num_slots for host in self.hosts)

    @property
    def is_even(self) -> bool:
        """Whether every host has the same number of slots."""
        return len({host.num_slots for host in self.hosts}) == 1

    def is_local(self, hostname: str) -> bool:
        """Whether every rank runs on this host, which is called `hostname`."""
        return all(is_own_name(host.name, hostname) for host in self.hosts)

    def first_slots(self, num_slots: int) -> Topology:
        """The first `num_slots` slots of every host. Raises UserError if a host has fewer, and for less than 1."""
        if num_slots < 1:
            raise UserError("A run needs at least one rank a host.", where="--nproc-per-node", found=num_slots)
        for host in self.hosts:
            if num_slots > host.num_slots:
                raise UserError(
                    f"{counted(num_slots, 'rank')} a host are more than the slots of {host.name}.",
                    where="--nproc-per-node",
                    found=num_slots,
                    expected=f"at most {host.num_slots}{_said_at(host)}",
                    hint="ask for fewer ranks, or raise slots= in the hostfile",
                )
        return Topology(tuple(replace(host, slots=host.slots[:num_slots]) for host in self.hosts))

    def filter(self, *, include: str = "", exclude: str = "") -> Topology:
        """The part that DeepSpeed's `--include` or `--exclude` selects, in the order of this topology.

        The grammar is NODE[:SLOT,SLOT...][@NODE...]; NODE alone means all of its slots. Raises UserError if both are
        given, if a node or slot does not exist, and if nothing is left.
        """
        if include and exclude:
            raise UserError(
                "--include and --exclude cannot be used together.",
                where="--exclude",
                found=exclude,
                hint="say it all with one of them",
            )
        if include:
            named = self._named_slots(include, "--include")
            kept = [replace(host, slots=named.get(host.name, ())) for host in self.hosts]
        elif exclude:
            named = self._named_slots(exclude, "--exclude")
            kept = [
                replace(host, slots=tuple(slot for slot in host.slots if slot not in named.get(host.name, ())))
                for host in self.hosts
            ]
        else:
            return self
        hosts = tuple(host for host in kept if host.slots)
        if not hosts:
            raise UserError(
                "No slot is left to run on.", where="--include" if include else "--exclude", found=include or exclude
            )
        return Topology(hosts)

    def _named_slots(self, text: str, switch: str) -> dict[str, tuple[int, ...]]:
        by_name = {host.name: host for host in self.hosts}
        named: dict[str, tuple[int, ...]] = {}
        for part in text.split("@"):
            name, colon, slot_text = part.partition(":")
            host = by_name.get(name)
            if host is None:
                near = difflib.get_close_matches(name, by_name, n=1)
                raise UserError(
                    f"There is no host {name!r}.",
                    where=switch,
                    found=text,
                    expected=f"of {_named(by_name)}",
                    hint=f"did you mean {near[0]!r}?" if near else None,
                )
            if name in named:
                raise UserError(
                    f"The host {name} is named twice.", where=switch, found=text, hint="write NODE:SLOT,SLOT once"
                )
            named[name] = _parse_slots(slot_text, text, switch) if colon else host.slots
            for slot in named[name]:
                if slot not in host.slots:
                    raise UserError(
                        f"The host {name} has no slot {slot}.",
                        where=switch,
                        found=text,
                        expected=f"of {_named(map(str, host.slots))}{_said_at(host)}",
                    )
        return named


def is_own_name(name: str, hostname: str) -> bool:
    """Whether `name` or user@name, used on the host called `hostname`, means that host itself."""
    return name.rpartition("@")[2] in {*_LOOPBACK_NAMES, hostname, hostname.split(".")[0]}


def render_include(topology: Topology) -> str:
    """The topology in the grammar of `--include`: 'node1:0,1@node2:0'."""
    return "@".join(f"{host.name}:{','.join(map(str, host.slots))}" for host in topology.hosts)


def _named(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - _MAX_NUM_NAMED} more" if len(known) > _MAX_NUM_NAMED else ""
    return ", ".join(known[:_MAX_NUM_NAMED]) + more


def _said_at(host: Host) -> str:
    return f" ({host.place})" if host.place else ""


def _parse_slots(slot_text: str, text: str, switch: str) -> tuple[int, ...]:
    parts = slot_text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise UserError(
            "The slots of a host are whole numbers.", where=switch, found=text, expected="a form like node1:0,1@node2"
        )
    return tuple(sorted({int(part) for part in parts}))
