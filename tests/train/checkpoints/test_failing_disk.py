"""Runs of real ranks whose disk is full, read-only, slow or gone while they save: they go on and tell, or stop."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ranks import TORCHRUN, Ended, mini_config
from small_disks import in_own_mounts

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.folder import LATEST_FILE, saves
from dist_trainer.checkpoints.verify import damages
from dist_trainer.records import EVENTS_FILE, Event, read_records, read_steps

pytestmark = pytest.mark.integration

RANK = str(Path(__file__).with_name("failing_rank.py"))
# Room for several checkpoints. What lies there when the run has ended is kept, because the mount ends with it.
SCRIPT = """
mkdir -p run/checkpoints && mount -t tmpfs -o size=20m tmpfs run/checkpoints || exit 99
"$@"
status=$?
cp -r run/checkpoints kept
exit $status
"""
# What is said of the saves that fail, by their steps.
TOLD = {
    4: "there is no room for the checkpoint of step 4",
    6: "the disk is full",
    10: "the file system is read-only",
    18: "a folder or file is gone",
}


def trained(folder: Path, world_size: int, *switches: str) -> Ended:
    words = ["train", "--config", str(mini_config(folder)), "--run-dir", "run"]
    words += ["--set", "checkpoints.every_steps=2", "--set", "checkpoints.when_busy=skip", *switches]
    ranks = [sys.executable] if world_size == 1 else [*TORCHRUN, str(world_size)]
    return in_own_mounts(SCRIPT, [*ranks, RANK, *words], cwd=folder)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_goes_on_and_saves_again_as_soon_as_its_disk_lets_it(tmp_path: Path, world_size: int) -> None:
    ended = trained(tmp_path, world_size)
    assert ended.status == 0, ended.output
    records = tmp_path / "run" / "records"
    assert [step.step for step in read_steps(records)] == list(range(1, 21))
    events = list(read_records(records / EVENTS_FILE, Event))
    # While the slow one of step 14 is written, that of step 16 is left out.
    assert [event.facts["step"] for event in events if event.kind == "checkpoint"] == [2, 8, 12, 14, 20]
    told = {event.facts["step"]: event.message for event in events if "was not saved" in event.message}
    assert sorted(told) == sorted(TOLD)
    for step, problem in TOLD.items():
        assert told[step].startswith(f"the checkpoint of step {step} was not saved: ") and problem in told[step]
        assert ended.output.count(f"notice     {told[step]}") == 1
    assert "Traceback" not in ended.output

    seen: dict[int, Any] = {}
    for line in (tmp_path / "run" / "seen.jsonl").read_text().splitlines():
        seen[json.loads(line)["step"]] = json.loads(line)
    for failed in (4, 6, 10):
        before, after = seen[failed], seen[failed + 2]
        assert (after["saves"], after["latest"]) == (before["saves"], before["latest"])
        assert after["leftovers"] == [], "a save that failed leaves nothing"
    assert not [damage for one in seen.values() for damage in one["damages"]]
    assert seen[20]["saves"] == [], "the folder is gone"
    (last,) = saves(tmp_path / "kept")
    assert last.name == "step-20" and not list(damages(last, index.read(last)))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_is_to_stop_then_does_so_once_and_leaves_the_last_whole_one(tmp_path: Path, world_size: int) -> None:
    ended = trained(tmp_path, world_size, "--set", "checkpoints.on_failure=stop")
    assert ended.status == 1, ended.output
    assert ended.output.count("dist_trainer: error: ") == 1
    assert "the checkpoint of step 4 was not saved: there is no room for the checkpoint of step 4" in ended.output
    assert "checkpoints.on_failure" in ended.output
    # torchrun has one of its own.
    assert world_size == 2 or "Traceback" not in ended.output
    (whole,) = saves(tmp_path / "kept")
    assert whole.name == (tmp_path / "kept" / LATEST_FILE).read_text() == "step-2"
    assert not list(damages(whole, index.read(whole)))
    errors = [
        one.message for one in read_records(tmp_path / "run" / "records" / EVENTS_FILE, Event) if one.kind == "error"
    ]
    assert any("was not saved" in message for message in errors)
