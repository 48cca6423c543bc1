"""Real launchers with ranks that echo: what arrives, what comes back, and what is left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import pytest
from literal import any_words

from dist_trainer.endings import cause_among
from dist_trainer.records import EVENTS_FILE, Event, read_records

pytestmark = pytest.mark.integration

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
LIMIT_S = 120
LAUNCHERS = (
    "torchrun",
    "deepspeed",
    pytest.param("mpirun", marks=pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here")),
    *hydra.KINDS,
)


def start(
    launcher: str, out_dir: Path, behaviour: str, *words: str, ignored: Sequence[signal.Signals] = ()
) -> subprocess.Popen[str]:
    out_dir.mkdir()
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI", "PMIX"))}
    search_path = os.pathsep.join([str(ROOT), str(HERE)])
    if launcher in hydra.PROGRAMS:
        bin_dir = hydra.make_mpirun(launcher, out_dir.with_name("bin"))
        launcher, environ["PATH"] = "mpirun", f"{bin_dir}{os.pathsep}{environ['PATH']}"
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "launch_echo",
            f"--launcher={launcher}",
            "--nproc-per-node=2",
            "--",
            str(out_dir),
            behaviour,
            *words,
        ],
        env=environ | {"PYTHONPATH": search_path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in ignored],
    )


def read_rank(out_dir: Path, rank: int) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out_dir / f"rank-{rank}.json").read_text())
    return record


def await_ranks(process: subprocess.Popen[str], out_dir: Path) -> list[dict[str, Any]]:
    """What both ranks wrote, once they have; fails with what `launch` said where it ended before that."""
    paths = [out_dir / f"rank-{rank}.json" for rank in (0, 1)]
    deadline_s = time.monotonic() + LIMIT_S
    while not all(path.exists() for path in paths):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s, f"{[path for path in paths if not path.exists()]} were never written"
        time.sleep(0.05)
    return [read_rank(out_dir, rank) for rank in (0, 1)]


def cause_of(out_dir: Path) -> Event:
    cause = cause_among(list(read_records(out_dir / "records" / EVENTS_FILE, Event)))
    assert cause is not None
    return cause


def assert_gone(out_dir: Path) -> None:
    for rank in (0, 1):
        assert not Path("/proc", str(read_rank(out_dir, rank)["pid"])).exists()


@pytest.mark.parametrize("launcher", LAUNCHERS)
@any_words(num_drawn=2)
def test_every_rank_knows_its_place_and_gets_its_arguments_literally(
    launcher: str, tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    out_dir = tmp_path_factory.mktemp(launcher) / "out"
    process = start(launcher, out_dir, "end", *words)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, text
    records = [read_rank(out_dir, rank) for rank in (0, 1)]
    for rank, record in enumerate(records):
        assert record["argv"] == ["train", str(out_dir), "end", *words]
        assert {**record["rank"], "master_port": None, "source": None} == {
            "rank": rank,
            "world_size": 2,
            "local_rank": rank,
            "local_world_size": 2,
            "master_addr": "127.0.0.1",
            "master_port": None,
            "source": None,
        }
        assert int(record["env"]["OMP_NUM_THREADS"]) >= 1
    assert records[0]["rank"]["master_port"] == records[1]["rank"]["master_port"]
    launch = json.loads((out_dir / "resolved" / "launch.json").read_text())
    assert (launch["launcher"], launch["num_ranks"]) == ("mpirun" if launcher in hydra.PROGRAMS else launcher, 2)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("behaviour", "status", "said"),
    [("exit:3", 3, "status 3"), ("exit:2", 2, "status 2"), ("kill:9", 137, "SIGKILL"), ("kill:11", 139, "SIGSEGV")],
)
def test_the_status_of_the_rank_that_failed_is_the_status(
    launcher: str, behaviour: str, status: int, said: str, tmp_path: Path
) -> None:
    process = start(launcher, tmp_path / "out", behaviour)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == status, text
    assert "Traceback" not in text
    assert len(text.splitlines()) == 1, text
    assert text.startswith("dist_trainer: rank 1 on "), text
    assert said in text
    assert_gone(tmp_path / "out")
    assert text == f"dist_trainer: {cause_of(tmp_path / 'out').message}\n"


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("first", [0, 1])
def test_a_mistake_of_all_ranks_is_said_once_whichever_is_first(launcher: str, first: int, tmp_path: Path) -> None:
    process = start(launcher, tmp_path / "out", f"tell:{first}")
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert re.fullmatch(r"dist_trainer: error: (rank 1: )?no such checkpoint\n", text)
    assert cause_of(tmp_path / "out").message == "no such checkpoint"


def test_a_killed_guard_is_said_once(tmp_path: Path) -> None:
    """torchrun's agent sees it too."""
    process = start("torchrun", tmp_path / "out", "wait")
    rank_1 = await_ranks(process, tmp_path / "out")[1]["pid"]
    os.kill(_parent_of(rank_1), signal.SIGKILL)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 137, text
    assert len(text.splitlines()) == 1, text
    assert text == f"dist_trainer: {cause_of(tmp_path / 'out').message}\n"
    assert_gone(tmp_path / "out")


def test_what_a_rank_has_printed_last_is_shown_and_does_not_command_the_terminal(tmp_path: Path) -> None:
    process = start("torchrun", tmp_path / "out", "exit:3", "\x1b[2J\x1b]0;title\x07all is well", "\x9b31m")
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3
    assert "\\x1b[2J\\x1b]0;title\\x07all is well\n" in text
    assert "\\x9b31m\n" in text
    assert not {"\x1b", "\x07", "\x9b"} & set(text)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_rank(launcher: str, number: signal.Signals, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    process = start(launcher, out_dir, "wait")
    await_ranks(process, out_dir)
    process.send_signal(number)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + number, text
    assert text == f"dist_trainer: interrupted before the first step ({number.name})\n"
    assert_gone(out_dir)
    cause = cause_of(out_dir)
    assert (cause.kind, cause.rank) == ("interrupted", None)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_under_nohup_a_hang_up_ends_nothing(launcher: str, tmp_path: Path) -> None:
    """nohup has SIGHUP ignored, and `&` in a script SIGINT. mpirun's daemons give their processes all signals back."""
    out_dir = tmp_path / "out"
    process = start(launcher, out_dir, "wait", ignored=(signal.SIGHUP, signal.SIGINT))
    ranks = [record["pid"] for record in await_ranks(process, out_dir)]
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    if launcher in ("torchrun", "deepspeed"):
        for pid in (*ranks, *map(_parent_of, ranks)):
            os.kill(pid, signal.SIGHUP)
    time.sleep(1.0)
    assert process.poll() is None
    assert all(Path("/proc", str(pid)).exists() for pid in ranks)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=LIMIT_S)
    told = "dist_trainer: interrupted before the first step (SIGTERM)\n"
    assert (process.returncode, text) == (128 + signal.SIGTERM, told)
    assert_gone(out_dir)


def test_a_killed_launch_py_of_deepspeed_is_a_failure(tmp_path: Path) -> None:
    """DeepSpeed's runner itself would end with 0 and leave the ranks running."""
    out_dir = tmp_path / "out"
    process = start("deepspeed", out_dir, "wait")
    (launch_py,) = {_parent_of(_parent_of(record["pid"])) for record in await_ranks(process, out_dir)}
    os.kill(launch_py, signal.SIGKILL)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + signal.SIGTERM, text
    assert "the launcher's process on" in text
    assert_gone(out_dir)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_when_launch_itself_is_killed_the_ranks_end(launcher: str, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    process = start(launcher, out_dir, "wait")
    pids = [record["pid"] for record in await_ranks(process, out_dir)]
    process.kill()
    process.wait(LIMIT_S)
    deadline_s = time.monotonic() + LIMIT_S
    while any(_is_running(pid) for pid in pids):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    if launcher in hydra.PROGRAMS:
        # Hydra may kill the guard, too, before it has written why.
        return
    events = out_dir / "records" / EVENTS_FILE
    while cause_among(list(read_records(events, Event))) is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert cause_of(out_dir).message.startswith("nothing was heard any more from the launching process")


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here")
def test_mpi_itself_says_the_rank_where_no_variable_does(tmp_path: Path) -> None:
    script = (
        "import os, dist_trainer.cluster.mpi as mpi, dist_trainer.cluster.rank as rank\n"
        "told = {name: value for name, value in os.environ.items() if not name.startswith('OMPI_COMM_WORLD')}\n"
        f"info = rank.find_rank(told, mpi.ask_mpi)\n"
        f"open(os.path.join({str(tmp_path)!r}, str(info.rank)), 'w').write(repr(info))\n"
    )
    environ = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none", sys.executable, "-c", script]
    subprocess.run(command, cwd=ROOT, env=environ, check=True, timeout=LIMIT_S)
    texts = [(tmp_path / str(rank)).read_text() for rank in (0, 1)]
    assert "rank=1, world_size=2, local_rank=1, local_world_size=2, master_addr='127.0.0.1'" in texts[1]
    assert "source='mpi4py'" in texts[0]
    assert texts[0].split("master_port=")[1] == texts[1].split("master_port=")[1]


def _parent_of(pid: int) -> int:
    return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])


def _is_running(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
