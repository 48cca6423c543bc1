"""One rank's looks at a GPU of the stand-in driver, one by one and without a thread; and what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dist_trainer.records import DeviceSample, Event

# Looks as often as there are letters: f at all fields, m at memory alone, s when a step has ended; x runs the last
# argument. No thread, so that each look is the next position in the script.
LOOK = """
import sys
from pathlib import Path
from dist_trainer.monitor.gpu.devices import DeviceIdentity
from dist_trainer.monitor.rank import RankSampler
records, uuid, bus_id, letters, code = sys.argv[1:]
rank = RankSampler(Path(records), 0, DeviceIdentity(uuid or None, bus_id or None), 0.1)
for letter in letters:
    if letter == "x":
        exec(code)
    elif letter == "s":
        rank.at_step_edge()
    else:
        rank.sampler.look(is_full=letter == "f")
for series in rank.sampler.series:
    series.close()
rank.stop()
print(rank.device, rank.peak_used_bytes)
"""


@dataclass(frozen=True)
class Looked:
    """What a rank wrote down. `written` are the samples as they stand in the file, each once; `has_last` says whether
    the last line, and no other, is marked as the last look.
    """

    device: str
    peak_used_bytes: int | None
    written: list[DeviceSample]
    has_last: bool
    events: list[Event]

    @property
    def diagnostics(self) -> list[str]:
        return [event.facts["diagnostic"] for event in self.events]


Look = Callable[..., Looked]
