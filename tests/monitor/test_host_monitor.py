"""The ranks of a host, of which one watches the GPUs of all. Here they are threads of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from nvml_stub import GPU_IS_LOST, NO_PERMISSION, Driver, Script, gpu_uuid

from dist_trainer.monitor.host import Hello, HostMonitor, PlaceOnHost
from dist_trainer.monitor.mailbox import Mailbox
from dist_trainer.monitor.processes import OtherProcess
from dist_trainer.records import (
    EVENTS_FILE,
    DeviceSample,
    Event,
    MemoryRecord,
    host_memory_file,
    memory_file,
    read_records,
    samples_file,
)
from dist_trainer.units import GB

# Arguments: the folder of records; how many steps all take; the seconds between two looks; how many bytes each is to
# have been seen with before the end; the folder of mailboxes; a UUID for each rank, or "" for one on a CPU.
RANKS = """
import json, sys, threading, time
from pathlib import Path
from dist_trainer.monitor import host
from dist_trainer.monitor import mailbox as mailbox
from dist_trainer.monitor.gpu.devices import DeviceIdentity
from dist_trainer.records import DeviceSample, MemoryRecord, read_values, samples_file
folder, steps, interval_s, seen_bytes, shared, *uuids = sys.argv[1:]
first = 8
mailbox.FOLDER = Path(shared)
meeting = threading.Barrier(len(uuids))
kinds = {}

def are_seen():
    samples = read_values(Path(folder) / samples_file(f"host-{first}"), DeviceSample)
    seen = {one["rank"] for one in samples if (one["used_bytes"] or one["rss_bytes"] or 0) >= int(seen_bytes)}
    return len(seen) == len(uuids)

def run(local_rank):
    uuid = uuids[local_rank]
    place = host.PlaceOnHost(first + local_rank, local_rank, len(uuids))
    identity = DeviceIdentity(uuid) if uuid else None
    monitor = host.open_monitor(Path(folder), place, identity, float(interval_s), name="test", meet=meeting.wait)
    with monitor:
        for step in range(1, int(steps) + 1):
            for turn in range(len(uuids)):
                # The first rank last, who looks at what the others have posted.
                if turn == len(uuids) - 1 - local_rank:
                    monitor.at_step_edge()
                    peak = step * 1000 + place.rank
                    used = monitor.peak_used_bytes
                    device, when_s = monitor.device, 60.0 * step
                    record = MemoryRecord(step, place.rank, "h", device, peak, peak + 5, used, 7, when_s, when_s)
                    monitor.write(record)
                meeting.wait()
        while local_rank == 0 and interval_s != "0" and not are_seen():
            time.sleep(0.01)
        meeting.wait()
        if local_rank:
            monitor.stop()
        meeting.wait()
    kinds[place.rank] = type(monitor).__name__

threads = [threading.Thread(target=run, args=(number,)) for number in range(len(uuids))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps([kinds[rank] for rank in sorted(kinds)]))
print(json.dumps(sorted(path.name for path in Path(shared).glob("*"))))
"""


class Host:
    """What the ranks of a host were, and what they wrote."""

    def __init__(self, folder: Path, output: str) -> None:
        kinds, left = output.splitlines()[-2:]
        self.kinds: list[str] = json.loads(kinds)
        self.left_in_memory: list[str] = json.loads(left)
        self.folder = folder
        self.files = sorted(path.name for path in folder.glob("memory-*"))
        self.events = list(read_records(folder / EVENTS_FILE, Event))

    def samples(self, rank: int) -> list[DeviceSample]:
        of_host = read_records(self.folder / samples_file("host-8"), DeviceSample)
        return [sample for sample in of_host if sample.rank == rank]

    def records(self, rank: int) -> list[MemoryRecord]:
        return [one for one in read_records(self.folder / host_memory_file(8), MemoryRecord) if one.rank == rank]

    @property
    def diagnostics(self) -> set[tuple[int, str, str]]:
        return {(event.rank, event.facts["source"], event.facts["diagnostic"]) for event in self.events}


def run_host(
    tmp_path: Path,
    environ: dict[str, str],
    *uuids: str,
    steps: int = 3,
    interval_s: float = 0,
    seen_bytes: int = 0,
    shared: Path | None = None,
) -> Host:
    memory = tmp_path / "shm"
    memory.mkdir()
    arguments: list[Any] = [tmp_path / "records", steps, interval_s, seen_bytes, shared or memory, *uuids]
    done = subprocess.run(
        [sys.executable, "-c", RANKS, *map(str, arguments)],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return Host(tmp_path / "records", done.stdout)


def test_one_watches_the_gpus_of_all_and_writes_two_files(driver: Driver, tmp_path: Path) -> None:
    script = Script(clock="queries")
    for gpu in range(4):
        key = script.gpu(used_bytes=(gpu + 1) * GB)
        script.process(key, "self", GB // 2)
        # A peak of one look, in which another's memory does not change.
        script.used(key, {3 + gpu: (gpu + 11) * GB, 4 + gpu: (gpu + 1) * GB})
    order = [2, 0, 3, 1]
    host = run_host(tmp_path, driver.environ(script), *map(gpu_uuid, order), interval_s=0.01, seen_bytes=10 * GB)
    assert host.kinds == ["HostMonitor", "WatchedRank", "WatchedRank", "WatchedRank"]
    assert host.files == ["memory-host-8.jsonl", "memory-samples-host-8.jsonl"]
    assert host.left_in_memory == [] and host.events == []

    for local_rank, gpu in enumerate(order):
        rank = 8 + local_rank
        samples, records = host.samples(rank), host.records(rank)
        assert {sample.device for sample in samples} == {gpu_uuid(gpu)}
        assert max(sample.used_bytes or 0 for sample in samples) == (gpu + 11) * GB
        assert {sample.process_bytes for sample in samples} == {GB // 2}
        assert {record.device for record in records} == {gpu_uuid(gpu)}
        last = records[-1]
        assert (last.step, last.allocated_peak_bytes, last.reserved_peak_bytes) == (3, 3000 + rank, 3005 + rank)
        assert last.device_used_bytes == (gpu + 11) * GB


def test_without_an_interval_all_are_looked_at_when_a_step_ends(driver: Driver, tmp_path: Path) -> None:
    script = Script(clock="queries")
    for gpu in range(2):
        script.used(script.gpu(used_bytes=GB), {2: (2 + gpu) * GB})
    host = run_host(tmp_path, driver.environ(script), gpu_uuid(0), gpu_uuid(1))
    assert host.files == ["memory-host-8.jsonl"]
    assert [(record.step, record.device_used_bytes) for record in host.records(9)] == [(1, GB), (2, GB), (3, 3 * GB)]


def test_a_rank_whose_gpu_the_first_cannot_see_watches_itself(driver: Driver, tmp_path: Path) -> None:
    script = Script()
    script.gpu(used_bytes=GB)
    hidden = script.gpu(used_bytes=GB)
    script.error(NO_PERMISSION, call="nvmlDeviceGetHandleByUUID", device=hidden)
    host = run_host(tmp_path, driver.environ(script), gpu_uuid(0), gpu_uuid(1), "GPU-none")
    assert host.kinds == ["HostMonitor", "RankSampler", "RankSampler"]
    assert memory_file(9) in host.files and memory_file(10) in host.files
    # They say themselves what they cannot know.
    assert (10, "rank-10", "device not found") in host.diagnostics
    assert not any(rank == 8 for rank, _, _ in host.diagnostics)


def test_without_shared_memory_each_watches_itself(driver: Driver, tmp_path: Path) -> None:
    script = Script()
    for _ in range(2):
        script.gpu(used_bytes=GB)
    host = run_host(tmp_path, driver.environ(script), gpu_uuid(0), gpu_uuid(1), shared=tmp_path / "none")
    assert host.kinds == ["RankSampler", "RankSampler"]
    assert host.files == [memory_file(8), memory_file(9)]


def test_what_is_not_known_of_a_gpu_is_said_of_its_own_rank(driver: Driver, tmp_path: Path) -> None:
    script = Script(clock="queries")
    script.gpu(used_bytes=GB)
    lost = script.gpu(used_bytes=2 * GB)
    script.error(GPU_IS_LOST, device=lost, at=2)
    host = run_host(tmp_path, driver.environ(script), gpu_uuid(0), gpu_uuid(1), steps=5)
    assert (9, "rank-9", "gpu lost") in host.diagnostics
    assert (8, "rank-8", "gpu lost") not in host.diagnostics
    assert {record.device_used_bytes for record in host.records(9)} == {2 * GB}


def test_ranks_on_a_cpu_have_their_resident_sets_watched(tmp_path: Path) -> None:
    host = run_host(tmp_path, {}, "", "", interval_s=0.01)
    assert host.kinds == ["HostMonitor", "WatchedRank"]
    for rank in (8, 9):
        assert {sample.device for sample in host.samples(rank)} == {"cpu"}
        assert all((sample.rss_bytes or 0) > 10**6 for sample in host.samples(rank))
    assert host.events == []


def test_a_rank_is_the_same_process_after_its_hosts_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    hello = Hello.of_this_process(0, None)
    boot_s = psutil.boot_time()
    for module in (psutil, psutil._psplatform):
        monkeypatch.setattr(module, "boot_time", lambda: boot_s - 3600.0)
    process = OtherProcess(hello.pid, hello.started_ticks)
    assert list(process.pids()) == [os.getpid()]
    with pytest.raises(psutil.NoSuchProcess):
        OtherProcess(hello.pid, hello.started_ticks + 1)


def test_a_rank_that_goes_on_for_long_says_its_figures_more_and_more_rarely(tmp_path: Path) -> None:
    """Where no peak rises. The steps of the ranks are a minute apart, and the clock is set back at each."""
    mailbox = Mailbox.make(tmp_path / "mailbox", 1)
    mailbox.post(0, asdict(Hello.of_this_process(0, None)))
    monitor = HostMonitor(tmp_path, mailbox, PlaceOnHost(0, 0, 1), 0)
    for step in range(1, 361):
        monitor.write(MemoryRecord(step, 0, "h", "cpu", 5, 5, None, step, 1e6 - 60.0 * step, 60.0 * step))
        monitor.at_step_edge()
    monitor.stop()
    steps = [one.step for one in read_records(tmp_path / host_memory_file(0), MemoryRecord)]
    assert steps[:60] == list(range(1, 61))
    assert len(steps) < 200 and steps[-1] == 360
