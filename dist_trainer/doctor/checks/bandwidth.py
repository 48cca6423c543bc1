"""The trial all-reduce, and the links that are slow against the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from dist_trainer.doctor.examination import Examination
from dist_trainer.doctor.facts import Transfer
from dist_trainer.doctor.findings import Finding, Level, grouped
from dist_trainer.units import format_bytes

FAIL_SHARE = 0.25
WARN_SHARE = 0.5
# About what Ethernet of 1 Gbit/s carries: slower than this a link of any cluster is worth a look.
LEAST_BYTES_PER_S = 100e6
_DO = "look at the cable, the switch port and the interface (ethtool, `tc qdisc`), or leave the host out with --exclude"


@dataclass(frozen=True)
class Link:
    """One direction between two places: hosts, or the ranks of one host."""

    source: str
    target: str
    bytes_per_s: float


def check(exam: Examination) -> Iterator[Finding]:
    if exam.trial.why_not is not None:
        answering = any(host.facts for host in exam.hosts)
        is_lack = exam.num_ranks > 1 and answering
        yield Finding("warn" if is_lack else "ok", "all-reduce", f"not tried: {exam.trial.why_not}")
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
    """Between hosts: what all their ranks carried together, at the pace of the slowest. On one host: between ranks."""
    places = places_of(exam.trial.hosts)
    transfers: dict[tuple[str, str], list[Transfer]] = {}
    for host in exam.hosts:
        for rank in host.ranks.ranks if host.ranks else ():
            for transfer in rank.transfers:
                key = (places[transfer.source], places[transfer.target])
                transfers.setdefault(key, []).append(transfer)
    return [
        Link(source, target, sum(one.num_bytes for one in found) / max(one.seconds for one in found))
        for (source, target), found in transfers.items()
    ]


def places_of(hosts: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    """The name of each rank's place, by rank."""
    names = [name for name, slots in hosts.items() for _ in slots]
    return {rank: f"rank {rank}" if len(hosts) == 1 else name for rank, name in enumerate(names)}


def judge_links(links: list[Link]) -> Iterator[Finding]:
    """Slow ones by the median of all; of two hosts, whose two directions are all there is, by the faster direction."""
    if not links:
        return
    speeds = [link.bytes_per_s for link in links]
    common = median(speeds) if len(links) > 2 else max(speeds)
    slow = [link for link in links if link.bytes_per_s < WARN_SHARE * common or link.bytes_per_s < LEAST_BYTES_PER_S]
    if not slow:
        slowest = min(links, key=lambda link: link.bytes_per_s)
        yield Finding("ok", "links", f"at least {_speed(slowest.bytes_per_s)} each way, {_speed(common)} as a rule")
        return
    if len(slow) == len(links) and min(speeds) >= WARN_SHARE * common:
        found = f"all are slow: {_speed(common)}"
        yield Finding("warn", "links", found, (), "use a faster network, or settings that communicate less (ZeRO 1)")
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
            yield Finding(_level(link.bytes_per_s, common), "links", found, (link.source, link.target), _DO)


def _all_reduce(exam: Examination) -> Iterator[Finding]:
    num_ranks = sum(map(len, exam.trial.hosts.values()))
    done = [rank for host in exam.hosts for rank in (host.ranks.ranks if host.ranks else ()) if rank.all_reduce_s]
    if not done:
        return
    num_bytes, seconds = done[0].all_reduce_bytes or 0, max(rank.all_reduce_s or 0.0 for rank in done)
    # What has to cross each rank's link, whatever the algorithm.
    rate = 2 * (num_ranks - 1) / num_ranks * num_bytes / seconds
    left_out = [host.name for host in exam.hosts if host.name not in exam.trial.hosts]
    without = f", without {', '.join(left_out)}" if left_out else ""
    backend = "NCCL" if exam.trial.device == "cuda" else "gloo"
    part = "" if num_ranks == exam.num_ranks or left_out else ", one of each host"
    found = f"{num_ranks} ranks{part}, {format_bytes(num_bytes)} over {backend}: {_speed(rate)} a rank{without}"
    yield Finding("ok", "all-reduce", found)


def _slow_hosts(slow: list[Link], links: list[Link]) -> dict[tuple[str, str], list[Link]]:
    """Hosts of which every link in one direction is slow, where they have more than one."""
    found: dict[tuple[str, str], list[Link]] = {}
    for link in slow:
        for host, way, side in ((link.source, "sends", "source"), (link.target, "receives", "target")):
            own = [other for other in links if getattr(other, side) == host]
            if len(own) > 1 and all(other in slow for other in own):
                found[host, way] = own
    return found


def _level(speed: float, common: float) -> Level:
    return "fail" if speed < FAIL_SHARE * common else "warn"


def _speed(bytes_per_s: float) -> str:
    return f"{format_bytes(bytes_per_s)}/s"
