"""Is it good? What each GPU took, against what the run file says it may take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dist_trainer.config.run import TargetConfig
from dist_trainer.records import MemoryRecord

Judgement = Literal["met", "missed", "not judged"]


@dataclass(frozen=True)
class Verdict:
    """The judgement on one rank's device. `peak_bytes` is the device's use by NVML; the RSS where `is_resident`."""

    rank: int
    host: str
    device: str
    peak_bytes: int
    is_resident: bool
    baseline_bytes: int | None
    target_bytes: int | None
    judgement: Judgement
    reason: str

    @property
    def reduction(self) -> float | None:
        """Fraction of the baseline saved, or None when there is nothing to compare."""
        if self.judgement == "not judged" or not self.baseline_bytes:
            return None
        return 1 - self.peak_bytes / self.baseline_bytes


def judge(records: Iterable[MemoryRecord], targets: TargetConfig | None) -> list[Verdict]:
    """One verdict a rank, from its highest reading."""
    by_rank: dict[int, list[MemoryRecord]] = {}
    for record in records:
        by_rank.setdefault(record.rank, []).append(record)
    return [_judge_rank(by_rank[rank], targets) for rank in sorted(by_rank)]


def _judge_rank(records: list[MemoryRecord], targets: TargetConfig | None) -> Verdict:
    last = records[-1]
    used = [record.device_used_bytes for record in records if record.device_used_bytes is not None]
    peak_bytes = max(used) if used else max(record.rss_bytes for record in records)
    judgement: Judgement = "not judged"
    if last.device == "cpu":
        reason = "no GPU"
    elif not used:
        reason = "NVML gave no reading"
    elif targets is None:
        reason = "the run file has no targets"
    else:
        judgement = "met" if peak_bytes <= targets.target_bytes else "missed"
        reason = "peak device memory by NVML"
    return Verdict(
        rank=last.rank,
        host=last.host,
        device=last.device,
        peak_bytes=peak_bytes,
        is_resident=not used,
        baseline_bytes=targets.baseline_bytes if targets else None,
        target_bytes=targets.target_bytes if targets else None,
        judgement=judgement,
        reason=reason,
    )
