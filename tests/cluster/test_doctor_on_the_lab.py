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
from lab import LOGIN, Lab
from nvml_stub import Script

PYTHON = sys.executable
DOCTOR = (PYTHON, "-m", "dist_trainer", "doctor")
LIMIT_S = 60.0
SKEW_S = 90
# Another Python than that of the tests, where the system has one.
OTHER_PYTHON = Path("/usr/bin/python3")
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


@dataclass(frozen=True)
class Diagnosis:
    status: int
    findings: tuple[dict[str, Any], ...]
    examination: dict[str, Any]

    def named(self, check: str, level: str) -> list[tuple[list[str], str]]:
        """The hosts that are named and what is said of them."""
        return [
            (finding["hosts"], finding["found"])
            for finding in self.findings
            if (finding["check"], finding["level"]) == (check, level)
        ]


def diagnose(lab: Lab, folder: Path, *words: str, environ: dict[str, str] | None = None) -> Diagnosis:
    ended = lab.run(LOGIN, [*words, *DOCTOR, "--json"], cwd=folder, environ=environ)
    before, brace, rest = ended.output.partition("\n{\n" if not ended.output.startswith("{\n") else "{\n")
    said, _ = json.JSONDecoder().raw_decode(f"{{\n{rest}" if brace else ended.output)
    return Diagnosis(ended.status, tuple(said["findings"]), said["examination"])


@pytest.fixture(scope="module")
def folder(lab: Lab) -> Path:
    """A folder that all hosts share, with a hostfile of both of them."""
    made = lab.folder / "doctor"
    made.mkdir()
    (made / "hosts").write_text("node1 slots=2\nnode2 slots=2\n")
    return made


def wait_until_nothing_runs(lab: Lab) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while any(lab.processes(host) for host in (LOGIN, *lab.hosts)):
        assert time.monotonic() < deadline_s, {host: lab.processes(host) for host in (LOGIN, *lab.hosts)}
        time.sleep(0.05)


def reboot(lab: Lab, host: str, environ: dict[str, str] | None = None) -> None:
    if lab.is_on(host):
        lab.power_off(host)
    lab.power_on(host, environ=environ)


@pytest.fixture(scope="module")
def ill(lab: Lab, folder: Path) -> Iterator[Diagnosis]:
    """Seven faults at once, none of which hides another."""
    driver, script = nvml_stub.build(folder / "driver"), Script()
    for _ in range(2):
        script.gpu(name="NVIDIA A100-SXM4-40GB", total_bytes=24 * 2**30)
    environ = {
        "LD_LIBRARY_PATH": str(driver.folder),
        "NVML_STUB_SCRIPT": str(driver.script_path(script)),
    }
    if FAKETIME is not None:
        environ |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"+{SKEW_S}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    runs = folder / "runs"
    runs.mkdir()
    reboot(lab, "node2", environ)
    lab.check("node1", ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(runs)])
    lab.run("node1", ["sh", "-c", f"cat /dev/zero >{runs}/all-of-it"])
    if OTHER_PYTHON.exists():
        lab.check("node1", ["mount", "--bind", str(OTHER_PYTHON), str(Path(PYTHON).resolve())])
    holder = lab.popen("node1", ["sh", "-c", f"exec {PYTHON} -m http.server 29500"], stdout=subprocess.DEVNULL)
    lab.slow_link("node2", "20mbit")
    try:
        lab.check(
            "node1", ["sh", "-c", "until grep -q ':733C 00000000:0000 0A' /proc/net/tcp; do sleep 0.02; done"]
        )
        yield diagnose(lab, folder, *("env",), environ={"PYTHONPATH": ""}) if False else over_ssh(lab, folder)
    finally:
        holder.kill()
        holder.wait()
        reboot(lab, "node1")
        reboot(lab, "node2")
