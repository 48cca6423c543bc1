"""What else the machine did while a cell was measured."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from dist_trainer.benchmark.worth import machine
from dist_trainer.benchmark.worth.measurement import Machine

BURN = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def test_the_cells_own_work_is_none_of_others() -> None:
    look_again = machine.watch()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    alone = look_again()
    assert alone.load is not None and alone.load >= 0
    assert alone.others_share is not None and 0 <= alone.others_share <= 1


def test_work_of_others_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([machine._Moment(0.0, 0.0, 0.0), machine._Moment(10.0, 9.0, 4.0)])
    monkeypatch.setattr(machine, "_now", lambda: next(moments))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert machine.watch()().others_share == pytest.approx(5.0 / 20.0)


@pytest.mark.parametrize(("share", "is_busy"), [(None, False), (0.05, False), (0.3, True)])
def test_a_machine_is_busy_where_others_take_more_than_a_tenth(share: float | None, is_busy: bool) -> None:
    assert replace(Machine(), others_share=share).is_busy is is_busy


@pytest.mark.parametrize("error", [NotImplementedError, FileNotFoundError])
def test_a_kernel_that_does_not_tell_the_frequency_gives_none(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("psutil.cpu_freq", fail)
    assert machine.watch()().frequency_mhz is None
