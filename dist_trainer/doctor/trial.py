"""Which ranks take part in the trial all-reduce."""

from __future__ import annotations

from collections.abc import Iterable

from dist_trainer.doctor.examination import HostReport, Trial
from dist_trainer.doctor.needs import Device

# gloo connects every rank with every other. Above this world size one rank of each host takes part.
MOST_TRIAL_RANKS = 512


def trial_of(reports: Iterable[HostReport]) -> Trial:
    """The ranks of all hosts that can run torch; none if these hosts cannot connect to each other."""
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
    # A single GPU is still worth a trial: it shows whether CUDA and NCCL work.
    if sum(map(len, hosts.values())) == 1 and device == "cpu":
        return Trial(why_not="there is one rank only")
    return Trial(hosts, device)
