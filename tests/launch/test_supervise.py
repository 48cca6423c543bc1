"""How a command is run to its end. Each test supervises in a process of its own, as `launch` does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).parents[2]
SUPERVISE = (
    "import os, sys; from dist_trainer.launch.supervise import supervise\n"
    "sys.exit(supervise(tuple(sys.argv[2:]), os.environ, grace_s=float(sys.argv[1])).status)"
)
LIMIT_S = 60


class Start(Protocol):
    def __call__(self, script: str, grace_s: float = 30.0, *, prefix: Sequence[str] = ()) -> subprocess.Popen[str]: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Supervises a shell's script in the test's folder, and leaves nothing behind where the test fails."""
    with ExitStack() as stack:

        def start(script: str, grace_s: float = 30.0, *, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-c", SUPERVISE, str(grace_s), "bash", "-c", script],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(end, process)
            return process

        yield start


def end(process: subprocess.Popen[str]) -> None:
    """At the first signal, or, where the script takes none, at the second."""
    for _ in range(2):
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(LIMIT_S)


def wait_for(path: Path) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not path.exists():
        assert time.monotonic() < deadline_s, f"{path} was never written"
        time.sleep(0.02)


def is_running(pid_file: Path) -> bool:
    status = Path("/proc", pid_file.read_text().strip(), "stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(autouse=True)
def no_child_stays(tmp_path: Path) -> Iterator[None]:
    """What should have ended and did not fails its test, and ends with it."""
    yield
    if (tmp_path / "child").exists() and is_running(tmp_path / "child"):
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -11 $$", 139)]
)
def test_the_status_is_passed_on(script: str, status: int, start: Start) -> None:
    assert start(script).wait(LIMIT_S) == status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_every_process_of_the_group(number: signal.Signals, start: Start, tmp_path: Path) -> None:
    script = "sleep 300 & echo $! >child; trap 'touch told; exit 1' TERM; touch ready; wait"
    process = start(script)
    wait_for(tmp_path / "ready")
    process.send_signal(number)
    assert process.wait(LIMIT_S) == 128 + number
    assert (tmp_path / "told").exists()
    assert not is_running(tmp_path / "child")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    """As under nohup, and in the background of a shell, where Ctrl-C is for another."""
    ignoring = ("sh", "-c", f"trap '' {number.name.removeprefix('SIG')}; exec \"$@\"", "sh")
    script = "touch ready; while [ ! -e go ]; do sleep 0.05; done; exit 5"
    process = start(script, prefix=ignoring)
    wait_for(tmp_path / "ready")
    process.send_signal(number)
    (tmp_path / "go").touch()
    assert process.wait(LIMIT_S) == 5


def test_these_tests_pass_where_they_are_started_with_signals_ignored() -> None:
    own = f"{__file__}::{test_a_signal_reaches_every_process_of_the_group.__name__}"
    ignoring = "trap '' INT QUIT HUP; exec \"$@\""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", own]
    done = subprocess.run(["sh", "-c", ignoring, "sh", *command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_a_command_that_ends_well_after_a_signal_has_ended_well(start: Start, tmp_path: Path) -> None:
    process = start("trap 'exit 0' TERM; touch ready; while :; do sleep 0.05; done")
    wait_for(tmp_path / "ready")
    process.terminate()
    assert process.wait(LIMIT_S) == 0


def test_what_does_not_end_in_its_grace_is_killed(start: Start, tmp_path: Path) -> None:
    script = "trap '' TERM; setsid sleep 300 & echo $! >child; touch ready; wait"
    process = start(script, grace_s=0.3)
    wait_for(tmp_path / "ready")
    process.terminate()
    assert process.wait(LIMIT_S) == 143
    assert not is_running(tmp_path / "child")


def test_a_second_signal_kills_at_once(start: Start, tmp_path: Path) -> None:
    process = start("trap 'touch told' TERM; touch ready; while :; do sleep 0.05; done", grace_s=3600)
    wait_for(tmp_path / "ready")
    process.terminate()
    wait_for(tmp_path / "told")
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 143


def test_what_a_launcher_leaves_running_is_ended_and_is_a_failure(start: Start, tmp_path: Path) -> None:
    process = start("setsid sleep 300 & echo $! >child; exit 0")
    _, text = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "ended before the ranks did" in text
    assert not is_running(tmp_path / "child")


def test_a_straggler_that_ends_by_itself_is_no_failure(start: Start) -> None:
    process = start("setsid sleep 0.3 & exit 0")
    assert process.wait(LIMIT_S) == 0


def test_when_the_supervisor_is_killed_the_launcher_ends(start: Start, tmp_path: Path) -> None:
    process = start("echo $$ >child; exec sleep 300")
    wait_for(tmp_path / "child")
    process.kill()
    process.wait(LIMIT_S)
    deadline_s = time.monotonic() + LIMIT_S
    while is_running(tmp_path / "child"):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_ctrl_c_interrupts_what_is_done_meanwhile_and_ends_the_command(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, time; from dist_trainer.launch.supervise import supervise\n"
        "def meanwhile():\n"
        "    while not pathlib.Path('child').exists(): time.sleep(0.01)\n"
        "    pathlib.Path('ready').touch()\n"
        "    time.sleep(300)\n"
        "supervise(('bash', '-c', 'sleep 300 & echo $! >child; wait'), os.environ, meanwhile=meanwhile)\n"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environ, stderr=subprocess.PIPE)
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=LIMIT_S)[1]
    assert not is_running(tmp_path / "child")
