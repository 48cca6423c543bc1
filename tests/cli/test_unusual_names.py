"""Names of files that are no UTF-8, and of any language, with every command and whatever a terminal can show."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from plans import make_plan
from ranks import BRISK, losses, mini_config
from run_folders import make_gpu_run

import slurm
from dist_trainer.records import EVENTS_FILE, Event, read_records

ROOT = Path(__file__).parents[2]
NAME = os.fsdecode(b"\xe9t\xff \xe6\x95\xb0")
ASCII = {"PYTHONIOENCODING": "ascii"}
LATIN = {"PYTHONIOENCODING": "latin-1:strict"}
# Where names too are read as ASCII.
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TERMINALS = pytest.mark.parametrize("terminal", [ASCII, LATIN, PLAIN_C], ids=["ascii", "latin-1", "plain C"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with such a name, in which there is a run, text, and a run file with such names."""
    folder = tmp_path / NAME
    make_gpu_run(folder / f"run{NAME}", plan=make_plan(allocated=1, used=2_600_000_000), name="größe 数 ✓")
    text = folder / f"text{NAME}"
    text.mkdir()
    for number in range(8):
        (text / f"{NAME}{number}.txt").write_text("größe 数 ✓ word\n" * 100, encoding="utf-8")
    shutil.copy(ROOT / "configs" / "tiny.yaml", folder / f"{NAME}.yaml")
    return folder


def start(folder: Path, *words: str, terminal: Mapping[str, str], status: int = 0) -> tuple[bytes, bytes]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "XDG_CACHE_HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "dist_trainer", *words],
        cwd=folder,
        env={**kept, "CUDA_VISIBLE_DEVICES": "", **terminal},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (status, False), done.stderr.decode(errors="replace")
    return done.stdout, done.stderr


def prepare(folder: Path) -> None:
    words = ("--input", f"text{NAME}", "--output", "größe", "--vocab-size", "300")
    start(folder, "data", "prepare", *words, terminal=ASCII)


@TERMINALS
def test_a_report_is_written_and_shown(folder: Path, terminal: Mapping[str, str]) -> None:
    run = f"run{NAME}"
    out, _ = start(folder, "report", run, "--compare", run, "--baseline", run, terminal=terminal)
    assert [line.rpartition(b"/")[2] for line in out.splitlines()[-2:]] == [b"report.html", b"report.md"]
    assert b"run\xe9t\xff" in out
    html, text = ((folder / run / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for page in (html, text):
        assert "größe 数 ✓" in page
    assert (r"run\xe9t\xff \xe6\x95\xb0" if terminal is PLAIN_C else r"run\xe9t\xff 数") in html


@TERMINALS
def test_text_is_prepared(folder: Path, terminal: Mapping[str, str]) -> None:
    words = ("data", "prepare", "--input", f"text{NAME}", "--output", f"out{NAME}", "--vocab-size", "300")
    out, _ = start(folder, *words, terminal=terminal)
    assert out.startswith(b"out\xe9t\xff ")
    assert (folder / f"out{NAME}" / "train.bin").exists()
    (folder / f"text{NAME}" / "bad.txt").write_bytes(b"\xff")
    _, err = start(folder, *words[:-3], f"again{NAME}", "--vocab-size", "300", terminal=terminal, status=2)
    assert b"not UTF-8" in err


@TERMINALS
def test_a_command_to_start_by_hand_has_the_bytes_of_the_names(folder: Path, terminal: Mapping[str, str]) -> None:
    words = ("--run-dir", f"new{NAME}", "--config", f"{NAME}.yaml")
    out, _ = start(folder, "launch", "--dry-run", *words, terminal=terminal)
    read = subprocess.run(["sh", "-c", b"printf '%s\\0' " + out], capture_output=True, check=True).stdout.split(b"\0")
    assert os.fsencode(f"new{NAME}") in read
    assert os.fsencode(f"{NAME}.yaml") in read
    out, _ = start(folder, "slurm", "submit", "--dry-run", "--gpus-per-node", "2", *words, terminal=terminal)
    assert os.fsencode(f"new{NAME}") in out


@TERMINALS
def test_what_is_not_there_is_named(folder: Path, terminal: Mapping[str, str]) -> None:
    for words in (
        ("launch", "--dry-run", "--config", f"no{NAME}.yaml"),
        ("plan", "--ds", f"no{NAME}.json"),
        ("report", f"no{NAME}"),
        ("slurm", "lint", f"no{NAME}"),
        ("slurm", "status", f"no{NAME}"),
        (f"no{NAME}",),
    ):
        out, err = start(folder, *words, terminal=terminal, status=2)
        assert out == b""
        assert err.count(b"dist_trainer: error: ") == 1
        assert rb"\xe9t" in err or rb"\udce9t" in err


@TERMINALS
def test_a_command_is_watched(folder: Path, terminal: Mapping[str, str]) -> None:
    start(folder, "monitor", "--output", f"seen{NAME}", "--", "echo", NAME, terminal=terminal)
    events = list(read_records(folder / f"seen{NAME}" / "records" / EVENTS_FILE, Event))
    assert [event.kind for event in events] == ["start", "end"]
    start(folder, "report", f"seen{NAME}", terminal=terminal)
    text = (folder / f"seen{NAME}" / "report.md").read_text(encoding="utf-8")
    assert "cannot be read" not in text
    assert "echo" in text


@TERMINALS
def test_the_doctor_looks(folder: Path, terminal: Mapping[str, str]) -> None:
    words = ("doctor", "--run-dir", f"new{NAME}", "--config", f"{NAME}.yaml", "--nproc-per-node", "1")
    start(folder, *words, terminal=terminal)
    out, _ = start(folder, *words, "--json", terminal=terminal)
    assert json.loads(out)["examination"]


@pytest.mark.cluster
@pytest.mark.integration
def test_a_job_runs_to_its_end(folder: Path, slurm_environ: dict[str, str]) -> None:
    run = ("--config", str(mini_config(folder)), "--max-steps", "1", "--set", "data.source=größe")
    prepare(folder)
    terminal = {**slurm_environ, **ASCII}
    words = ("--run-dir", f"new{NAME}", "--ntasks", "1", "--time", "2", *run)
    out, _ = start(folder, "slurm", "submit", *words, terminal=terminal)
    assert b"new\xe9t\xff" in out
    out, _ = start(folder, "slurm", "status", f"new{NAME}", "--json", terminal=terminal)
    job_id = json.loads(out)[0]["job_id"]
    slurm.wait_for_job(slurm_environ, job_id)
    out, _ = start(folder, "slurm", "status", f"new{NAME}", terminal=terminal)
    assert b"the run came to its end" in out
    # What a rank printed, through its guard.
    assert b"\nrun        new\xe9t\xff" in (folder / f"new{NAME}" / "logs" / f"slurm-{job_id}.out").read_bytes()


@pytest.mark.integration
def test_a_run_trains_and_goes_on_in_such_a_folder(folder: Path) -> None:
    words = ("--nproc-per-node", "2", "--config", str(mini_config(folder)), "--run-dir", f"new{NAME}", *BRISK)
    prepare(folder)
    words = (*words, "--set", "data.source=größe", "--set", "checkpoints.at_end=true")
    out, _ = start(folder, "launch", "--launcher", "torchrun", *words, "--max-steps", "3", terminal=ASCII)
    assert b"new\xe9t\xff" in out
    start(folder, "launch", "--launcher", "torchrun", *words, "--max-steps", "5", terminal=LATIN)
    assert len(losses(folder / f"new{NAME}")) == 5
    events = list(read_records(folder / f"new{NAME}" / "records" / EVENTS_FILE, Event))
    assert [event.kind for event in events].count("start") == 2
    assert "resume" in [event.kind for event in events]
    start(folder, "report", f"new{NAME}", terminal=ASCII)
    assert "cannot be read" not in (folder / f"new{NAME}" / "report.md").read_text(encoding="utf-8")


def test_a_rank_that_cannot_start_and_a_run_that_fails_say_the_name(folder: Path) -> None:
    _, err = start(folder, "train", "--set", f"data.source=no{NAME}", terminal=ASCII, status=2)
    assert rb"no\xe9t\xff" in err or rb"no\udce9t\udcff" in err
    run_dir = f"new{NAME}"
    _, err = start(folder, "train", "--run-dir", run_dir, "--resume", f"no{NAME}", terminal=ASCII, status=2)
    assert rb"no\xe9t\xff" in err or rb"no\udce9t\udcff" in err


@pytest.fixture
def progress() -> Iterator[bytes]:
    """What a progress bar shows on a terminal that has ASCII alone."""
    program = (
        "from dist_trainer.encoding import set_up_streams; set_up_streams()\n"
        "from dist_trainer.data.progress import byte_progress\n"
        "with byte_progress('größe', 100, enabled=True) as advance: advance(60)\n"
    )
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", **ASCII}
    done = subprocess.run([sys.executable, "-c", program], env=environ, stderr=theirs, check=False)
    os.close(theirs)
    shown = os.read(ours, 2**16)
    os.close(ours)
    assert done.returncode == 0, shown
    yield shown


def test_a_progress_bar_is_drawn_with_what_the_terminal_has(progress: bytes) -> None:
    assert progress.isascii()
    assert rb"gr\xf6\xdfe" in progress
    assert b"60/100 bytes" in progress
