from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dist_trainer.benchmark.measure import Measurement
from dist_trainer.benchmark.memory_table import MemoryRow, Setting
from dist_trainer.benchmark.memory_text import BEGIN, END, table_text, write_table
from dist_trainer.benchmark.on_gpus import DevicePeaks
from dist_trainer.memory.plan import Figure, RankPlan

GB = 10**9


def rank_plan(allocated: int, used: int | None = None) -> RankPlan:
    figures = [Figure(value, value, value) for value in (allocated, used or allocated)]
    return RankPlan(0, figures[0], figures[0], figures[1] if used else None, "step", {}, (), 0)


def row(setting: Setting, used_gb: float, measured_gb: float | None, *, offloaded: bool = False) -> MemoryRow:
    measured = None if measured_gb is None else Measurement({}, round(measured_gb * GB), 0, 0, 0, 0.0)
    return MemoryRow(
        setting=setting,
        micro_batch=1,
        accumulation=8,
        target_bytes=round(2.5 * GB),
        is_offloaded=offloaded,
        on_gpu=rank_plan(round(used_gb * GB), round(used_gb * GB)),
        on_cpu=rank_plan(round(1.01 * (measured_gb or 1) * GB)),
        measured=measured,
        device_peaks=None,
    )


BASELINE = row(Setting("small", "baseline", 1), 5.0, 4.0)
ZERO2 = row(Setting("small", "zero2", 2), 2.0, 1.0)


def test_the_table_compares_with_the_baseline_and_the_target() -> None:
    lines = table_text([BASELINE, ZERO2, row(Setting("small", "fast", 4), 3.0, None)]).splitlines()
    assert lines[0] == "### Small (target 2.50 GB)"
    assert lines[4] == "| baseline | 1 | 1 x 8 | 5.00 | 5.00 | 5.00 | – | – | 4.00 | +1.00% | – |"
    assert lines[5] == "| zero2 | 2 | 1 x 8 | 2.00 | 2.00 | 2.00 | 60% | met | 1.00 | +1.00% | 75% |"
    assert lines[6] == "| fast | 4 | 1 x 8 | 3.00 | 3.00 | 3.00 | 40% | missed | – | – | – |"


def test_an_offloaded_measurement_holds_the_host_and_saves_nothing_to_speak_of() -> None:
    text = table_text([BASELINE, row(Setting("small", "zero2_offload", 1), 1.0, 3.0, offloaded=True)])
    assert text.splitlines()[-1].endswith("| 80% | met | 3.00* | +1.00% | – |")


def test_a_measured_peak_that_is_the_model_being_built_is_marked() -> None:
    built = replace(ZERO2, on_cpu=replace(ZERO2.on_cpu, peak_phase="init"))
    assert table_text([BASELINE, built]).splitlines()[-1].endswith("| met | 1.00† | +1.00% | 75% |")


def test_where_gpus_ran_the_table_has_what_nvml_showed() -> None:
    seen = [
        replace(row, device_peaks=DevicePeaks(used_bytes, None, None))
        for row, used_bytes in ((BASELINE, 6 * GB), (ZERO2, 3 * GB))
    ]
    lines = table_text(seen).splitlines()
    assert lines[2].endswith("| NVML, measured | saved, NVML |")
    assert lines[5].endswith("| 3.00 | 50% |")


def test_the_table_goes_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "memory.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_table("new\n", path)
    write_table("newer\n", path)
    assert path.read_text() == f"before\n{BEGIN}\nnewer\n{END}\nafter\n"
