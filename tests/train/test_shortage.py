from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import bin_environment, mini_config, run
from small_disks import in_own_mounts

from dist_trainer.errors import RunError
from dist_trainer.train.shortage import out_of_memory, said_plainly


def test_what_torch_and_numpy_really_say_of_memory_is_known_with_the_bytes_that_were_asked_for() -> None:
    for ask, words in (
        (lambda: torch.empty(10**15, dtype=torch.uint8), "1000000.00 GB"),
        (lambda: np.empty(900 * 2**40, dtype=np.uint8), "989560.46 GB"),
        (lambda: bytearray(10**15), None),
    ):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            ask()
        told = out_of_memory(raised.value)
        assert told is not None and told.problem == "the host is out of memory"
        assert words is None or str(told.expected).startswith(words)
        assert "--micro-batch" in str(told.hint)


def test_a_gpus_is_said_with_torchs_own_account_of_it() -> None:
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB\nmore"
    )
    told = out_of_memory(error)
    assert told is not None
    assert told.problem == "the GPU is out of memory"
    assert told.expected == "2.15 GB more, in one piece"
    assert str(told.found).endswith("79.10 GiB")


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    assert out_of_memory(RuntimeError("shapes do not match")) is None
    for error in (RuntimeError("shapes do not match"), ConnectionResetError(errno.ECONNRESET, "reset"), KeyError("a")):
        with pytest.raises(type(error)) as raised, said_plainly(tmp_path):
            raise error
        assert raised.value is error


def test_a_disk_is_said_with_the_runs_folder_where_the_error_names_no_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the disk is full") as raised, said_plainly(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raised.value.where == str(tmp_path)


@pytest.mark.integration
def test_a_checkpoint_that_has_no_room_is_said_with_its_bytes_before_it_is_written(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dist_trainer", "train", "--config", str(mini_config(tmp_path))]
    command += ["--set", "checkpoints.at_end=true", "--max-steps", "1", "--run-dir", "/mnt/run"]
    ended = in_own_mounts('mount -t tmpfs -o size=600k tmpfs /mnt && exec "$@"', command, cwd=tmp_path)
    assert ended.status == 0, ended.output
    assert ended.output.count("the checkpoint of step 1 was not saved: there is no room for the checkpoint") == 1
    assert "/mnt/run/checkpoints" in ended.output
    command += ["--set", "checkpoints.on_failure=stop"]
    ended = in_own_mounts('mount -t tmpfs -o size=600k tmpfs /mnt && exec "$@"', command, cwd=tmp_path)
    assert ended.status == 1, ended.output
    assert ended.output.count("dist_trainer: error:") == 1
    assert "there is no room for the checkpoint of step 1" in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.integration
def test_memory_that_ends_in_a_rank_is_said_as_that(tmp_path: Path) -> None:
    """What fits the plan's host does not fit the limit that a shell has set."""
    words = f"train --config {mini_config(tmp_path)} --set model.hidden_size=16384 --force --run-dir run"
    command = ["bash", "-c", f"ulimit -v 6000000; exec {sys.executable} -m dist_trainer {words}"]
    ended = run(command, cwd=tmp_path, environ=bin_environment())
    assert ended.status == 1, ended.output
    assert "the host is out of memory" in ended.output
    assert "more, in one piece" in ended.output
