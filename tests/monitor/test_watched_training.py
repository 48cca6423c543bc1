"""Whole training runs whose ranks are watched on GPUs that follow a script."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import pytest
from nvml_stub import GPU_IS_LOST, Driver, Script, gpu_uuid
from ranks import BRISK, mini_config, run_ranks

from dist_trainer.records import (
    EVENTS_FILE,
    DeviceSample,
    Event,
    MemoryRecord,
    host_memory_file,
    memory_file,
    read_records,
    read_steps,
    samples_file,
)
from dist_trainer.report.summary import summarise
from dist_trainer.units import GB

pytestmark = pytest.mark.integration


def train(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    environ: Mapping[str, str],
    *,
    world_size: int = 2,
    num_ranks_a_host: int | None = None,
) -> Path:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    files = ("--config", str(mini_config(folder)), "--run-dir", str(folder / "run"))
    arguments = ["-m", "nvml_rank", "train", *files, *BRISK, "--set", "memory.sample_every_s=0.02"]
    ended = run_ranks(arguments, cwd=folder, world_size=world_size, num_ranks_a_host=num_ranks_a_host)
    assert ended.status == 0, ended.output
    return folder / "run" / "records"


def diagnostics(records: Path) -> list[tuple[int, str, int | None]]:
    events = read_records(records / EVENTS_FILE, Event)
    return [(event.rank, event.facts["diagnostic"], event.facts["code"]) for event in events if event.kind == "monitor"]


def phases(samples: list[DeviceSample]) -> list[str | None]:
    """In their order."""
    return [phase for phase, _ in groupby(sample.phase for sample in samples)]


def test_each_rank_records_its_own_gpu_and_a_lost_one_stops_nothing(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(clock="queries")
    lost, unused, whole = script.gpu(used_bytes=GB), script.gpu(used_bytes=9 * GB), script.gpu(used_bytes=GB)
    # A peak that a single look sees, long before the first step ends.
    script.used(whole, {6: 3 * GB, 7: 2 * GB})
    script.process(whole, "self", GB // 2)
    script.value(whole, utilization_percent=55, power_mw=200_000)
    script.used(lost, {5: 2 * GB})
    script.process(lost, "self", GB // 4, lists="both")
    script.xid(lost, 79, at=10)
    script.error(GPU_IS_LOST, device=lost, at=70)
    assert unused == "1"
    environ = {**driver.environ(script), "CUDA_VISIBLE_DEVICES": "2,0"}
    records = train(tmp_path, monkeypatch, environ)

    samples = [list(read_records(records / samples_file(f"rank-{rank}"), DeviceSample)) for rank in range(2)]
    memory = [list(read_records(records / memory_file(rank), MemoryRecord)) for rank in range(2)]
    assert [{sample.device for sample in of_rank} for of_rank in samples] == [{gpu_uuid(2)}, {gpu_uuid(0)}]
    assert [{record.device for record in of_rank} for of_rank in memory] == [{gpu_uuid(2)}, {gpu_uuid(0)}]

    used = [sample.used_bytes for sample in samples[0]]
    assert [level for level, before in zip(used, [None, *used], strict=False) if level != before] == [
        GB,
        3 * GB,
        2 * GB,
    ]
    assert [phases(of_rank) for of_rank in samples] == [[None, "short", "long"]] * 2
    assert [sample.is_last for sample in samples[0]] == [False] * (len(samples[0]) - 1) + [True]
    assert {sample.process_bytes for sample in samples[0]} == {GB // 2}
    assert {sample.power_w for sample in samples[0]} == {200.0, None}
    assert {record.device_used_bytes for record in memory[0]} == {3 * GB}
    assert all(record.monotonic_s is not None for record in memory[0])

    # The second rank's GPU went in the middle: what was seen stays, what came after is not known.
    assert diagnostics(records) == [(1, "xid", 79), (1, "gpu lost", GPU_IS_LOST)]
    assert max(sample.used_bytes or 0 for sample in samples[1]) == 2 * GB
    assert samples[1][-1].used_bytes is None and samples[1][-1].rss_bytes is not None
    assert {record.device_used_bytes for record in memory[1]} == {2 * GB}
    assert len(read_steps(records)) == len(memory[1]) == 20


def test_in_a_large_run_the_first_rank_of_each_host_watches_all_its_gpus(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(clock="queries")
    for gpu in range(3):
        script.used(script.gpu(used_bytes=GB), {6 + gpu: (2 + gpu) * GB, 7 + gpu: GB})
    environ = {**driver.environ(script), "NVML_RANK_HOST": "2", "NVML_RANK_MEMORY": str(tmp_path / "memory")}
    # The second host has but one rank.
    records = train(tmp_path, monkeypatch, environ, world_size=3, num_ranks_a_host=2)

    files = sorted(path.name for path in records.glob("memory-*"))
    assert files == [
        "memory-host-0.jsonl",
        "memory-host-2.jsonl",
        "memory-samples-host-0.jsonl",
        "memory-samples-host-2.jsonl",
    ]
    for rank in range(3):
        first = rank - rank % 2
        samples = read_records(records / samples_file(f"host-{first}"), DeviceSample)
        own = [sample for sample in samples if sample.rank == rank]
        assert {sample.device for sample in own} == {gpu_uuid(rank)}
        assert phases(own) == [None, "short", "long"]
        assert [sample.is_last for sample in own] == [False] * (len(own) - 1) + [True]
        assert max(sample.used_bytes or 0 for sample in own) == (2 + rank) * GB
        assert min(sample.rss_bytes for sample in own if sample.rss_bytes is not None) > 10**7
        of_host = read_records(records / host_memory_file(first), MemoryRecord)
        last = [record for record in of_host if record.rank == rank][-1]
        assert (last.step, last.device, last.device_used_bytes) == (20, gpu_uuid(rank), (2 + rank) * GB)

    verdicts = summarise(records.parent).verdicts
    assert [(one.rank, one.device, one.peak_bytes) for one in verdicts] == [
        (rank, gpu_uuid(rank), (2 + rank) * GB) for rank in range(3)
    ]
    assert all(one.resident_bytes is not None for one in verdicts)
    assert [sorted(folder.iterdir()) for folder in (tmp_path / "memory").iterdir()] == [[], []]
