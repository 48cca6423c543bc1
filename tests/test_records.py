from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest

from dist_trainer.records import (
    EVENTS_FILE,
    STEPS_FILE,
    DeviceSample,
    Event,
    LeftOut,
    MemoryRecord,
    RecordWriter,
    StepRecord,
    memory_file,
    read_records,
    read_steps,
)

STEP = StepRecord(
    step=1,
    phase="short context",
    loss=7.123456789012345,
    grad_norm=1.5,
    learning_rate=6e-6,
    loss_scale=None,
    num_tokens=4096,
    tokens_per_s=1234.5,
    data_wait_s=0.001,
    step_s=3.25,
    time_s=1.7e9,
)
MEMORY = MemoryRecord(
    step=1,
    rank=0,
    host="h1",
    device="cpu",
    allocated_peak_bytes=None,
    reserved_peak_bytes=None,
    device_used_bytes=None,
    rss_bytes=10**9,
    time_s=1.7e9,
)
EVENT = Event("notice", "two\nlines, and ünïcode", 0, 1.7e9, {"step": 3, "inner": {"list": [1, None]}})


def write(path: Path, *records: StepRecord | MemoryRecord | Event) -> None:
    writer = RecordWriter(path)
    for record in records:
        writer.write(record)
    writer.close()


def steps_with(*pairs: tuple[int, float]) -> list[StepRecord]:
    return [dataclasses.replace(STEP, step=step, loss=loss) for step, loss in pairs]


@pytest.mark.parametrize("record", [STEP, MEMORY, EVENT], ids=["step", "memory", "event"])
def test_what_is_written_is_read_back(tmp_path: Path, record: StepRecord | MemoryRecord | Event) -> None:
    path = tmp_path / "records" / "some.jsonl"
    write(path, record)
    assert list(read_records(path, type(record))) == [record]


def test_each_record_is_one_json_object_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / EVENTS_FILE
    write(path, EVENT, EVENT)
    text = path.read_bytes()
    assert text.endswith(b"\n")
    lines = text.splitlines()
    assert [json.loads(line) for line in lines] == [dataclasses.asdict(EVENT)] * 2


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / STEPS_FILE
    writer = RecordWriter(path)
    assert list(read_records(path, StepRecord)) == []
    writer.write(STEP)
    assert list(read_records(path, StepRecord)) == [STEP]
    writer.close()


def test_a_second_writer_appends(tmp_path: Path) -> None:
    path = tmp_path / STEPS_FILE
    first, second = steps_with((1, 3.0), (2, 2.0))
    write(path, first)
    write(path, second)
    assert list(read_records(path, StepRecord)) == [first, second]


def test_two_open_writers_do_not_overwrite_each_other(tmp_path: Path) -> None:
    path = tmp_path / EVENTS_FILE
    one, other = RecordWriter(path), RecordWriter(path)
    events = [dataclasses.replace(EVENT, rank=rank) for rank in (0, 1, 0)]
    for writer, event in zip((one, other, one), events, strict=True):
        writer.write(event)
    one.close()
    other.close()
    assert list(read_records(path, Event)) == events


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / STEPS_FILE
    first, second = steps_with((1, 3.0), (2, 2.0))
    write(path, first, second)
    whole = path.read_bytes()
    for cut in (1, 20, len(whole) // 2 - 1):
        path.write_bytes(whole[:-cut])
        assert list(read_records(path, StepRecord)) == [first], cut


def test_a_line_cut_off_by_a_crash_spoils_neither_the_line_after_it_nor_the_reading(tmp_path: Path) -> None:
    path = tmp_path / STEPS_FILE
    first, second, again = steps_with((1, 3.0), (2, 2.0), (2, 1.5))
    write(path, first, second)
    path.write_bytes(path.read_bytes()[:-30])
    write(path, again)
    assert list(read_records(path, StepRecord)) == [first, again]


def test_fields_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / STEPS_FILE
    path.write_text(json.dumps({**dataclasses.asdict(STEP), "gpu_temperature": 61}) + "\n", encoding="utf-8")
    assert list(read_records(path, StepRecord)) == [STEP]


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    path = tmp_path / STEPS_FILE
    write(path, dataclasses.replace(STEP, loss=math.nan, grad_norm=math.inf))
    (record,) = read_records(path, StepRecord)
    assert math.isnan(record.loss)
    assert record.grad_norm == math.inf


def test_a_loss_keeps_every_digit(tmp_path: Path) -> None:
    path = tmp_path / STEPS_FILE
    values = [0.1 + 0.2, 1 / 3, 7.123456789012345, 5e-324]
    write(path, *steps_with(*enumerate(values)))
    assert [record.loss for record in read_records(path, StepRecord)] == values


def test_a_file_that_is_not_there_holds_no_records(tmp_path: Path) -> None:
    assert list(read_records(tmp_path / STEPS_FILE, StepRecord)) == []
    assert read_steps(tmp_path) == []


def test_steps_come_in_order_and_the_later_record_of_a_repeated_step_counts(tmp_path: Path) -> None:
    write(tmp_path / STEPS_FILE, *steps_with((1, 5.0), (2, 4.0), (3, 3.0), (2, 40.0), (3, 30.0), (4, 20.0)))
    assert [(record.step, record.loss) for record in read_steps(tmp_path)] == [
        (1, 5.0),
        (2, 40.0),
        (3, 30.0),
        (4, 20.0),
    ]


def test_each_rank_has_a_memory_file_of_its_own() -> None:
    assert [memory_file(rank) for rank in (0, 11)] == ["memory-rank-0.jsonl", "memory-rank-11.jsonl"]


def test_a_name_that_is_no_utf8_is_read_by_any_reader_of_json(tmp_path: Path) -> None:
    path = tmp_path / EVENTS_FILE
    event = dataclasses.replace(EVENT, message="a\udcff/b", facts={"argv": ["x\udce9", "🙂", 1], "\ud800": None})
    write(path, event, EVENT)
    facts = {"argv": ["x\\xe9", "🙂", 1], "\\ud800": None}
    assert list(read_records(path, Event)) == [dataclasses.replace(event, message="a\\xff/b", facts=facts), EVENT]
    assert path.read_bytes().isascii()


@pytest.mark.parametrize(
    ("kind", "whole", "old", "new"),
    [
        (StepRecord, STEP, '"step":', '"step":"7","x":'),
        (StepRecord, STEP, '"loss":', '"loss":[1],"x":'),
        (StepRecord, STEP, '"time_s":', '"x":'),
        (StepRecord, STEP, '"time_s":', '"time_s":1e300,"x":'),
        (MemoryRecord, MEMORY, '"rss_bytes":', '"rss_bytes":-1,"x":'),
        (Event, EVENT, '"time_s":', '"x":'),
        (Event, EVENT, '"kind":', '"kind":3,"x":'),
        (Event, EVENT, '"facts":{', '"facts":{"loss":"low",'),
        (Event, EVENT, '"facts":{', '"facts":{"unknown":7,'),
        (Event, EVENT, '"facts":{', '"facts":[{'),
    ],
)
def test_a_record_that_is_not_what_it_should_be_is_left_out_and_counted(
    tmp_path: Path, kind: type[StepRecord], whole: StepRecord, old: str, new: str
) -> None:
    path = tmp_path / "some.jsonl"
    write(path, whole, whole)
    line = path.read_text().splitlines()[0]
    assert old in line
    damaged = line.replace(old, new, 1)
    path.write_text(f"{line}\n{damaged}\n\n{damaged}\n{line}\n{damaged}")
    left_out: LeftOut = {}
    assert list(read_records(path, kind, left_out)) == [whole, whole]
    # The last line may still be being written; an empty one holds nothing.
    assert left_out == {path: 2}


def test_a_line_of_which_the_disk_takes_a_part_is_written_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[: (len(data) + 1) // 2]))
    writer = RecordWriter(tmp_path / EVENTS_FILE)
    writer.write(Event("notice", "x" * 1000, 0, 1.0))
    monkeypatch.undo()
    writer.write(Event("notice", "y", 0, 2.0))
    writer.close()
    assert [event.message[:1] for event in read_records(tmp_path / EVENTS_FILE, Event)] == ["x", "y"]


@pytest.mark.parametrize("moment", ["NaN", "Infinity", "-1.0", "1e300"])
def test_a_moment_that_no_clock_shows_is_damage(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "samples.jsonl"
    sound = '{"host":"h","device":"cpu","monotonic_s":5.0,"time_s":1.0}\n'
    path.write_text(sound + sound.replace("5.0", moment))
    left_out: LeftOut = {}
    assert [one.monotonic_s for one in read_records(path, DeviceSample, left_out)] == [5.0]
    assert left_out == {path: 1}
