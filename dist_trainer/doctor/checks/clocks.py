"""Whether all clocks agree: build tools, Kerberos tickets and the times of records depend on them."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from dist_trainer.doctor.clock import Offset
from dist_trainer.doctor.examination import Examination
from dist_trainer.doctor.findings import Finding, Level
from dist_trainer.units import format_duration

WARN_S = 1.0
FAIL_S = 30.0
_DO = "start a time service there: chronyd, or systemd-timesyncd"


def check(exam: Examination) -> Iterator[Finding]:
    clocks = {host.name: host.clock for host in exam.hosts if host.clock is not None}
    if not exam.asker.is_asked and clocks:
        clocks[exam.asker.hostname] = Offset(0.0, 0.0)
    if len(clocks) < 2:
        return
    # With two clocks nobody knows which one is wrong, so the offset is given against this host's clock.
    common_s = median(offset.seconds for offset in clocks.values()) if len(clocks) > 2 else 0.0
    others = "the other clocks" if len(clocks) > 2 else f"the clock of {exam.asker.hostname}"
    is_all_well = True
    for name, offset in clocks.items():
        ahead_s = offset.seconds - common_s
        if abs(ahead_s) - offset.error_s < WARN_S:
            continue
        is_all_well = False
        way = "ahead of" if ahead_s > 0 else "behind"
        level: Level = "fail" if abs(ahead_s) >= FAIL_S else "warn"
        yield Finding(level, "clock", f"{format_duration(abs(ahead_s))} {way} {others}", (name,), _DO)
    if is_all_well:
        furthest_s = max(abs(offset.seconds - common_s) for offset in clocks.values())
        least = max(offset.error_s for offset in clocks.values())
        yield Finding(
            "ok", "clock", f"within {1000 * furthest_s:.1f} ms of each other, give or take {1000 * least:.1f} ms"
        )
