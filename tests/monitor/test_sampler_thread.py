from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.monitor.gpu.diagnostics import Diagnostic
from dist_trainer.monitor.rank import RankSampler
from dist_trainer.monitor.sampler import THREAD_NAME, Sampler
from dist_trainer.monitor.series import Series
from dist_trainer.records import EVENTS_FILE, DeviceSample, Event, read_records, samples_file


class Scripted:
    """A source whose bytes are what `used_bytes` says of the number of the look; it notes when it was looked at."""

    device = "GPU-x"
    name = "scripted"

    def __init__(self, used_bytes: Callable[[int], int | None]) -> None:
        self.used_bytes = used_bytes
        self.looked_s: list[float] = []
        self.full: list[bool] = []
        self.is_closed = False

    def look(self, *, is_full: bool) -> DeviceSample:
        used_bytes = self.used_bytes(len(self.looked_s))
        self.looked_s.append(time.monotonic())
        self.full.append(is_full)
        return DeviceSample("h", self.device, self.looked_s[-1], time.time(), used_bytes=used_bytes)

    def close(self) -> None:
        self.is_closed = True


def wait_for(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.005)


def lasts(path: Path) -> list[bool]:
    return [sample.is_last for sample in read_records(path, DeviceSample)]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def test_the_first_look_and_the_last_are_full(tmp_path: Path) -> None:
    source = Scripted(lambda look: 5)
    sampler = Sampler([Series(source, tmp_path / "s.jsonl")], 0.02, lambda diagnostic: None)
    sampler.start()
    wait_for(lambda: len(source.looked_s) > 10)
    sampler.stop()
    assert (source.full[0], source.full[-1], source.is_closed) == (True, True, True)
    assert source.full.count(True) < len(source.full)


def test_the_last_look_is_marked_and_no_other(tmp_path: Path) -> None:
    sampler = Sampler([Series(source := Scripted(lambda look: 5), tmp_path / "s.jsonl")], 0.01, lambda diagnostic: None)
    sampler.start()
    wait_for(lambda: len(source.looked_s) > 5)
    assert not any(lasts(tmp_path / "s.jsonl"))
    sampler.stop()
    *others, last = lasts(tmp_path / "s.jsonl")
    assert last and not any(others)


def test_a_look_that_failed_at_the_end_leaves_no_other_marked_as_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Scripted(lambda look: 5)
    series = Series(source, tmp_path / "s.jsonl")
    series.look(is_full=True)
    monkeypatch.setattr(source, "look", lambda *, is_full: None)
    series.look(is_full=True)
    series.close()
    assert lasts(tmp_path / "s.jsonl") == [False]


def test_looks_that_a_slow_driver_made_late_are_skipped_and_not_made_up_for() -> None:
    def slow(look: int) -> int:
        time.sleep(0.3 if look == 2 else 0)
        return 5

    source = Scripted(slow)
    sampler = Sampler([Series(source, None)], 0.02, lambda diagnostic: None)
    sampler.start()
    wait_for(lambda: len(source.looked_s) >= 12)
    sampler.stop()
    after_the_slow_one = source.looked_s[2:-1]
    passed_s = after_the_slow_one[-1] - after_the_slow_one[0]
    # One a place on the grid, whatever the machine is busy with; made up for, it would be fourteen more.
    assert len(after_the_slow_one) <= passed_s / 0.02 + 2


def test_the_peak_can_be_read_while_the_thread_runs_and_is_in_the_file(tmp_path: Path) -> None:
    source = Scripted(lambda look: 9 if look == 3 else 2)
    series = Series(source, tmp_path / "s.jsonl")
    sampler = Sampler([series], 0.01, lambda diagnostic: None)
    sampler.start()
    wait_for(lambda: len(source.looked_s) > 5)
    assert series.peak_used_bytes == 9
    # Before anything is stopped or flushed.
    assert max(one.used_bytes or 0 for one in read_records(tmp_path / "s.jsonl", DeviceSample)) == 9
    sampler.stop()


def test_no_thread_is_left_after_the_end(tmp_path: Path) -> None:
    with RankSampler(tmp_path, 0, None, 0.01):
        assert [thread.daemon for thread in threads()] == [True]
    assert threads() == []


def test_no_thread_is_left_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RankSampler(tmp_path, 0, None, 0.01):
        raise ZeroDivisionError
    assert threads() == []


def test_stopping_twice_is_stopping(tmp_path: Path) -> None:
    with RankSampler(tmp_path, 0, None, 0.01) as sampler:
        sampler.stop()
    assert threads() == []


def test_a_driver_that_hangs_does_not_keep_a_run_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_trainer.monitor.sampler.STOP_LIMIT_S", 0.05)
    answer = threading.Event()

    def hang(look: int) -> int:
        answer.wait(20)
        return 5

    sampler = Sampler([Series(Scripted(hang), tmp_path / "s.jsonl")], 0.01, lambda diagnostic: None)
    sampler.start()
    (thread,) = threads()
    started_s = time.monotonic()
    sampler.stop()
    assert time.monotonic() - started_s < 10
    assert lasts(tmp_path / "s.jsonl") == []
    answer.set()
    thread.join(20)
    assert threads() == []


def test_whatever_stops_the_thread_is_one_event_and_no_more() -> None:
    def fail(look: int) -> int:
        raise OSError(28, "No space left on device")

    said: list[Diagnostic] = []
    sampler = Sampler([Series(Scripted(fail), None)], 0.01, said.append)
    sampler.start()
    wait_for(lambda: not threads())
    sampler.stop()
    assert [diagnostic.kind for diagnostic in said] == ["sampler failed"]
    assert "No space left" in said[0].message


def test_a_cpu_rank_samples_its_resident_set_and_says_nothing(tmp_path: Path) -> None:
    with RankSampler(tmp_path, 2, None, 0.01) as sampler:
        wait_for(lambda: (tmp_path / samples_file("rank-2")).stat().st_size > 0)
        sampler.at_step_edge()
        assert (sampler.device, sampler.peak_used_bytes) == ("cpu", None)
    samples = list(read_records(tmp_path / samples_file("rank-2"), DeviceSample))
    assert {sample.device for sample in samples} == {"cpu"}
    assert all(sample.rss_bytes is not None and sample.used_bytes is None for sample in samples)
    assert list(read_records(tmp_path / EVENTS_FILE, Event)) == []


def test_samples_say_which_start_of_the_run_they_are_of_and_which_phase(tmp_path: Path) -> None:
    with RankSampler(tmp_path, 0, None, 3600.0, start_id=17) as sampler:
        path = tmp_path / samples_file("rank-0")
        wait_for(lambda: path.stat().st_size > 0)
        sampler.begin_phase("short")
        sampler.sampler.look(is_full=False)
    samples = list(read_records(path, DeviceSample))
    assert [sample.phase for sample in samples] == [None, "short", "short"]
    assert {sample.start_id for sample in samples} == {17}


def test_each_line_is_a_whole_object_with_both_clocks(tmp_path: Path) -> None:
    with RankSampler(tmp_path, 0, None, 0.01):
        wait_for(lambda: (tmp_path / samples_file("rank-0")).stat().st_size > 0)
    for line in (tmp_path / samples_file("rank-0")).read_text().splitlines():
        assert {"monotonic_s", "time_s", "host", "device"} <= set(json.loads(line))
