"""What a rank sees of its GPU: the real nvidia-ml-py over a driver that follows a script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from looks import Look
from nvml_stub import (
    COMPUTE_PROCESSES,
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    GPU_IS_LOST,
    GRAPHICS_PROCESSES,
    INIT,
    MEMORY_V1,
    MEMORY_V2,
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNINITIALIZED,
    UNKNOWN,
    Driver,
    Script,
    gpu_uuid,
    mig_uuid,
)

from dist_trainer.monitor.sources import throttle_reasons
from dist_trainer.records import EVENTS_FILE

ALL_FIELDS = {
    "utilization_percent": 87,
    "power_mw": 250_500,
    "temperature_c": 61,
    "sm_clock_mhz": 1410,
    "memory_clock_mhz": 1215,
    "throttle_reasons": 0x4 | 0x20,
    "ecc_errors": 3,
}


def scripted(**curve_of_gpu: int) -> tuple[Script, str]:
    script = Script(clock="queries")
    return script, script.gpu(**curve_of_gpu)


# Memory.


def test_every_field_of_a_full_look_is_recorded_in_its_unit(look: Look) -> None:
    script, gpu = scripted(used_bytes=7, total_bytes=100, reserved_bytes=2)
    script.value(gpu, **ALL_FIELDS)
    script.process(gpu, "self", 5)
    (sample,) = look(script, "f").written
    assert (sample.device, sample.used_bytes, sample.used_version, sample.total_bytes) == (gpu_uuid(0), 7, 2, 100)
    assert (sample.process_bytes, sample.utilization_percent, sample.power_w) == (5, 87, 250.5)
    assert (sample.temperature_c, sample.sm_clock_mhz, sample.memory_clock_mhz) == (61, 1410, 1215)
    assert (sample.throttle_reasons, sample.ecc_errors) == (("sw_power_cap", "sw_thermal_slowdown"), 3)
    assert sample.rss_bytes is not None and sample.rss_bytes > 10**6
    assert sample.time_s > 1.7e9 and sample.monotonic_s < sample.time_s


def test_a_memory_look_has_memory_alone(look: Look) -> None:
    script, gpu = scripted(used_bytes=7)
    script.used(gpu, {1: 8})
    script.value(gpu, **ALL_FIELDS)
    sample = look(script, "fm").written[-1]
    assert (sample.used_bytes, sample.utilization_percent, sample.power_w, sample.rss_bytes) == (8, None, None, None)


def test_the_peak_is_the_highest_of_all_looks_and_is_written(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.used(gpu, {3: 9, 4: 2})
    looked = look(script, "fmmmmmm")
    assert looked.peak_used_bytes == 9 and looked.has_last
    assert [sample.used_bytes for sample in looked.written] == [1, 1, 9, 2, 2]


@pytest.mark.parametrize("code", [FUNCTION_NOT_FOUND, NOT_SUPPORTED, UNKNOWN], ids=["old driver", "no support", "WSL"])
def test_where_version_2_does_not_work_version_1_counts_with_the_reserve(look: Look, code: int) -> None:
    script, gpu = scripted(used_bytes=5, reserved_bytes=3)
    script.used(gpu, {1: 6})
    script.error(code, MEMORY_V2)
    looked = look(script, "fm")
    assert [(sample.used_bytes, sample.used_version) for sample in looked.written] == [(8, 1), (9, 1)]
    assert looked.events == []


def test_the_version_that_worked_stays_so_that_a_series_compares(look: Look) -> None:
    script, gpu = scripted(used_bytes=5, reserved_bytes=3)
    script.used(gpu, {2: 6})
    script.error(UNKNOWN, MEMORY_V2, at=1, until=2)
    looked = look(script, "fmm")
    assert [(sample.used_bytes, sample.used_version) for sample in looked.written] == [(5, 2), (None, None), (6, 2)]
    assert looked.diagnostics == ["unknown error"]
    assert looked.peak_used_bytes == 6


def test_without_any_memory_figure_the_other_fields_are_still_there(look: Look) -> None:
    script, gpu = scripted(used_bytes=5)
    script.value(gpu, utilization_percent=40)
    script.error(NOT_SUPPORTED, MEMORY_V1)
    script.error(NOT_SUPPORTED, MEMORY_V2)
    looked = look(script, "f")
    assert [(sample.used_bytes, sample.utilization_percent) for sample in looked.written] == [(None, 40)]
    assert looked.peak_used_bytes is None


def test_a_field_that_the_device_lacks_is_absent_and_nothing_is_said(look: Look) -> None:
    script, _ = scripted(used_bytes=5)
    looked = look(script, "ff")
    sample = looked.written[0]
    fields = (sample.utilization_percent, sample.power_w, sample.temperature_c, sample.sm_clock_mhz)
    assert (*fields, sample.memory_clock_mhz, sample.throttle_reasons, sample.ecc_errors) == (None,) * 7
    assert looked.events == []


def test_no_throttling_is_an_empty_list_and_an_unnamed_reason_its_number() -> None:
    assert throttle_reasons(0) == ()
    assert throttle_reasons(0x1 | 0x8 | 0x10000) == ("gpu_idle", "hw_slowdown", "0x10000")


# Processes.


def test_a_process_in_both_lists_counts_once_and_other_processes_not_at_all(look: Look) -> None:
    script, gpu = scripted(used_bytes=100)
    script.process(gpu, "self", 30, lists="both")
    script.process(gpu, 1, 50)
    assert look(script, "f").written[0].process_bytes == 30


def test_a_process_is_known_to_hold_nothing_only_after_it_was_seen(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.used(gpu, {1: 2, 2: 3})
    script.process(gpu, "self", 9, at=1)
    script.process(gpu, "self", "gone", at=2)
    assert [sample.process_bytes for sample in look(script, "fff").written] == [None, 9, 0]


def test_processes_are_asked_for_when_memory_has_changed_and_in_full_looks(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.process(gpu, "self", 10)
    script.process(gpu, "self", 20, at=1)
    script.used(gpu, {3: 2})
    script.process(gpu, "self", 30, at=3)
    assert [sample.process_bytes for sample in look(script, "fmmm").written] == [10, 10, 30]


def test_bytes_that_the_driver_does_not_tell_are_unknown_and_said_once(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.process(gpu, "self", "na")
    looked = look(script, "fff")
    assert {sample.process_bytes for sample in looked.written} == {None}
    assert looked.diagnostics == ["process bytes not reported"]
    assert looked.events[0].facts["unknown"] == ["process_bytes"]


def test_a_container_that_cannot_see_its_own_processes_is_one_event(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.process(gpu, 4_194_000, 10)
    looked = look(script, "fmsfff")
    assert {sample.process_bytes for sample in looked.written} == {None}
    assert looked.diagnostics == ["own processes not visible"]
    assert "container" in looked.events[0].message


def test_before_the_first_step_a_rank_that_is_not_listed_is_no_event(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.process(gpu, 1, 10)
    assert look(script, "ffff").events == []


# How a GPU is found.


def test_a_gpu_is_found_by_its_uuid_whatever_its_number(look: Look) -> None:
    script = Script(clock="queries")
    script.gpu(used_bytes=1)
    script.gpu(used_bytes=2)
    for uuid in (gpu_uuid(1), gpu_uuid(1).removeprefix("GPU-")):
        looked = look(script, "f", uuid=uuid)
        assert (looked.device, looked.peak_used_bytes) == (gpu_uuid(1), 2)


def test_a_gpu_is_found_by_its_bus_id_where_the_uuid_is_not_known(look: Look) -> None:
    script = Script(clock="queries")
    script.gpu(used_bytes=1, pci_bus_id="00000000:3B:00.0")
    script.gpu(used_bytes=2, pci_bus_id="00000000:AF:00.0")
    looked = look(script, "f", uuid="", bus_id="00000000:AF:00.0")
    assert (looked.device, looked.peak_used_bytes) == (gpu_uuid(1), 2)


def test_a_gpu_that_nvml_does_not_know_is_one_event_and_the_host_is_sampled(look: Look) -> None:
    script, _ = scripted(used_bytes=1)
    looked = look(script, "fff", uuid="GPU-none")
    assert looked.diagnostics == ["device not found"]
    assert (looked.device, looked.peak_used_bytes) == ("GPU-none", None)
    assert looked.written[0].rss_bytes is not None


def test_the_memory_of_a_mig_instance_is_its_own(look: Look) -> None:
    script, gpu = scripted(used_bytes=90)
    script.value(gpu, **ALL_FIELDS)
    first = script.mig(gpu, total_bytes=40, gpu_instance=1)
    second = script.mig(gpu, total_bytes=20, gpu_instance=2)
    script.used(first, {0: 11})
    script.used(second, {0: 12})
    script.process(second, "self", 6)
    looked = look(script, "ff", uuid=mig_uuid(0, 1).removeprefix("MIG-"))
    sample = looked.written[0]
    assert (sample.device, sample.used_bytes, sample.total_bytes) == (mig_uuid(0, 1), 12, 20)
    assert (sample.process_bytes, sample.utilization_percent, sample.power_w) == (6, None, None)
    assert looked.diagnostics == ["mig"]


def test_the_memory_of_a_divided_gpu_is_not_taken_for_an_instances(look: Look) -> None:
    script, gpu = scripted(used_bytes=90)
    script.mig(gpu, total_bytes=40, gpu_instance=1)
    looked = look(script, "f", uuid="", bus_id="00000000:10:00.0")
    assert (looked.peak_used_bytes, looked.diagnostics) == (None, ["mig"])


# What goes wrong, is said once, and stops nothing.


@pytest.mark.parametrize(
    ("code", "diagnostic"),
    [(DRIVER_NOT_LOADED, "driver not loaded"), (NO_PERMISSION, "no permission"), (UNKNOWN, "unknown error")],
    ids=["driver not loaded", "no permission", "unknown"],
)
def test_nvml_that_cannot_be_initialised_is_one_event(look: Look, code: int, diagnostic: str) -> None:
    script, _ = scripted(used_bytes=1)
    script.error(code, INIT)
    looked = look(script, "ffsf")
    assert looked.diagnostics == [diagnostic]
    assert looked.events[0].facts["device"] == gpu_uuid(0)
    assert "used_bytes" in looked.events[0].facts["unknown"]
    assert looked.written[0].rss_bytes is not None and looked.peak_used_bytes is None


def test_a_missing_library_is_one_event(look: Look) -> None:
    looked = look(None, "ffsf")
    assert looked.diagnostics == ["library missing"]
    assert looked.written[0].rss_bytes is not None


@pytest.mark.parametrize(
    ("code", "diagnostic"),
    [(GPU_IS_LOST, "gpu lost"), (DRIVER_NOT_LOADED, "driver not loaded")],
    ids=["gpu lost", "driver unloaded"],
)
def test_a_gpu_that_goes_in_the_middle_is_one_event_and_its_peak_stays(look: Look, code: int, diagnostic: str) -> None:
    script, gpu = scripted(used_bytes=1)
    script.used(gpu, {1: 9})
    script.error(code, device=gpu, at=2)
    looked = look(script, "fmmmsff")
    assert looked.diagnostics == [diagnostic]
    assert looked.peak_used_bytes == 9
    assert looked.events[0].facts["code"] == code
    assert looked.events[0].facts["monotonic_s"] > looked.written[0].monotonic_s
    last = looked.written[-1]
    assert (last.used_bytes, last.process_bytes) == (None, None) and last.rss_bytes is not None
    assert looked.has_last


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (COMPUTE_PROCESSES, "process_bytes"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTotalEccErrors", "ecc_errors"),
    ],
)
def test_a_field_that_may_not_be_read_is_one_event_that_names_it(look: Look, call: str, field: str) -> None:
    script, gpu = scripted(used_bytes=1)
    script.value(gpu, **ALL_FIELDS)
    script.error(NO_PERMISSION, call)
    script.error(NOT_SUPPORTED, GRAPHICS_PROCESSES)
    looked = look(script, "ffff")
    assert [(event.facts["diagnostic"], event.facts["unknown"]) for event in looked.events] == [
        ("no permission", [field])
    ]
    assert getattr(looked.written[0], field) is None
    assert looked.written[0].temperature_c == 61


def test_memory_that_may_not_be_read_is_one_event(look: Look) -> None:
    script, _ = scripted(used_bytes=1)
    script.error(NO_PERMISSION, MEMORY_V1)
    script.error(NO_PERMISSION, MEMORY_V2)
    looked = look(script, "ffff")
    assert looked.diagnostics == ["no permission"]
    assert looked.events[0].facts["unknown"] == ["used_bytes"]


def test_an_error_of_one_moment_costs_that_moment(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.used(gpu, {2: 9})
    script.error(UNKNOWN, device=gpu, at=1, until=2)
    looked = look(script, "fff")
    assert looked.diagnostics == ["unknown error"]
    assert looked.peak_used_bytes == 9 and looked.has_last


def test_an_error_of_every_call_is_one_event(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.error(UNKNOWN, device=gpu, at=1)
    looked = look(script, "ffffff")
    assert looked.diagnostics == ["unknown error"]


def test_an_error_that_came_back_for_good_is_no_second_event_and_shows_in_the_last_look(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.error(UNKNOWN, device=gpu, at=1, until=2)
    script.error(UNKNOWN, device=gpu, at=3)
    looked = look(script, "ffffff")
    assert looked.diagnostics == ["unknown error"]
    assert looked.has_last and looked.written[-1].used_bytes is None


def test_each_xid_number_is_one_event_and_stands_in_the_samples(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.xid(gpu, 31, at=1)
    script.xid(gpu, 31, at=2)
    script.xid(gpu, 79, at=2)
    looked = look(script, "ffff")
    assert [(event.facts["diagnostic"], event.facts["code"]) for event in looked.events] == [("xid", 31), ("xid", 79)]
    assert [sample.xid_errors for sample in looked.written if sample.xid_errors] == [(31,), (31, 79)]


def test_nvml_that_others_have_shut_down_is_initialised_again_once(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.used(gpu, {2: 9})
    looked = look(script, "fxff", code="import pynvml; pynvml.nvmlShutdown()")
    assert looked.diagnostics == ["initialised again"]
    assert looked.peak_used_bytes == 9


def test_a_forked_process_initialises_nvml_for_itself(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.used(gpu, {1: 5})
    code = """
import os
pid = os.fork()
if pid == 0:
    rank.sampler.look(is_full=True)
    rank.sampler.look(is_full=True)
    os._exit(0 if rank.peak_used_bytes == 5 else 1)
assert os.waitpid(pid, 0)[1] == 0
"""
    looked = look(script, "fxf", code=code)
    assert looked.diagnostics == ["initialised again"]
    assert "fork" in looked.events[0].message
    assert looked.peak_used_bytes == 5


def test_a_driver_that_keeps_forgetting_is_given_up(look: Look) -> None:
    script, gpu = scripted(used_bytes=1)
    script.error(UNINITIALIZED, device=gpu, at=1)
    looked = look(script, "ffffff")
    assert looked.diagnostics == ["initialised again", "unknown error"]


CPU_RANK = """
import sys
from pathlib import Path
from dist_trainer.monitor.rank import RankSampler
rank = RankSampler(Path(sys.argv[1]), 0, None, 0.1)
rank.sampler.look(is_full=True)
rank.at_step_edge()
print(rank.device, rank.peak_used_bytes, "pynvml" in sys.modules)
"""


def test_a_cpu_rank_on_a_host_with_gpus_claims_none_of_their_memory(driver: Driver, tmp_path: Path) -> None:
    script, _ = scripted(used_bytes=9)
    command = [sys.executable, "-c", CPU_RANK, str(tmp_path)]
    environ = os.environ | driver.environ(script)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "cpu None False\n"
    assert not (tmp_path / EVENTS_FILE).exists()
