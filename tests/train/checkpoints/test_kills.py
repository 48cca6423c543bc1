"""The short form of kills.py: both ranks of a run are killed at a random moment, and then `launch`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ranks


@pytest.mark.integration
def test_a_killed_run_goes_on_to_the_losses_of_an_undisturbed_one(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kills.py")
    done = subprocess.run(
        [sys.executable, str(script), "2", "2"],
        cwd=tmp_path,
        env=ranks.bin_environment(),
        capture_output=True,
        text=True,
        timeout=ranks.TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 half checkpoints") == 2
    assert "| launch | 1 | " in done.stdout
