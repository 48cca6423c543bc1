"""The doctor over two real hosts, with faults planted on them: each is found, and named with its host."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nvml_stub
import pytest
from lab import LOGIN, Lab, clock_off_by
from nvml_stub import Script

PYTHON = sys.executable
DOCTOR = (PYTHON, "-m", "dist_trainer", "doctor")
LIMIT_S = 30.0
PORT = 29500
LISTENING = f"grep -q ':{PORT:04X} 00000000:0000 0A' /proc/net/tcp"
# Another Python than the tests', where the system has one.
OTHER_PYTHON = "/usr/bin/python3"


@dataclass(frozen=True)
class Diagnosis:
    status: int
    findings: tuple[dict[str, Any], ...]
    examination: dict[str, Any]

    def named(self, check: str) -> list[tuple[str, list[str], str]]:
        """Level, hosts and what was found of them, where it is not well."""
        found = [one for one in self.findings if one["check"] == check and one["level"] != "ok"]
        return [(one["level"], one["hosts"], one["found"]) for one in found]

    def failed(self) -> set[tuple[str, tuple[str, ...]]]:
        return {(one["check"], tuple(one["hosts"])) for one in self.findings if one["level"] == "fail"}


@pytest.fixture(scope="module")
def folder(lab: Lab) -> Path:
    """All hosts share it; it holds a hostfile of both."""
    made = lab.folder / "doctor"
    made.mkdir()
    (made / "hosts").write_text("node1 slots=2\nnode2 slots=2\n")
    return made


def diagnose(lab: Lab, folder: Path) -> Diagnosis:
    return read(lab.run(LOGIN, [*DOCTOR, "--hostfile", "hosts", "--json"], cwd=folder))


def read(ended: Any) -> Diagnosis:
    # salloc speaks before and after.
    said, _ = json.JSONDecoder().raw_decode(ended.output, ended.output.index("{"))
    return Diagnosis(ended.status, tuple(said["findings"]), said["examination"])


def wait_until_nothing_is_left(lab: Lab) -> None:
    """Of the doctor, on any host."""
    deadline_s = time.monotonic() + LIMIT_S
    while left := [
        argv
        for host in (LOGIN, *lab.hosts)
        for _, argv in lab.processes(host)
        if any(word.startswith("dist_trainer") for word in argv)
    ]:
        assert time.monotonic() < deadline_s, left
        time.sleep(0.05)


@pytest.fixture(scope="module")
def ill(lab: Lab, folder: Path) -> Iterator[Diagnosis]:
    """Faults that do not hide each other, all at once."""
    driver, script = nvml_stub.build(folder / "driver"), Script()
    for _ in range(2):
        script.gpu(name="NVIDIA A100-SXM4-40GB", total_bytes=24 * 2**30)
    lying_driver = {"LD_LIBRARY_PATH": str(driver.folder), "NVML_STUB_SCRIPT": str(driver.script_path(script))}
    (folder / "runs").mkdir()
    lab.power_off("node2")
    lab.power_on("node2", environ=lying_driver | clock_off_by(90))
    lab.slow_link("node2", "20mbit")
    lab.check("node1", ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "runs"], cwd=folder)
    lab.run("node1", ["sh", "-c", "cat /dev/zero >runs/all-of-it"], cwd=folder)
    holder = lab.popen("node1", [PYTHON, "-m", "http.server", str(PORT)], stderr=subprocess.DEVNULL)
    lab.check("node1", ["sh", "-c", f"until {LISTENING}; do sleep 0.02; done"])
    if Path(OTHER_PYTHON).exists():
        lab.check("node1", ["mount", "--bind", OTHER_PYTHON, str(Path(PYTHON).resolve())])
    try:
        yield diagnose(lab, folder)
    finally:
        holder.kill()
        holder.wait()
        for host in lab.hosts:
            lab.power_off(host)
            lab.power_on(host)


def test_planted_faults_are_all_that_fails(ill: Diagnosis) -> None:
    assert ill.status == 1
    assert ill.failed() == {
        ("runs folder", ("node1",)),
        ("clock", ("node2",)),
        ("links", ("node1", "node2")),
        ("driver's word", ("node2",)),
        # What follows from its lies: the other host has none, and torch here cannot use any.
        ("GPUs", ("node1",)),
        ("torch's CUDA", ("node2",)),
    }


def test_a_full_disk(ill: Diagnosis) -> None:
    ((_, _, said),) = ill.named("runs folder")
    assert "No space left on device" in said


def test_a_clock_that_is_90_s_off(ill: Diagnosis) -> None:
    ((_, _, said),) = ill.named("clock")
    assert said == "1m 30s ahead of the other clocks"


def test_a_slow_link(ill: Diagnosis) -> None:
    """20 Mbit/s are 2.5 MB/s."""
    ((_, _, said),) = ill.named("links")
    rate, unit = said.split()[:2]
    assert unit == "MB/s" and 1 < float(rate) < 4


def test_a_driver_that_lies_about_its_gpus(ill: Diagnosis) -> None:
    (_, _, contradicted), (_, hosts, odd) = ill.named("driver's word")
    assert "it names GPU 0 at 00000000:10:00.0, where the kernel shows none" in contradicted
    assert hosts == ["node2"]
    assert "named NVIDIA A100-SXM4-40GB, which has 42.95 GB, and is said to have 25.77 GB" in odd


@pytest.mark.usefixtures("ill")
def test_gpus_that_no_slot_stands_for_unless_the_user_says_which_to_use(lab: Lab, folder: Path) -> None:
    """Of node2, whose driver tells of two."""
    (folder / "one-slot").write_text("node2 slots=1\n")
    (folder / "two-slots").write_text("node2 slots=2\n")
    told = [
        read(lab.run(LOGIN, [*DOCTOR, *words, "--json"], cwd=folder)).named("GPUs")
        for words in (["--hostfile", "one-slot"], ["--hostfile", "two-slots", "--include", "node2:1"])
    ]
    assert told == [[("fail", ["node2"], "2 for 1 slot")], []]


def test_a_port_that_is_taken(ill: Diagnosis) -> None:
    ((level, hosts, said),) = ill.named("port")
    assert (level, hosts) == ("warn", ["node1"])
    assert said.startswith(f"{PORT}, where torchrun and deepspeed meet unless told otherwise, is taken by ")


def test_another_python_on_one_host(ill: Diagnosis) -> None:
    if not Path(OTHER_PYTHON).exists():
        pytest.skip(f"there is no {OTHER_PYTHON}")
    other, own = (
        subprocess.run(
            [path, "-c", "import platform; print(platform.python_version())"], capture_output=True, text=True
        )
        for path in (OTHER_PYTHON, PYTHON)
    )
    if other.stdout == own.stdout:
        pytest.skip(f"{OTHER_PYTHON} is of the same version as the tests' Python")
    ((_, hosts, said),) = ill.named("python")
    assert hosts == ["node1"]
    assert said == f"{other.stdout.strip()}, where node2 has {own.stdout.strip()}"


def test_a_host_that_is_down_and_one_without_the_environment(lab: Lab, folder: Path) -> None:
    lab.power_off("node2")
    lab.check("node1", ["mount", "-t", "tmpfs", "tmpfs", sys.prefix])
    try:
        found = diagnose(lab, folder)
    finally:
        lab.power_on("node2")
        lab.power_off("node1")
        lab.power_on("node1")
    assert found.status == 1
    assert found.failed() == {("reachable", ("node2",)), ("python", ("node1",))}
    assert found.named("python") == [("fail", ["node1"], f"there is no {PYTHON}")]


def test_in_a_slurm_job_without_a_fault(lab: Lab, folder: Path, slurm_lab: dict[str, str]) -> None:
    words = ["salloc", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-task=1", *DOCTOR, "--json"]
    found = read(lab.run(LOGIN, words, cwd=folder, environ=slurm_lab))
    assert found.failed() == set(), found
    assert found.status == 0
    assert found.examination["how"] == "srun"
    assert found.examination["trial"]["hosts"] == {"node1": [0, 1], "node2": [0, 1]}
    assert [host["ranks"]["ranks"][0]["stage"] for host in found.examination["hosts"]] == ["end", "end"]
    wait_until_nothing_is_left(lab)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_stays_of_a_doctor_that_is_stopped(number: signal.Signals, lab: Lab, folder: Path) -> None:
    (folder / "runs").mkdir(exist_ok=True)
    words = [*DOCTOR, "--hostfile", "hosts"]
    doctor = lab.popen(LOGIN, words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not any("dist_trainer.doctor.bandwidth" in argv for _, argv in lab.processes("node2")):
        assert doctor.poll() is None
        time.sleep(0.02)
    doctor.send_signal(number)
    assert doctor.communicate()[0] == ("\ndist_trainer: interrupted\n" if number == signal.SIGINT else "")
    wait_until_nothing_is_left(lab)
    assert list((folder / "runs").iterdir()) == []
