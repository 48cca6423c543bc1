"""Builds the stand-in for NVIDIA's management library, and writes the scripts that it plays.

    driver = nvml_stub.build(tmp_path)
    script = nvml_stub.Script(clock="queries")
    gpu = script.gpu(total_bytes=24 * GIB)
    script.used(gpu, {0: 1 * GIB, 20: 3 * GIB})
    subprocess.run(command, env=os.environ | driver.environ(script))

The program asks the real nvidia-ml-py, which finds the stand-in through LD_LIBRARY_PATH. A whole training run on a CPU
has its ranks watched on these GPUs when it is started as `python -m nvml_rank train ...` (tests/nvml_rank.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

SOURCE = Path(__file__).with_name("nvml_stub.c")
TESTS = Path(__file__).parent
LIBRARY = "libnvidia-ml.so.1"

NOT_SUPPORTED = 3
NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
UNKNOWN = 999
UNINITIALIZED = 1

MEMORY_V1 = "nvmlDeviceGetMemoryInfo"
MEMORY_V2 = "nvmlDeviceGetMemoryInfo_v2"
COMPUTE_PROCESSES = "nvmlDeviceGetComputeRunningProcesses_v3"
GRAPHICS_PROCESSES = "nvmlDeviceGetGraphicsRunningProcesses_v3"
INIT = "nvmlInitWithFlags"
ANY = "*"


class Script:
    """What the driver answers. Times are milliseconds since a process first initialises NVML, or, with
    `clock="queries"`, how often it has asked for that device's memory: the first time is 0, whatever time it takes.

    Devices are named by the text that `gpu` and `mig` return.
    """

    def __init__(self, *, clock: Literal["ms", "queries"] = "ms", latency_us: int = 0) -> None:
        self.lines = [f"clock {clock}", f"latency_us {latency_us}"]
        self._num_gpus = 0
        self._num_instances: dict[str, int] = {}

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)

    def gpu(
        self,
        *,
        total_bytes: int = 24 * 2**30,
        uuid: str | None = None,
        pci_bus_id: str | None = None,
        name: str = "NVIDIA Stand-in",
        used_bytes: int = 0,
        reserved_bytes: int = 0,
    ) -> str:
        """The next GPU in NVML's order."""
        key = str(self._num_gpus)
        self._num_gpus += 1
        uuid = uuid or gpu_uuid(int(key))
        pci_bus_id = pci_bus_id or f"00000000:{16 + int(key):02X}:00.0"
        self.lines.append(f"gpu {uuid} {pci_bus_id} {total_bytes} {name}")
        self.lines.append(f"reserved {key} {reserved_bytes}")
        self.used(key, {0: used_bytes})
        return key

    def mig(
        self, gpu: str, *, total_bytes: int, uuid: str | None = None, gpu_instance: int, compute_instance: int = 0
    ) -> str:
        """An instance of a GPU, which has MIG on by that."""
        index = self._num_instances.setdefault(gpu, 0)
        self._num_instances[gpu] += 1
        self.lines.append(
            f"mig {gpu} {uuid or mig_uuid(int(gpu), index)} {gpu_instance} {compute_instance} {total_bytes}"
        )
        return f"{gpu}/{index}"

    def used(self, device: str, curve: Mapping[int, int]) -> None:
        """Bytes in use from each time on."""
        self.lines += [f"used {device} {at} {used}" for at, used in curve.items()]

    def process(
        self,
        device: str,
        pid: int | Literal["self"],
        used_bytes: int | Literal["na", "gone"],
        *,
        at: int = 0,
        lists: Literal["compute", "graphics", "both"] = "compute",
    ) -> None:
        """A process on the device; "self" is the one that asks, "na" a number that the driver does not tell."""
        self.lines.append(f"process {device} {at} {pid} {used_bytes} {lists}")

    def value(self, device: str, *, at: int = 0, **numbers: int) -> None:
        """utilization_percent, power_mw, temperature_c, sm_clock_mhz, memory_clock_mhz, throttle_reasons, ecc_errors,
        persistence. One that is never given is not supported.
        """
        self.lines += [f"value {device} {name} {at} {number}" for name, number in numbers.items()]

    def error(self, code: int, call: str = ANY, *, device: str = ANY, at: int = 0, until: int = -1) -> None:
        """The call gives this error from a time on; with no device named also the calls that are about none."""
        self.lines.append(f"error {device} {call} {at} {until} {code}")

    def xid(self, device: str, code: int, *, at: int = 0) -> None:
        self.lines.append(f"xid {device} {at} {code}")


def gpu_uuid(index: int) -> str:
    return f"GPU-{index:08x}-0000-4000-8000-0000000000{index:02x}"


def mig_uuid(gpu: int, index: int) -> str:
    return f"MIG-{gpu:08x}-{index:04x}-5000-8000-000000000000"


@dataclass(frozen=True)
class Driver:
    """The library in a folder of its own."""

    folder: Path

    def script_path(self, script: Script) -> Path:
        """Writes the script. A line that is appended to the file later counts from then on."""
        number = len(list(self.folder.glob("script-*.txt")))
        path = self.folder / f"script-{number}.txt"
        path.write_text(script.text)
        return path

    def environ(self, script: Script | Path) -> dict[str, str]:
        """The variables with which a new process finds this driver, in the script's state."""
        path = script if isinstance(script, Path) else self.script_path(script)
        python_path = os.pathsep.join(filter(None, (str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH"))))
        return {
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(self.folder), os.environ.get("LD_LIBRARY_PATH")))),
            "NVML_STUB_SCRIPT": str(path),
            "PYTHONPATH": python_path,
        }


def build(folder: Path) -> Driver:
    """Compiles the library into `folder`; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc), which the stand-in for the NVIDIA driver is built with")
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        compiler,
        "-O1",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        str(folder / LIBRARY),
        str(SOURCE),
        "-pthread",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Driver(folder)
