"""One cell measured: by a real launch, and what is read of what a run leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import sample, write_lines

from dist_trainer.benchmark.worth.cells import BASELINE, Cell, matrix
from dist_trainer.benchmark.worth.folder import Folder, Settings
from dist_trainer.benchmark.worth.rounds import Turn
from dist_trainer.benchmark.worth.running import command, energy_j, measure, reason
from dist_trainer.records import samples_file

SETTINGS = Settings("tiny", 2, 5, 2, 64, "torchrun", "cpu", "abc")


def small(cell: Cell) -> Cell:
    """The same with two layers and a small vocabulary."""
    run = {**cell.run, "model": {**cell.run["model"], "num_layers": 2, "vocab_size": 512}}
    return replace(cell, run=run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made = Folder(tmp_path_factory.mktemp("results"))
    every = {cell.name: small(cell) for cell in matrix("tiny", num_steps=5, sequence_length=64)}
    broken = replace(every[BASELINE], name="broken", deepspeed={**every[BASELINE].deepspeed, "train_batchsize": 1})
    made.begin(SETTINGS, [every[BASELINE], broken])
    return made


@pytest.mark.integration
def test_a_cell_is_measured_by_a_run_of_its_own(folder: Folder) -> None:
    made = measure(folder, Turn(BASELINE, 0, 0), SETTINGS)
    assert made.failure is None
    assert (len(made.warm_up_s), len(made.step_s), len(made.data_wait_s)) == (2, 3, 3)
    assert made.num_tokens == 2 * 4 * 64
    assert made.loss is not None and 5 < made.loss < 8
    assert made.peak_bytes is not None and made.planned_bytes is not None
    assert abs(made.planned_bytes / made.peak_bytes - 1) < 0.25
    assert made.first_step_s is not None and sum(made.warm_up_s) < made.first_step_s < made.took_s
    assert made.machine.others_share is not None and 0 <= made.machine.others_share <= 1
    assert made.energy_j is None
    assert not folder.logs.exists()


def test_a_cell_that_fails_says_why_and_its_output_is_kept(folder: Folder) -> None:
    made = measure(folder, Turn("broken", 0, 0), SETTINGS)
    assert made.failure == "unknown key"
    assert "train_batchsize" in (folder.logs / "broken-0.log").read_text()


def test_only_the_cell_of_other_seeds_has_another_seed(folder: Folder) -> None:
    assert "--seed" not in command(folder, Turn(BASELINE, 3, 0), SETTINGS, Path("run"))
    words = command(folder, Turn("other-seeds", 3, 0), SETTINGS, Path("run"))
    assert words[words.index("--seed") + 1] == "1003"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("memory  1 GB\ndist_trainer: error: the run does not fit\n  where: memory\n", "the run does not fit"),
        ("dist_trainer: rank 1 was ended by SIGKILL\n", "rank 1 was ended by SIGKILL"),
        ("", "it ended with status 9"),
    ],
)
def test_the_reason_is_the_first_line_of_the_message(text: str, said: str) -> None:
    assert reason(text, 9) == said


def test_energy_is_power_over_time_of_all_gpus(tmp_path: Path) -> None:
    for rank, power_w in ((0, 100.0), (1, 50.0)):
        rows = [sample(float(at), 10**9, power_w=power_w) for at in range(4)]
        write_lines(tmp_path / samples_file(f"rank-{rank}"), rows)
    assert energy_j(tmp_path, 2) == pytest.approx(3 * 150)


def test_where_nobody_tells_the_power_there_is_no_energy(tmp_path: Path) -> None:
    write_lines(tmp_path / samples_file("rank-0"), [sample(float(at), 10**9) for at in range(4)])
    assert energy_j(tmp_path, 1) is None


STOPPED = """
import sys
from pathlib import Path
from dist_trainer.benchmark.worth import running
def words(folder, turn, settings, run_dir):
    program = "import signal, sys, time, pathlib\\n" \\
        "signal.signal(signal.SIGINT, lambda *_: (pathlib.Path(sys.argv[2]).write_text('ended'), sys.exit(130)))\\n" \\
        "pathlib.Path(sys.argv[1]).write_text('up')\\ntime.sleep(60)"
    return [sys.executable, "-c", program, sys.argv[1], sys.argv[2]]
running.command = words
from dist_trainer.benchmark.worth.rounds import Turn
try:
    running.measure(None, Turn("baseline", 0, 0), None)
except KeyboardInterrupt:
    sys.exit(42)
"""


def test_ctrl_c_ends_the_cell_under_way_before_it_ends_the_benchmark(tmp_path: Path) -> None:
    up, ended = tmp_path / "up", tmp_path / "ended"
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(up), str(ended)])
    try:
        for _ in range(600):
            if up.exists():
                break
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 42
    finally:
        process.kill()
        process.wait()
    assert ended.read_text() == "ended"
