"""Which ranks try an all-reduce together."""

from __future__ import annotations

from collections.abc import Iterable

from dist_trainer.doctor.examination import HostReport, Trial
from dist_trainer.doctor.needs import Device

# gloo connects every rank with every other: above this world, one rank of each host takes part in the trial.
MOST_TRIAL_RANKS = 512


def trial_of(reports: Iterable[HostReport]) -> Trial:
    """Those of all hosts that can run torch, unless the ways between these are not open."""
    able = [report for report in reports if report.facts and report.facts.packages.get("torch") and report.listening]
    if not able:
        return Trial(why_not="no host can run torch")
    blocked = [
        report.name
        for report in able
        if report.connections is None or any(c.error for c in report.connections.connections)
    ]
    if blocked:
        return Trial(why_not="not every host reaches the others")
    has_gpus = all(report.gpus and len(report.gpus.devices) > max(report.slots) for report in able)
    device: Device = "cuda" if has_gpus and all(report.facts and report.facts.torch_cuda for report in able) else "cpu"
    hosts = {report.name: report.slots for report in able}
    if sum(map(len, hosts.values())) > MOST_TRIAL_RANKS:
        hosts = {name: slots[:1] for name, slots in hosts.items()}
    # One GPU alone still shows whether CUDA and NCCL work.
    if sum(map(len, hosts.values())) == 1 and device == "cpu":
        return Trial(why_not="there is one rank only")
    return Trial(hosts, device)
