from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nvml_stub
import pytest
from looks import LOOK, Look, Looked

from dist_trainer.records import EVENTS_FILE, DeviceSample, Event, read_records, samples_file


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> nvml_stub.Driver:
    """The stand-in for NVIDIA's library."""
    return nvml_stub.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def look(driver: nvml_stub.Driver, tmp_path: Path) -> Look:
    """Has a process of its own look at the GPU of the script that way, and reads what it wrote."""

    def look_so(
        script: nvml_stub.Script | None,
        letters: str,
        *,
        uuid: str = nvml_stub.gpu_uuid(0),
        bus_id: str = "",
        code: str = "",
    ) -> Looked:
        records = tmp_path / "records"
        done = subprocess.run(
            [sys.executable, "-c", LOOK, str(records), uuid, bus_id, letters, code],
            env=os.environ | (driver.environ(script) if script is not None else {}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        device, peak = done.stdout.split()[-2:]
        lines = list(read_records(records / samples_file("rank-0"), DeviceSample))
        return Looked(
            device,
            None if peak == "None" else int(peak),
            # The last look has a line of its own where it had been written.
            list({one.monotonic_s: replace(one, is_last=False) for one in lines}.values()),
            [one.is_last for one in lines] == [False] * (len(lines) - 1) + [True],
            list(read_records(records / EVENTS_FILE, Event)),
        )

    return look_so
