"""The short form of `signals_at_random.py`, and one signal that is sure to come between two steps."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from signals_at_random import LIMIT_S, main, problem_of_end, started, undisturbed

from dist_trainer.checkpoints import index
from dist_trainer.endings import cause_among, last_step
from dist_trainer.records import EVENTS_FILE, Event, read_records

pytestmark = pytest.mark.integration


def test_whenever_the_signal_comes_nothing_is_lost() -> None:
    assert main(3, 3, ["launch torchrun"]) == 0


def test_at_a_signal_the_step_is_saved_and_the_run_goes_on_from_it(tmp_path: Path) -> None:
    expected, _ = undisturbed(tmp_path)
    run_dir = tmp_path / "run"
    with started("launch torchrun", tmp_path, run_dir, None) as process:
        deadline_s = time.monotonic() + LIMIT_S
        while (last_step(run_dir) or 0) < 3:
            assert time.monotonic() < deadline_s and process.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(LIMIT_S) == 128 + signal.SIGUSR1
    step = last_step(run_dir)
    assert step is not None
    assert index.read(run_dir / "checkpoints" / f"step-{step}").position.step == step
    end = cause_among(list(read_records(run_dir / "records" / EVENTS_FILE, Event)))
    assert end is not None
    assert (end.kind, end.message) == ("interrupted", f"interrupted at step {step} (SIGUSR1), which is saved")
    assert problem_of_end(tmp_path, run_dir, expected) is None
