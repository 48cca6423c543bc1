"""Which ranks have reported, how each ended, and which failure came first. Time is an argument, so it can be tested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dist_trainer.errors import EXIT_HOST_LOST
from dist_trainer.launch.guards.protocol import BEAT_S, SILENCE_S
from dist_trainer.launch.processes import signal_name

# After a first failure, how long to wait for news of an earlier one.
SETTLE_S = 0.3
_MAX_NUM_NAMED = 8


@dataclass
class Member:
    """One rank, as reported by its guard. `status` is None while the rank runs."""

    rank: int
    host: str
    heard_s: float
    status: int | None = None
    is_connected: bool = True
    is_gone: bool = False


@dataclass(frozen=True)
class Trouble:
    """The first failure. `cause`: what the rank itself said; None if it said nothing, and then `lines` are the last
    that it printed. `is_stop`: no failure, but a signal to a rank, at which all ranks stopped in good order.
    """

    message: str
    status: int
    rank: int | None = None
    lines: tuple[str, ...] = ()
    cause: str | None = None
    host: str | None = None
    is_stop: bool = False


@dataclass(frozen=True)
class _Candidate:
    """A possible first failure. `is_told`: the rank's guard had been told to end it. `may_be_echo`: by its own word the
    rank may only have noticed another rank's failure.
    """

    time_s: float
    trouble: Trouble
    is_told: bool = False
    may_be_echo: bool = False

    @property
    def order(self) -> tuple[bool, bool, bool, float]:
        # A rank that was told to end but gives a cause of its own did fail by itself.
        has_own = self.trouble.cause is not None and not self.may_be_echo and not self.trouble.is_stop
        return self.is_told and not has_own, self.may_be_echo, self.trouble.is_stop, self.time_s


@dataclass
class Membership:
    """`num_ranks` ranks; `expected_hosts`: the host of each rank, empty if not known in advance."""

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
        is_stop: bool = False,
        doing: str | None = None,
    ) -> None:
        """The rank has ended with this status (128 + N: by signal N). `is_echo`: its guard had been told to end it.
        `why`: what its host knows of a kill (out of memory), `cause`: what the rank itself said, `doing`: where it was,
        by its black box.
        """
        member = self.members[rank]
        member.status, member.heard_s = status, now_s
        if status == 0:
            return
        what = f"was killed by {signal_name(status - 128)}" if status > 128 else f"ended with status {status}"
        message = f"rank {rank} on {member.host} {what}" + (f" {doing}" if doing else "") + (f" ({why})" if why else "")
        trouble = Trouble(message, status, rank, tuple(lines), cause, member.host, is_stop)
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
        """Hosts with ranks that still run but were not heard for `limit_s`, and these ranks."""
        found: dict[str, list[int]] = {}
        for member in self.members.values():
            if member.status is None and now_s - member.heard_s > limit_s:
                found.setdefault(member.host, []).append(member.rank)
        return found

    def missing_hosts(self) -> dict[str, list[int]]:
        """Hosts with ranks that never reported, and these ranks."""
        found: dict[str, list[int]] = {}
        for rank in range(self.num_ranks):
            if rank not in self.members:
                host = self.expected_hosts[rank] if self.expected_hosts else "a host unknown"
                found.setdefault(host, []).append(rank)
        return found

    def first_trouble(self, now_s: float) -> Trouble | None:
        """The first failure; None while there is none, or while an earlier one may still be reported."""
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
        """Prefers rank 0's identical failure: if both ranks made the same mistake, it does not matter which was first.
        The status stays that of the first, because rank 0 may have been told to end after it had given its cause.
        """
        if trouble.cause is None:
            return trouble
        others = (one.trouble for one in self._candidates)
        same = (other for other in others if other.rank == 0 and other.cause == trouble.cause)
        return next((replace(other, status=trouble.status) for other in same), trouble)

    def _whole_host(self, trouble: Trouble) -> Trouble:
        """The failure of the whole host, if all of its ranks are gone as this one is; else the failure itself."""
        member = self.members.get(-1 if trouble.rank is None else trouble.rank)
        if member is None or not member.is_gone:
            return trouble
        there = [one for one in self.members.values() if one.host == member.host]
        if self.num_ranks == 1 or not all(one.is_gone for one in there):
            return trouble
        where = name_hosts({member.host: [one.rank for one in there]})
        return Trouble(f"{where} is gone: every connection to it was closed at once", EXIT_HOST_LOST)


def name_hosts(ranks_by_host: Mapping[str, Sequence[int]]) -> str:
    """{'n1': [0, 1], 'n2': [2]} -> 'n1 (ranks 0-1); n2 (rank 2)'. Of very many hosts only the first are named."""
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
