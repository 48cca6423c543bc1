"""Writes what was measured so far into the folder of results: results.json, results.csv, report.html, report.md."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from dist_trainer import typed_json
from dist_trainer import versions as packages
from dist_trainer.benchmark.worth.gemm import DTYPES, machine_flops_per_s
from dist_trainer.benchmark.worth.measuring import Bench
from dist_trainer.benchmark.worth.page import make_page, write_page
from dist_trainer.benchmark.worth.results import Environment, Results, make_results, write_results
from dist_trainer.benchmark.worth.rounds import Turn
from dist_trainer.benchmark.worth.rows import MatmulRates
from dist_trainer.benchmark.worth.running import command
from dist_trainer.cluster.threads import count_own_cores, threads_here
from dist_trainer.disk import write_text
from dist_trainer.errors import UserError
from dist_trainer.memory.gpus import find_gpu, has_bf16, speeds
from dist_trainer.typed_json import DamagedError

RATES_FILE = "rates.json"


def tell(bench: Bench) -> tuple[Path, ...]:
    """Writes the tables of all measurements there are, and returns their paths. Measures nothing."""
    results = results_of(bench)
    return (*write_results(results, bench.folder.path), *write_page(make_page(results), bench.folder.path))


def measure_rates(bench: Bench) -> None:
    """Measures the rates of matrix products once per folder, which keeps them in RATES_FILE, with as many processes and
    threads as the cells have.
    """
    if _kept_rates(bench) is not None:
        return
    num_ranks = bench.settings.num_ranks
    measured = {}
    for dtype in DTYPES:
        rate = machine_flops_per_s(dtype, num_ranks=num_ranks, num_threads=_num_threads(num_ranks))
        if rate is not None:
            measured[dtype] = rate
    write_text(bench.folder.path / RATES_FILE, json.dumps(asdict(_rates(bench, measured))) + "\n")


def results_of(bench: Bench) -> Results:
    measured = bench.folder.measurements()
    settings = bench.settings
    environment = Environment(
        model_size=settings.model_size,
        sequence_length=settings.sequence_length,
        num_steps=settings.num_steps,
        num_ranks=settings.num_ranks,
        num_threads=_num_threads(settings.num_ranks),
        hardware=hardware_in_words(settings.hardware),
        started_s=min((one.time_s for one in measured), default=0.0),
        revision=bench.settings.code[:10],
        versions=versions(),
        rates=_kept_rates(bench) or _rates(bench, {}),
    )
    return make_results(bench.cells, measured, environment, commands(bench))


def commands(bench: Bench) -> dict[str, str]:
    """By cell name, what runs it by itself."""

    def words(name: str) -> list[str]:
        return command(bench.folder, Turn(name, 0, 0), bench.settings_of(name), Path("RUN_DIR"))

    return {cell.name: shlex.join(["python", *words(cell.name)[1:]]) for cell in bench.cells}


def versions() -> dict[str, str]:
    return {**packages.versions(), "python": platform.python_version()}


def hardware_in_words(hardware: str) -> str:
    """The GPUs' name as it is; for "cpu" the processor's name and the number of cores."""
    if hardware != "cpu":
        return hardware
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {count_own_cores()} cores"


def data_sheet(hardware: str, num_ranks: int) -> dict[str, float]:
    """FLOP/s of all ranks' GPUs by the data sheet; nothing for a CPU, and for a GPU that is not in the table."""
    try:
        found = speeds(find_gpu(hardware).name)
    except UserError:
        return {}
    if found is None:
        return {}
    half, single = num_ranks * found.half_flops_per_s, num_ranks * found.single_flops_per_s
    # TF32 came with bf16, at half its rate on every card.
    return {"fp32": single, "bf16": half, "fp16": half, **({"tf32": half / 2} if has_bf16(hardware) else {})}


def _num_threads(num_ranks: int) -> int:
    return threads_here(os.environ, num_ranks)


def _rates(bench: Bench, measured: Mapping[str, float]) -> MatmulRates:
    return MatmulRates(measured, data_sheet(bench.settings.hardware, bench.settings.num_ranks))


def _kept_rates(bench: Bench) -> MatmulRates | None:
    """Those in RATES_FILE; None if there is none, or if it is damaged."""
    path = bench.folder.path / RATES_FILE
    try:
        return typed_json.read(path, MatmulRates) if path.exists() else None
    except DamagedError:
        return None
