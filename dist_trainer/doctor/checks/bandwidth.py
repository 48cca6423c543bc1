"""The trial all-reduce, and links that are slow compared with the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from dist_trainer.doctor.examination import Examination
from dist_trainer.doctor.findings import Finding, Level, grouped
from dist_trainer.units import counted, format_bytes

FAIL_SHARE = 0.25
WARN_SHARE = 0.5
# Slow in any case: about the rate of 1 Gbit/s Ethernet, and of 100 Mbit/s.
WARN_BYTES_PER_S = 100e6
FAIL_BYTES_PER_S = 10e6
_DO = "look at the cable, the switch port and the interface (ethtool, `tc qdisc`), or leave the host out with --exclude"
_DO_ALL = "use a faster network, or settings that communicate less (ZeRO 1, more accumulation)"


@dataclass(frozen=True)
class Link:
    """One direction between two hosts, or between two ranks of one host."""

    source: str
    target: str
    bytes_per_s: float


def check(exam: Examination) -> Iterator[Finding]:
    if exam.trial.why_not is not None:
        answering = any(host.facts for host in exam.hosts)
        is_lack = exam.num_ranks > 1 and answering
        yield Finding("warn" if is_lack else "skip", "all-reduce", f"not tried: {exam.trial.why_not}")
        return
    failed = {
        host.name: "; ".join(
            f"rank {rank.rank} at {rank.stage}: {rank.error}" for rank in host.ranks.ranks if rank.error
        )
        for host in exam.hosts
        if host.ranks and any(rank.error for rank in host.ranks.ranks)
    }
    yield from grouped(
        "fail", "all-reduce", failed, "run it by hand: NCCL_DEBUG=INFO or TORCH_DISTRIBUTED_DEBUG=DETAIL"
    )
    yield from _all_reduce(exam)
    yield from judge_links(links_of(exam))


def links_of(exam: Examination) -> list[Link]:
    """The links between hosts, each at the rate of its slowest pair of ranks; on a single host, between its ranks."""
    places = places_of(exam.trial.hosts)
    speeds: dict[tuple[str, str], float] = {}
    for host in exam.hosts:
        for rank in host.ranks.ranks if host.ranks else ():
            for one in rank.transfers:
                key = (places[one.source], places[one.target])
                speeds[key] = min(speeds.get(key, float("inf")), one.num_bytes / one.seconds)
    return [Link(source, target, speed) for (source, target), speed in speeds.items()]


def places_of(hosts: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    """By rank, the name of the end of its links: its host, or 'rank N' if there is one host only."""
    names = [name for name, slots in hosts.items() for _ in slots]
    return {rank: f"rank {rank}" if len(hosts) == 1 else name for rank, name in enumerate(names)}


def judge_links(links: list[Link]) -> Iterator[Finding]:
    """A link is slow against the median of all, or below an absolute rate. Two hosts have two directions only, of which
    the faster takes the median's place.
    """
    if not links:
        return
    speeds = [link.bytes_per_s for link in links]
    common = median(speeds) if len(links) > 2 else max(speeds)
    slow = [link for link in links if _level(link.bytes_per_s, common) != "ok"]
    if not slow:
        slowest = min(links, key=lambda link: link.bytes_per_s)
        yield Finding("ok", "links", f"at least {_speed(slowest.bytes_per_s)} each way, {_speed(common)} as a rule")
        return
    if len(slow) == len(links) and min(speeds) >= WARN_SHARE * common:
        # With two links (two hosts) the problem is theirs; with more it is the whole network's.
        hosts = _ends(links) if len(links) == 2 else ()
        found = f"{_speed(common)} each way, which is slow for any network"
        yield Finding(_level(common, common), "links", found, hosts, _DO if hosts else _DO_ALL)
        return
    by_whole_host = _slow_hosts(slow, links)
    for (host, way), own in by_whole_host.items():
        speed = max(link.bytes_per_s for link in own)
        found = f"{way} slowly on every link: {_speed(speed)} at most, where {_speed(common)} is usual"
        yield Finding(_level(speed, common), "links", found, (host,), _DO)
    explained = {link for own in by_whole_host.values() for link in own}
    for link in slow:
        if link not in explained:
            found = f"{link.source} to {link.target}: {_speed(link.bytes_per_s)}, where {_speed(common)} is usual"
            yield Finding(_level(link.bytes_per_s, common), "links", found, _ends([link]), _DO)


def _all_reduce(exam: Examination) -> Iterator[Finding]:
    num_ranks = sum(map(len, exam.trial.hosts.values()))
    done = [rank for host in exam.hosts for rank in (host.ranks.ranks if host.ranks else ()) if rank.all_reduce_s]
    if not done:
        return
    if num_ranks == 1:
        yield Finding("ok", "all-reduce", "CUDA and NCCL work for the one rank")
        return
    num_bytes, seconds = done[0].all_reduce_bytes or 0, max(rank.all_reduce_s or 0.0 for rank in done)
    # The bytes that each rank's link has to carry at least, whatever the algorithm ("bus bandwidth" of nccl-tests).
    rate = 2 * (num_ranks - 1) / num_ranks * num_bytes / seconds
    left_out = [host.name for host in exam.hosts if host.name not in exam.trial.hosts]
    without = f", without {', '.join(left_out)}" if left_out else ""
    backend = "NCCL" if exam.trial.device == "cuda" else "gloo"
    part = "" if num_ranks == exam.num_ranks or left_out else ", one of each host"
    found = (
        f"{counted(num_ranks, 'rank')}{part}, {format_bytes(num_bytes)} over {backend}: {_speed(rate)} a rank{without}"
    )
    yield Finding("ok", "all-reduce", found)


def _slow_hosts(slow: list[Link], links: list[Link]) -> dict[tuple[str, str], list[Link]]:
    """Hosts whose links are all slow in one direction, if they have more than one."""
    found: dict[tuple[str, str], list[Link]] = {}
    for link in slow:
        for host, way, side in ((link.source, "sends", "source"), (link.target, "receives", "target")):
            own = [other for other in links if getattr(other, side) == host]
            if len(own) > 1 and all(other in slow for other in own):
                found[host, way] = own
    return found


def _level(speed: float, common: float) -> Level:
    if speed < max(FAIL_SHARE * common, FAIL_BYTES_PER_S):
        return "fail"
    return "warn" if speed < max(WARN_SHARE * common, WARN_BYTES_PER_S) else "ok"


def _ends(links: Iterable[Link]) -> tuple[str, ...]:
    return tuple(sorted({end for link in links for end in (link.source, link.target)}))


def _speed(bytes_per_s: float) -> str:
    return f"{format_bytes(bytes_per_s)}/s"
