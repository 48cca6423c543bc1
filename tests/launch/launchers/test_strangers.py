"""Another user of the host, before, during and after the start of a run: reads what can be read, answers where a guard
asks, says what a guard would say, and comes ten thousand times.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from as_another_user import all_that_can_be_read, as_another_user, beside_another_user, command_lines, needs_root

from dist_trainer.launch.guards.proof import MAGIC
from dist_trainer.launch.hosts.run_secret import VARIABLE, RunSecret

pytestmark = pytest.mark.integration

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
GUARD = "dist_trainer.launch.guards.rank_guard"
LIMIT_S = 120
OF_THE_USER = "only-the-user-may-know-this"
OLD_HELLO = {"kind": "hello", "rank": 0, "local_rank": 0, "host": "there"}


def start(out_dir: Path, *switches: str) -> subprocess.Popen[str]:
    out_dir.mkdir()
    words = ["--launcher=torchrun", "--nproc-per-node=2", "--env=HF_TOKEN", *switches, "--", str(out_dir), "wait"]
    path = os.pathsep.join([str(ROOT), str(HERE)])
    return subprocess.Popen(
        [sys.executable, "-m", "launch_echo", *words],
        env=os.environ | {"PYTHONPATH": path, "HF_TOKEN": OF_THE_USER},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def of_this_run(out_dir: str) -> tuple[list[int], tuple[str, int] | None]:
    """The processes below that which was started for the folder, and the address that stands in their command lines."""
    lines = command_lines()
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in lines}
    found = {pid for pid, words in lines.items() if "launch_echo" in words and out_dir in words}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    address = next((words[words.index(GUARD) + 1] for pid in found if GUARD in (words := lines[pid])), None)
    if address is None:
        return sorted(found), None
    host, _, port = address.rpartition(":")
    return sorted(found), (host, int(port))


def attack(out_dir: str) -> tuple[str, int, list[str]]:
    """Until the address is known and closed: all that could be read, how often it came in, what it was answered."""
    deadline_s = time.monotonic() + LIMIT_S
    address, seen, answers, num_connections = None, "", [], 0
    said = [b"", b"[" * 200_000, b'{"token": "\\ud800"}\n', b"x" * (1 << 20), MAGIC + os.urandom(64)]
    with ExitStack() as stack:
        while time.monotonic() < deadline_s and num_connections < 3000:
            if address is None or num_connections % 500 == 0:
                with suppress(OSError, ValueError):
                    pids, address = of_this_run(out_dir)
                    seen += all_that_can_be_read(pids)
                if address is None:
                    time.sleep(0.05)
                    continue
                for word in set(seen.replace("\0", "\n").split()):
                    if len(word) > 15 and num_connections < 200:
                        said.append(json.dumps(OLD_HELLO | {"token": word}).encode() + b"\n")
            num_connections += 1
            try:
                connection = stack.enter_context(socket.create_connection(address, timeout=5))
                connection.sendall(said[num_connections % len(said)])
                if num_connections % 100 == 0:
                    answers.append(connection.recv(1 << 16).hex())
            except ConnectionRefusedError:
                break
            except OSError:
                continue
    return seen, num_connections, answers


def come_again(out_dir: str) -> tuple[str, str]:
    """In the run: what can be read, and what becomes of a connection."""
    pids, address = of_this_run(out_dir)
    assert address is not None
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError as error:
        return all_that_can_be_read(pids), type(error).__name__
    return all_that_can_be_read(pids), "let in"


@needs_root
def test_another_user_neither_ends_nor_joins_a_run_and_learns_nothing(tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    try:
        with beside_another_user(attack, str(out_dir)) as answer:
            process = start(out_dir)
            paths = [out_dir / f"rank-{rank}.json" for rank in range(2)]
            deadline_s = time.monotonic() + LIMIT_S
            while not all(path.exists() for path in paths):
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            seen, num_connections, answers = answer()
        seen_later, then = as_another_user(come_again, str(out_dir))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    secret = secret_of(process.pid)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert num_connections > 0
    assert then == "ConnectionRefusedError"
    assert text.splitlines() == [
        "dist_trainer: a connection from 127.0.0.1 did not know this run's secret, and was closed",
        "dist_trainer: interrupted before the first step (SIGTERM)",
    ]
    for kept in (OF_THE_USER, secret):
        assert kept not in seen + seen_later + "".join(answers) + text
        assert kept not in (out_dir / "resolved" / "launch.json").read_text()
    assert json.loads(paths[0].read_text())["argv"][1] == str(out_dir)


def secret_of(pid: int) -> str:
    """As this user can read it of what `launch` has started."""
    (launcher,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[:1]
    environ = Path(f"/proc/{launcher}/environ").read_bytes().decode().split("\0")
    return next(line.partition("=")[2] for line in environ if line.startswith(f"{VARIABLE}="))


def answer_as_launch(port: int, said: bytes) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            connection, _ = server.accept()
            with suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(said)
                connection.recv(1 << 16)


@needs_root
@pytest.mark.parametrize("kind", ["a job", "a proof"])
def test_a_guard_runs_nothing_for_who_answers_at_its_address(kind: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    job = {
        "kind": "job",
        "rank": 0,
        "argv": ["touch", str(tmp_path / "owned")],
        "cwd": "/",
        "env": {},
        "local_rank": 0,
        "local_world_size": 1,
        "master_addr": "127.0.0.1",
        "master_port": None,
        "finds_port": False,
        "logs_dir": None,
        "is_local": True,
        "peers": [],
    }
    line = json.dumps(job).encode() + b"\n"
    said = line if kind == "a job" else os.urandom(64) + len(line).to_bytes(4, "big") + bytes(32) + line
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    with beside_another_user(answer_as_launch, port, said):
        guard = subprocess.run(
            [sys.executable, "-m", GUARD, f"127.0.0.1:{port}", "environment"],
            env=os.environ | place | RunSecret(os.urandom(32)).variables({}) | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert guard.returncode == 2, guard.stderr
    assert "does not know this run's secret" in guard.stderr
    assert not (tmp_path / "owned").exists()
