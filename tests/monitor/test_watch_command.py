"""`python -m dist_trainer monitor -- COMMAND`: the command runs as if alone, and what it held is written down."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from nvml_stub import DRIVER_NOT_LOADED, GPU_IS_LOST, INIT, Driver, Script, gpu_uuid, mig_uuid

from dist_trainer.monitor.gpu.pci import has_nvidia_gpu
from dist_trainer.records import EVENTS_FILE, DeviceSample, Event, read_records, samples_file

ROOT = Path(__file__).parents[2]
MONITOR = (sys.executable, "-m", "dist_trainer", "monitor", "--interval", "0.02", "--output")


@dataclass(frozen=True)
class Watched:
    status: int
    out: str
    err: str
    run_dir: Path

    def samples(self, source: str) -> list[DeviceSample]:
        return list(read_records(self.run_dir / "records" / samples_file(source), DeviceSample))

    @property
    def sources(self) -> list[str]:
        paths = (self.run_dir / "records").glob("memory-samples-*.jsonl")
        return sorted(path.stem.removeprefix("memory-samples-") for path in paths)

    def events(self, kind: str) -> list[Event]:
        return [event for event in read_records(self.run_dir / "records" / EVENTS_FILE, Event) if event.kind == kind]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


def watch(run_dir: Path, command: Sequence[str], environ: Mapping[str, str] | None = None, **how: str) -> Watched:
    done = subprocess.run(
        [*MONITOR, str(run_dir), "--", *command],
        env=environment(environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **how,
    )
    return Watched(done.returncode, done.stdout, done.stderr, run_dir)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# The command runs as if alone.


@pytest.mark.parametrize(("code", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_the_exit_status_is_the_commands(tmp_path: Path, code: str, status: int) -> None:
    watched = watch(tmp_path / "run", ["sh", "-c", code])
    assert watched.status == status
    assert [event.facts["status"] for event in watched.events("end")] == [status]


def test_what_goes_in_and_out_is_the_commands_alone(tmp_path: Path) -> None:
    watched = watch(tmp_path / "run", ["sh", "-c", "cat; echo loud >&2"], input="in\n")
    assert watched.out == "in\n"
    assert watched.err.startswith("loud\nmonitor: status 0 after ")


def test_arguments_reach_the_command_as_they_are(tmp_path: Path) -> None:
    words = ["--output", "x", "--", "--local_rank=3", "a b", "-h"]
    watched = watch(tmp_path / "run", [*python("import sys; print(sys.argv[1:])"), *words])
    assert watched.out == f"{words}\n"
    assert json.loads((tmp_path / "run/resolved/launch.json").read_text())["argv"][3:] == words


SIGNALLED = """
import signal, sys, time
seen = []
for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
    signal.signal(getattr(signal, name), lambda number, frame: seen.append(signal.Signals(number).name))
print("ready", flush=True)
end = time.monotonic() + 30
while not seen and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.3)
print(seen, flush=True)
sys.exit(5)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_reaches_the_command_once_and_it_decides_what_follows(tmp_path: Path, number: signal.Signals) -> None:
    command = [*MONITOR, str(tmp_path / "run"), "--", *python(SIGNALLED)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as monitor:
        assert monitor.stdout is not None
        assert monitor.stdout.readline() == "ready\n"
        monitor.send_signal(number)
        assert monitor.stdout.read() == f"['{number.name}']\n"
        assert monitor.wait(30) == 5


def test_ctrl_c_at_a_terminal_reaches_the_command_once(tmp_path: Path) -> None:
    command = [*MONITOR, str(tmp_path / "run"), "--", *python(SIGNALLED)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], command, environment())
    printed = b""
    deadline_s = time.monotonic() + 60
    try:
        while time.monotonic() < deadline_s:
            try:
                part = os.read(terminal, 1000)
            except OSError:
                break
            if b"ready" in part:
                os.write(terminal, b"\x03")
            printed += part
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert b"['SIGINT']" in printed


def test_what_the_command_leaves_running_is_left_running(tmp_path: Path) -> None:
    watched = watch(tmp_path / "run", ["sh", "-c", "sleep 30 >/dev/null 2>&1 & echo $!"])
    pid = int(watched.out)
    os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)


def test_a_command_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    watched = watch(tmp_path / "run", ["no-such-command-here"])
    assert watched.status == 2
    assert watched.err.startswith("dist_trainer: error: no such command")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say which command to watch"),
        (["--interval", "0", "--", "true"], "'0' is not a number of seconds"),
        (["--intervall", "1", "--", "true"], "did you mean --interval?"),
    ],
)
def test_a_mistake_is_one_message(tmp_path: Path, arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "dist_trainer", "monitor", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_another_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "records").mkdir(parents=True)
    watched = watch(tmp_path / "run", ["true"])
    assert watched.status == 2
    assert "another run" in watched.err


def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from dist_trainer.cli import main\n"
        f"assert main(['monitor', '--output', {str(tmp_path / 'run')!r}, '--', 'true']) == 0\n"
        "assert not {'torch', 'deepspeed'} & set(sys.modules)"
    )
    subprocess.run(python(code), env=environment(), check=True, capture_output=True)


# What is written down.


# Holds its bytes from when the other one has its own, too.
HOLD = """
import pathlib, sys, time
held = b"x" * 60_000_000
own, other = map(pathlib.Path, sys.argv[1:])
own.touch()
while not other.exists():
    time.sleep(0.05)
time.sleep(2)
"""


def test_without_a_gpu_the_resident_set_of_the_whole_tree_is_recorded_and_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "hold.py").write_text(HOLD)
    python = f'"{sys.executable}" hold.py'
    watched = watch(tmp_path / "run", ["sh", "-c", f'cd "{tmp_path}"; {python} a b & {python} b a; wait'])
    assert watched.sources == ["host"]
    samples = watched.samples("host")
    assert max(sample.rss_bytes or 0 for sample in samples) > 120_000_000
    assert {sample.device for sample in samples} == {"cpu"}
    assert watched.events("monitor") == []
    assert [event.message.startswith("sh -c") for event in watched.events("start")] == [True]


# A command that makes the driver list one of its own children, and holds still until that was seen.
ON_THE_GPU = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(5)"])
with open(os.environ["NVML_STUB_SCRIPT"], "a") as script:
    script.write(f"process 1 0 {child.pid} 700 compute\\nprocess 1 0 {os.getpid()} 50 both\\nused 1 0 4000\\n")
child.wait()
"""


def test_every_visible_gpu_is_recorded_with_the_bytes_of_the_tree(tmp_path: Path, driver: Driver) -> None:
    script = Script()
    for used_bytes in (1000, 2000, 3000):
        script.gpu(used_bytes=used_bytes, total_bytes=10**10)
    script.process("1", 1, 9999)
    environ = {**driver.environ(script), "CUDA_VISIBLE_DEVICES": "2,1"}
    watched = watch(tmp_path / "run", python(ON_THE_GPU), environ)
    assert watched.status == 0, watched.err
    assert watched.sources == ["gpu-0", "gpu-1"]
    third, second = watched.samples("gpu-0"), watched.samples("gpu-1")
    assert ({sample.device for sample in third}, {sample.device for sample in second}) == ({gpu_uuid(2)}, {gpu_uuid(1)})
    # The baseline of before the command, and what it came to.
    assert second[0].used_bytes == 2000 and max(sample.used_bytes or 0 for sample in second) == 4000
    assert max(sample.process_bytes or 0 for sample in second) == 750
    assert {sample.process_bytes for sample in third} == {None}
    assert max(sample.rss_bytes or 0 for sample in second) > 10**7
    assert "gpu-1  peak 0.0 MB used of 10.00 GB; 0.0 MB by the command" in watched.err
    assert watched.events("monitor") == []


def test_gpus_that_differ_are_all_recorded_where_a_number_may_mean_any(tmp_path: Path, driver: Driver) -> None:
    script = Script()
    script.gpu(name="NVIDIA A100")
    script.gpu(name="NVIDIA T4")
    watched = watch(tmp_path / "run", ["true"], {**driver.environ(script), "CUDA_VISIBLE_DEVICES": "0"})
    assert watched.sources == ["gpu-0", "gpu-1"]
    assert [event.facts["diagnostic"] for event in watched.events("monitor")] == ["visible devices unknown"]
    assert "notice" in watched.err


def test_mig_instances_are_recorded_each_for_itself(tmp_path: Path, driver: Driver) -> None:
    script = Script()
    gpu = script.gpu(used_bytes=9)
    for number, used_bytes in ((1, 4), (2, 5)):
        script.used(script.mig(gpu, total_bytes=10, gpu_instance=number), {0: used_bytes})
    watched = watch(tmp_path / "run", ["true"], {**driver.environ(script), "CUDA_VISIBLE_DEVICES": mig_uuid(0, 1)})
    assert watched.sources == ["gpu-0"]
    assert {(sample.device, sample.used_bytes) for sample in watched.samples("gpu-0")} == {(mig_uuid(0, 1), 5)}


def test_a_gpu_that_is_lost_is_one_event_and_the_others_are_recorded_on(tmp_path: Path, driver: Driver) -> None:
    script = Script()
    first, second = script.gpu(used_bytes=1), script.gpu(used_bytes=2)
    script.error(GPU_IS_LOST, device=first, at=200)
    script.used(second, {500: 7})
    watched = watch(tmp_path / "run", ["sleep", "1"], driver.environ(script))
    assert watched.status == 0
    diagnostics = [(event.facts["diagnostic"], event.facts["device"]) for event in watched.events("monitor")]
    assert diagnostics == [("gpu lost", gpu_uuid(0))]
    assert watched.samples("gpu-1")[-1].used_bytes == 7


def test_a_driver_that_is_not_loaded_is_one_event_and_the_host_is_recorded(tmp_path: Path, driver: Driver) -> None:
    script = Script()
    script.error(DRIVER_NOT_LOADED, INIT)
    watched = watch(tmp_path / "run", ["sleep", "0.2"], driver.environ(script))
    assert (watched.status, watched.sources) == (0, ["host"])
    assert [event.facts["diagnostic"] for event in watched.events("monitor")] == ["driver not loaded"]


def test_processes_that_do_not_exist_here_tell_of_a_container(tmp_path: Path, driver: Driver) -> None:
    script = Script()
    script.process(script.gpu(used_bytes=5), 4_194_000, 5)
    watched = watch(tmp_path / "run", ["sleep", "1.2"], driver.environ(script))
    assert [event.facts["diagnostic"] for event in watched.events("monitor")] == ["own processes not visible"]
    assert {sample.process_bytes for sample in watched.samples("gpu-0")} == {None}


@pytest.mark.parametrize(
    ("vendor", "kind", "answer"),
    [("0x10de", "0x030200", True), ("0x10de", "0x040300", False), ("0x8086", "0x030000", False)],
    ids=["a GPU of NVIDIA", "its sound", "another's"],
)
def test_whether_the_host_has_a_gpu_is_read_from_the_pci_bus(
    tmp_path: Path, vendor: str, kind: str, answer: bool
) -> None:
    (tmp_path / "0000:3b:00.0").mkdir()
    (tmp_path / "0000:3b:00.0" / "vendor").write_text(f"{vendor}\n")
    (tmp_path / "0000:3b:00.0" / "class").write_text(f"{kind}\n")
    assert has_nvidia_gpu(tmp_path) is answer
    assert has_nvidia_gpu(tmp_path / "nowhere") is False
