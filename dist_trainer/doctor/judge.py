"""All checks over one examination."""

from __future__ import annotations

from dist_trainer.doctor.checks import bandwidth, clocks, gpus, memory, network, reach, resources, software, storage
from dist_trainer.doctor.examination import Examination
from dist_trainer.doctor.findings import LEVELS, Finding

_CHECKS = (reach, software, clocks, gpus, network, bandwidth, storage, resources, memory)


def judge(exam: Examination) -> list[Finding]:
    """The findings, the worst first, and within a level in the order of the checks."""
    found = [finding for check in _CHECKS for finding in check.check(exam)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))
