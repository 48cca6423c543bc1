"""The real nvidia-ml-py over a small driver library built at test time (tests/nvml_stub.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nvml_stub
import psutil
import pytest
from nvml_stub import Driver, Script

from dist_trainer.doctor.facts import HostGpus
from dist_trainer.doctor.session import read
from dist_trainer.units import GIB

LOOK = """
import dataclasses, json, os, sys
from pathlib import Path
from dist_trainer.doctor.probes.gpus import find_gpus
print(json.dumps(dataclasses.asdict(find_gpus(os.environ, Path(sys.argv[1])))))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return nvml_stub.build(tmp_path_factory.mktemp("driver"))


def look(driver: Driver, script: Script, pci: Path, **variables: str) -> HostGpus:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(pci)],
        env=environ | driver.environ(script) | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return read(HostGpus, json.loads(done.stdout))


def on_the_bus(folder: Path, *addresses: str) -> Path:
    for address in addresses:
        (folder / address).mkdir(parents=True)
        for name, text in (("vendor", "0x10de"), ("class", "0x030200"), ("numa_node", "1")):
            (folder / address / name).write_text(f"{text}\n")
    return folder


def test_all_that_a_gpu_tells(driver: Driver, tmp_path: Path) -> None:
    script = Script()
    first = script.gpu(total_bytes=24 * GIB, used_bytes=3 * GIB)
    script.value(first, ecc_errors=2, throttle_reasons=0x40, temperature_c=91, persistence=0)
    script.process(first, os.getpid(), 2 * GIB)
    script.gpu(total_bytes=24 * GIB)
    found = look(driver, script, on_the_bus(tmp_path / "pci", "0000:10:00.0", "0000:11:00.0"))
    assert (found.driver, found.num_said, found.trouble, found.troubles) == ("550.00", 2, None, ())
    assert found.kernel == ("0000:10:00.0", "0000:11:00.0")
    gpu = found.gpus[0]
    assert (gpu.total_bytes, gpu.used_bytes, gpu.ecc_errors) == (24 * GIB, 3 * GIB, 2)
    assert (gpu.throttle_reasons, gpu.temperature_c, gpu.numa_node) == (("hw_thermal_slowdown",), 91, 1)
    assert [(process.pid, process.used_bytes) for process in gpu.processes] == [(os.getpid(), 2 * GIB)]
    own = psutil.Process()
    assert gpu.processes[0].name == f"{own.name()} of {own.username()}"
    assert (gpu.is_persistent, found.driver_cuda) == (False, "12.4")
    assert [device.uuid for device in found.devices] == [one.uuid for one in found.gpus]


def test_what_a_program_sees(driver: Driver, tmp_path: Path) -> None:
    script = Script()
    for _ in range(3):
        script.gpu()
    found = look(driver, script, tmp_path, CUDA_VISIBLE_DEVICES="2,0")
    assert [device.uuid for device in found.devices] == [nvml_stub.gpu_uuid(2), nvml_stub.gpu_uuid(0)]
    assert len(found.gpus) == 3


def test_a_gpu_that_does_not_answer_is_missing_from_the_list(driver: Driver, tmp_path: Path) -> None:
    script = Script()
    script.gpu()
    script.error(nvml_stub.GPU_IS_LOST, device=script.gpu())
    found = look(driver, script, tmp_path)
    assert (found.num_said, len(found.gpus)) == (2, 1)
    assert any("lost" in trouble for trouble in found.troubles)


def test_a_driver_that_is_not_loaded(driver: Driver, tmp_path: Path) -> None:
    script = Script()
    script.error(nvml_stub.DRIVER_NOT_LOADED, nvml_stub.INIT)
    found = look(driver, script, on_the_bus(tmp_path / "pci", "0000:10:00.0"))
    assert found.has_library and found.trouble is not None and "not loaded" in found.trouble
    assert found.kernel == ("0000:10:00.0",)


def test_no_library_and_no_gpu(driver: Driver, tmp_path: Path) -> None:
    found = look(driver, Script(), tmp_path, LD_LIBRARY_PATH="")
    assert (found.has_library, found.gpus, found.kernel) == (False, (), ())
    assert found.trouble is not None


def test_instances_of_mig_are_devices_of_their_own(driver: Driver, tmp_path: Path) -> None:
    script = Script()
    gpu = script.gpu(total_bytes=80 * GIB)
    for number in (1, 2):
        instance = script.mig(gpu, total_bytes=40 * GIB, gpu_instance=number)
        script.used(instance, {0: GIB})
    found = look(driver, script, tmp_path)
    assert [(device.total_bytes, device.used_bytes) for device in found.devices] == [(40 * GIB, GIB)] * 2
    assert found.gpus[0].num_instances == 2
    assert found.troubles == ()
