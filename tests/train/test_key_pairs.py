"""Our verdict on a file beside that of the real engine, which builds and takes two steps: the short form of the walk in
key_pairs.py, in a process of its own, for some of DeepSpeed's engines change its classes for all that come after.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engine_cases import CASES
from key_pairs import NUM_SHORT_ROWS


@pytest.mark.integration
def test_what_is_accepted_trains_and_what_is_refused_for_the_engine_is_refused_by_it() -> None:
    walk = [sys.executable, str(Path(__file__).with_name("key_pairs.py")), "--short"]
    done = subprocess.run(walk, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert f"0 of {len(CASES) + NUM_SHORT_ROWS} differ" in said, said[-4000:]
    assert done.returncode == 0
