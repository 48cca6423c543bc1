"""What a plan comes to (`advice/outcome.py`)."""

from __future__ import annotations

import pytest
from advised import a_plan

from dist_trainer.memory.advice.outcome import HostMemory, Standing, device_standing, host_standing, is_good, plan_line
from dist_trainer.memory.advice.outcome import reduction as reduction_of
from dist_trainer.units import GB


@pytest.mark.parametrize(("needed_gb", "state"), [(39.0, "under"), (39.8, "close"), (40.1, "over")])
def test_a_plan_stands_by_its_figure_and_its_band(needed_gb: float, state: str) -> None:
    standing = device_standing(a_plan(round(needed_gb * GB)))
    assert isinstance(standing, Standing)
    assert standing.state == state


def test_the_ranks_of_a_host_share_its_memory() -> None:
    host = HostMemory(16 * GB, 2)
    on_cpu = a_plan(7 * GB, device="cpu")
    assert device_standing(on_cpu) is None
    assert is_good(on_cpu, host)
    assert not is_good(a_plan(9 * GB, device="cpu"), host)
    # Nothing is offloaded.
    assert host_standing(a_plan(39 * GB), host) is None


def test_a_plan_in_one_line() -> None:
    assert plan_line(a_plan(8_400_000_000), None) == (
        "8.40 GB a GPU planned (peak in step), of 40.00 GB; target 10.00 GB: met"
    )
    assert plan_line(a_plan(11 * GB, device_bytes=None), None).endswith("(peak in step); target 10.00 GB: missed")
    assert reduction_of(a_plan(8 * GB)) == 0.5
