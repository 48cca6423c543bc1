"""What ended a run, told from its records without a clock."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from run_folders import event, step, write_lines

from dist_trainer.endings import BOOT_ID, ERROR, Start, cause_among, end_event, interrupted, is_written, last_step
from dist_trainer.endings import show_life as show
from dist_trainer.records import EVENTS_FILE, STEPS_FILE, Event


def error(message: str, rank: int | None = 0, time_s: float = 0.0) -> Event:
    return Event(ERROR, message, rank, time_s)


def test_the_first_rank_that_wrote_is_the_cause_and_launch_counts_over_all() -> None:
    assert cause_among([Event("start", "", 0, 0.0)]) is None
    # The second one's clock was an hour behind.
    first, second = error("own", 1, 7200.0), error("echo", 0, 3600.0)
    assert cause_among([first, second]) == first
    of_launch = error("rank 2 on h was killed by SIGKILL", None, 3600.5)
    assert cause_among([second, of_launch, first]) == of_launch


def test_what_was_written_before_this_start_does_not_count(tmp_path: Path) -> None:
    """Whatever its time: the clock may have been set back since."""
    Start.now(tmp_path).write(error("of an earlier start", time_s=4.0e9))
    start = Start.now(tmp_path)
    assert not start.has_end()
    start.write(end_event(ERROR, "now", 1))
    assert [event.message for event in start.events()] == ["now"]


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    start = Start.now(tmp_path / "gone")
    for attempt in (lambda: start.write(error("x")), lambda: start.speaking().__enter__()):
        try:
            attempt()
        except OSError:
            continue
        raise AssertionError("nothing was raised")
    assert not (tmp_path / "gone").exists()


def _speak(run_dir: Path, number: int) -> None:
    start = Start.now(run_dir)
    with start.speaking():
        before = (run_dir / "said").read_text() if (run_dir / "said").exists() else ""
        time.sleep(0.05)
        (run_dir / "said").write_text(f"{before}{number} ")


def test_one_speaks_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    speakers = [context.Process(target=_speak, args=(tmp_path, number)) for number in range(4)]
    for speaker in speakers:
        speaker.start()
    for speaker in speakers:
        speaker.join()
    assert sorted((tmp_path / "said").read_text().split()) == ["0", "1", "2", "3"]


def test_whether_a_run_goes_on_is_known_by_its_lock(tmp_path: Path) -> None:
    path = tmp_path / EVENTS_FILE
    assert is_written(path, {}) is None
    path.touch()
    assert is_written(path, {}) is None, "its process held no lock, or another host did"
    assert is_written(path, {BOOT_ID: "another host's"}) is None
    context = multiprocessing.get_context("fork")
    facts, told = context.Pipe()
    writer = context.Process(target=lambda: (told.send(show(path)), time.sleep(60)), daemon=True)
    writer.start()
    life = facts.recv()
    assert is_written(path, life) is True
    assert is_written(path, {BOOT_ID: "another host's"}) is True
    writer.kill()
    writer.join()
    assert is_written(path, life) is False


def test_the_newest_step_is_read_from_the_end_of_a_long_file(tmp_path: Path) -> None:
    assert last_step(tmp_path) is None
    write_lines(tmp_path / "records" / STEPS_FILE, (step(number) for number in range(1, 2001)))
    with (tmp_path / "records" / STEPS_FILE).open("a") as file:
        file.write('{"step": 2001, "pha')
    assert last_step(tmp_path) == 2000


def test_an_interruption_in_words_and_what_is_saved(tmp_path: Path) -> None:
    def said() -> str:
        return interrupted(start, "SIGTERM")[0]

    records = tmp_path / "records"
    write_lines(records / STEPS_FILE, [step(8)])
    start = Start.now(tmp_path)
    assert said() == "interrupted before the first step (SIGTERM)", "that step was an earlier start's"
    events = [event("phase", "phase 1: short", 0.0, step=8)]
    write_lines(records / EVENTS_FILE, events)
    write_lines(records / STEPS_FILE, [step(9)])
    assert said() == "interrupted at step 9 (SIGTERM); no step is saved"
    events.append(event("resume", "checkpoints/step-8", 0.0, step=8))
    write_lines(records / EVENTS_FILE, events)
    assert said() == "interrupted at step 9 (SIGTERM); the newest checkpoint is that of step 8"
    events.append(event("checkpoint", "checkpoints/step-9", 0.0, step=9))
    write_lines(records / EVENTS_FILE, events)
    assert interrupted(start, "SIGTERM") == (
        "interrupted at step 9 (SIGTERM), which is saved",
        {"step": 9, "saved_step": 9, "signal": "SIGTERM"},
    )
