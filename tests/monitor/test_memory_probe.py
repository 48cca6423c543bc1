from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from dist_trainer.monitor.memory import MemoryProbe, _device_used_bytes


def test_on_the_cpu_the_resident_set_is_read_and_the_rest_is_unknown() -> None:
    record = MemoryProbe.open(3, None).read(17)
    assert (record.step, record.rank, record.host, record.device) == (17, 3, socket.gethostname(), "cpu")
    assert (record.allocated_peak_bytes, record.reserved_peak_bytes, record.device_used_bytes) == (None, None, None)
    assert record.rss_bytes > 10**7
    assert abs(record.rss_bytes - psutil.Process(os.getpid()).memory_info().rss) < 10**8


def test_each_read_is_a_new_one() -> None:
    probe = MemoryProbe.open(0, None)
    before = probe.read(1)
    held = bytearray(b"x" * 100_000_000)
    after = probe.read(2)
    assert after.rss_bytes - before.rss_bytes > 50_000_000
    assert after.time_s >= before.time_s
    del held


def test_without_a_handle_the_driver_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("the driver was asked")

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", never)
    assert _device_used_bytes(None) is None


class Driver:
    """Stands for the driver: `used_by_version` says what it answers; it does not know a version that is not there."""

    def __init__(self, used_by_version: dict[object, int]) -> None:
        self.used_by_version = used_by_version
        self.asked: list[object] = []

    def __call__(self, handle: object, version: object = None) -> SimpleNamespace:
        self.asked.append(version)
        if version not in self.used_by_version:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return SimpleNamespace(used=self.used_by_version[version])


@pytest.mark.parametrize(
    ("used_by_version", "used_bytes", "asked"),
    [
        ({pynvml.nvmlMemory_v2: 7, None: 9}, 7, [pynvml.nvmlMemory_v2]),
        ({None: 9}, 9, [pynvml.nvmlMemory_v2, None]),
        ({}, None, [pynvml.nvmlMemory_v2, None]),
    ],
    ids=["both", "version 1 alone", "neither"],
)
def test_an_older_driver_is_asked_the_older_way(
    monkeypatch: pytest.MonkeyPatch, used_by_version: dict[object, int], used_bytes: int | None, asked: list[object]
) -> None:
    driver = Driver(used_by_version)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", driver)
    assert _device_used_bytes(object()) == used_bytes
    assert driver.asked == asked


def test_a_host_without_nvml_has_no_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    from dist_trainer.monitor.memory import _nvml_handle

    def no_library() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_library)
    assert _nvml_handle("00000000-0000-0000-0000-000000000000") is None
