"""Which ranks have reported, how each ended, and which trouble came first. Told the time, so that it can be tested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dist_trainer.errors import EXIT_HOST_LOST
from dist_trainer.launch.guards.protocol import BEAT_S, SILENCE_S
from dist_trainer.launch.processes import signal_name

# So long the first trouble waits for another that began earlier and is heard of later.
SETTLE_S = 0.3
_MAX_NUM_NAMED = 8


@dataclass
class Member:
    """One rank, as its guard tells of it. `status` is None while it runs."""

    rank: int
    host: str
    heard_s: float
    status: int | None = None
    is_connected: bool = True
    is_gone: bool = False


@dataclass(frozen=True)
class Trouble:
    """What went wrong first. `cause` is what the rank itself has said why it ended; None where it said nothing, and
    then `lines` are the last ones that it printed.
    """

    message: str
    status: int
    rank: int | None = None
    lines: tuple[str, ...] = ()
    cause: str | None = None
    host: str | None = None


@dataclass(frozen=True)
class _Candidate:
    """`is_told`: others had told the rank's guard to end it. `may_be_echo`: the rank says that it may only have noticed
    what happened to another.
    """

    time_s: float
    trouble: Trouble
    is_told: bool = False
    may_be_echo: bool = False

    @property
    def order(self) -> tuple[bool, bool, float]:
        # A rank that was told to end, and says a reason of its own all the same, had one.
        has_own = self.trouble.cause is not None and not self.may_be_echo
        return self.is_told and not has_own, self.may_be_echo, self.time_s


@dataclass
class Membership:
    """`num_ranks` ranks, which `expected_hosts` (host by rank, empty where nobody knows) are to run on."""

    num_ranks: int
    expected_hosts: tuple[str, ...] = ()
    members: dict[int, Member] = field(default_factory=dict)
    _candidates: list[_Candidate] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return len(self.members) == self.num_ranks

    @property
    def all_ended_well(self) -> bool:
        return self.is_complete and all(member.status == 0 for member in self.members.values())

    def joined(self, rank: int, host: str, now_s: float) -> None:
        self.members[rank] = Member(rank, host, now_s)

    def heard(self, rank: int, now_s: float) -> None:
        self.members[rank].heard_s = now_s

    def ended(
        self,
        rank: int,
        status: int,
        now_s: float,
        *,
        lines: Iterable[str] = (),
        is_echo: bool = False,
        why: str | None = None,
        cause: str | None = None,
        may_be_echo: bool = False,
    ) -> None:
        """The rank has ended with this status, 128 + N by signal N. `is_echo`: others had told its guard to end it.
        `why` is what its host knows of a signal, `cause` what the rank itself said.
        """
        member = self.members[rank]
        member.status, member.heard_s = status, now_s
        if status == 0:
            return
        what = f"was killed by {signal_name(status - 128)}" if status > 128 else f"ended with status {status}"
        message = f"rank {rank} on {member.host} {what}" + (f" ({why})" if why else "")
        trouble = Trouble(message, status, rank, tuple(lines), cause, member.host)
        self._candidates.append(_Candidate(now_s, trouble, is_told=is_echo, may_be_echo=may_be_echo))

    def disconnected(self, rank: int, now_s: float) -> None:
        """The guard's connection was closed."""
        member = self.members[rank]
        member.is_connected = False
        if member.status is None:
            member.status, member.is_gone = 128 + 9, True
            message = f"rank {rank} on {member.host} is gone: the connection to its guard was closed"
            self._candidates.append(_Candidate(now_s, Trouble(message, member.status, rank)))

    def silent_hosts(self, now_s: float, limit_s: float) -> dict[str, list[int]]:
        """Hosts with the ranks on them of which nothing was heard for the limit."""
        found: dict[str, list[int]] = {}
        for member in self.members.values():
            if member.status is None and now_s - member.heard_s > limit_s:
                found.setdefault(member.host, []).append(member.rank)
        return found

    def missing_hosts(self) -> dict[str, list[int]]:
        """Hosts with the ranks on them that never reported."""
        found: dict[str, list[int]] = {}
        for rank in range(self.num_ranks):
            if rank not in self.members:
                host = self.expected_hosts[rank] if self.expected_hosts else "a host unknown"
                found.setdefault(host, []).append(rank)
        return found

    def first_trouble(self, now_s: float) -> Trouble | None:
        """What went wrong first; None while nothing has, or while something earlier may still be heard of."""
        silent = self.silent_hosts(now_s, SILENCE_S)
        if silent:
            where = name_hosts(silent)
            return Trouble(f"nothing was heard for {SILENCE_S:.0f} s from {where}: down, or cut off", EXIT_HOST_LOST)
        if not self._candidates:
            return None
        first = min(self._candidates, key=lambda one: one.order)
        if now_s - first.time_s < SETTLE_S or self.silent_hosts(now_s, 3 * BEAT_S):
            return None
        return self._whole_host(self._of_all(first.trouble))

    def _of_all(self, trouble: Trouble) -> Trouble:
        """The same as rank 0's, where both made the same mistake: which of them was first says nothing then. Its status
        stays, for rank 0 may have been told to end after it had said why it would.
        """
        if trouble.cause is None:
            return trouble
        others = (one.trouble for one in self._candidates)
        same = (other for other in others if other.rank == 0 and other.cause == trouble.cause)
        return next((replace(other, status=trouble.status) for other in same), trouble)

    def _whole_host(self, trouble: Trouble) -> Trouble:
        """The same trouble, or that of the host where all ranks are gone in the way this one is."""
        member = self.members.get(-1 if trouble.rank is None else trouble.rank)
        if member is None or not member.is_gone:
            return trouble
        there = [one for one in self.members.values() if one.host == member.host]
        if self.num_ranks == 1 or not all(one.is_gone for one in there):
            return trouble
        where = name_hosts({member.host: [one.rank for one in there]})
        return Trouble(f"{where} is gone: every connection to it was closed at once", EXIT_HOST_LOST)


def name_hosts(ranks_by_host: Mapping[str, Sequence[int]]) -> str:
    """{'n1': [0, 1], 'n2': [2]} -> 'n1 (ranks 0-1); n2 (rank 2)'. Of very many hosts the first are named."""
    named = list(ranks_by_host.items())[:_MAX_NUM_NAMED]
    texts = [f"{host} (rank{'s' * (len(ranks) > 1)} {name_ranks(ranks)})" for host, ranks in named]
    more = len(ranks_by_host) - len(named)
    return "; ".join(texts) + (f"; and {more} more hosts" if more else "")


def name_ranks(ranks: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> '0-2, 5'."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
