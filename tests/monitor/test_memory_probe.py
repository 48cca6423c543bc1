from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nvml_stub
import psutil
import pytest
import torch

from dist_trainer.monitor.gpu.devices import DeviceIdentity
from dist_trainer.monitor.memory import MemoryProbe, rank_device
from dist_trainer.monitor.rank import RankSampler


def cpu_probe(folder: Path, interval_s: float = 0.0) -> MemoryProbe:
    return MemoryProbe(3, None, RankSampler(folder, 3, None, interval_s))


def test_on_the_cpu_the_resident_set_is_read_and_the_rest_is_unknown(tmp_path: Path) -> None:
    record = cpu_probe(tmp_path).read(17)
    assert (record.step, record.rank, record.host, record.device) == (17, 3, socket.gethostname(), "cpu")
    assert (record.allocated_peak_bytes, record.reserved_peak_bytes, record.device_used_bytes) == (None, None, None)
    assert record.rss_bytes > 10**7
    assert abs(record.rss_bytes - psutil.Process(os.getpid()).memory_info().rss) < 10**8


def test_each_read_is_a_new_one(tmp_path: Path) -> None:
    probe = cpu_probe(tmp_path)
    before = probe.read(1)
    held = bytearray(b"x" * 100_000_000)
    after = probe.read(2)
    assert after.rss_bytes - before.rss_bytes > 50_000_000
    assert after.time_s >= before.time_s
    assert before.monotonic_s is not None and after.monotonic_s is not None and after.monotonic_s >= before.monotonic_s
    del held


def test_without_an_interval_there_is_no_file_and_no_thread(tmp_path: Path) -> None:
    with RankSampler(tmp_path / "records", 0, None, 0.0) as sampler:
        MemoryProbe(0, None, sampler).read(1)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_on_a_cpu_is_on_no_gpu_whatever_the_host_has() -> None:
    assert rank_device(None) is None


@pytest.mark.parametrize(
    ("properties", "identity"),
    [
        (
            {"uuid": "a-b", "pci_domain_id": 0, "pci_bus_id": 0x3B, "pci_device_id": 0},
            DeviceIdentity("a-b", "00000000:3B:00.0"),
        ),
        ({"pci_domain_id": 1, "pci_bus_id": 0xAF, "pci_device_id": 2}, DeviceIdentity(None, "00000001:AF:02.0")),
        ({"uuid": "a-b"}, DeviceIdentity("a-b", None)),
    ],
    ids=["both", "no uuid in this torch", "no bus id in this torch"],
)
def test_a_gpu_is_known_by_what_torch_says_of_it(
    monkeypatch: pytest.MonkeyPatch, properties: dict[str, object], identity: DeviceIdentity
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**properties))
    assert rank_device(0) == identity


READ_AT_STEP_EDGES = """
import sys
from pathlib import Path
from dist_trainer.monitor.gpu.devices import DeviceIdentity
from dist_trainer.monitor.memory import MemoryProbe
from dist_trainer.monitor.rank import RankSampler
with RankSampler(Path(sys.argv[1]), 0, DeviceIdentity(sys.argv[2]), 0.0) as sampler:
    probe = MemoryProbe(0, None, sampler)
    print([probe.read(step).device_used_bytes for step in range(4)], probe.read(4).device)
"""


def test_with_sampling_off_the_device_is_looked_at_at_step_edges(driver: nvml_stub.Driver, tmp_path: Path) -> None:
    script = nvml_stub.Script(clock="queries")
    gpu = script.gpu(used_bytes=5)
    script.used(gpu, {1: 9, 2: 7})
    script.process(gpu, "self", 5)
    done = subprocess.run(
        [sys.executable, "-c", READ_AT_STEP_EDGES, str(tmp_path), nvml_stub.gpu_uuid(0).removeprefix("GPU-")],
        env=os.environ | driver.environ(script),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"[5, 9, 9, 9] {nvml_stub.gpu_uuid(0)}\n"
    assert list(tmp_path.iterdir()) == []
