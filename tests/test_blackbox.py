"""What a rank is doing, read by another process also after the rank was killed."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_trainer import blackbox
from dist_trainer.blackbox import BLACKBOX_FD, PHASES

RANK = """
import os, signal, time
from dist_trainer import blackbox
box = blackbox.own()
box.enter_micro_batch("waiting for data", step=7, micro_batch=3)
box.enter("backward")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = blackbox.new_memory()
    yield descriptor
    os.close(descriptor)


def box_of(descriptor: int) -> blackbox.BlackBox:
    return blackbox.of({BLACKBOX_FD: str(descriptor)})


def words(descriptor: int) -> str:
    moment = blackbox.read(descriptor)
    assert moment is not None
    return moment.in_words()


def test_where_a_rank_was_is_readable_after_it_was_killed(memory: int) -> None:
    environ = {**os.environ, BLACKBOX_FD: str(memory)}
    killed = subprocess.run([sys.executable, "-c", RANK], env=environ, pass_fds=[memory], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert words(memory) == "in step 7, micro batch 3, backward"


def test_every_phase_is_known_to_the_reader(memory: int) -> None:
    box = box_of(memory)
    for phase in PHASES:
        box.enter(phase)
        moment = blackbox.read(memory)
        assert moment is not None and moment.phase == phase


def test_start_up_has_no_step_and_between_micro_batches_there_is_none(memory: int) -> None:
    box = box_of(memory)
    box.enter("engine")
    assert words(memory) == "at its start (engine)"
    box.enter_micro_batch("waiting for data", step=1, micro_batch=1)
    assert words(memory) == "in step 1, micro batch 1, waiting for data"
    box.enter_micro_batch("after the update", step=1, micro_batch=0)
    assert words(memory) == "in step 1, after the update"
    box.enter("save")
    assert words(memory) == "in step 1, save"
    box.enter("evaluation")
    assert words(memory) == "in step 1, evaluation"


@pytest.mark.parametrize(
    "record", [b"", b"\0" * 32, struct.pack("<qqqq", 1, 999, 1, 1), struct.pack("<qqqq", 1, 1, -1, 1)]
)
def test_what_no_rank_can_have_meant_is_not_told(memory: int, record: bytes) -> None:
    os.pwrite(memory, record, 0)
    assert blackbox.read(memory) is None


@pytest.mark.parametrize("number", ["", "x", "-1", "999999", "9" * 40, "²"])
def test_without_a_guard_a_rank_writes_all_the_same(number: str) -> None:
    blackbox.of({BLACKBOX_FD: number}).enter("backward")


def test_another_file_that_has_the_number_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"mine" * 2000)
    with (tmp_path / "data").open("r+b") as file:
        blackbox.of({BLACKBOX_FD: str(file.fileno())}).enter("backward")
    assert (tmp_path / "data").read_bytes() == b"mine" * 2000
