"""The tables of a sweep, as text: the page and the Markdown show the same ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dist_trainer.benchmark.scaling.cells import Mode
from dist_trainer.benchmark.scaling.points import Point
from dist_trainer.benchmark.scaling.results import Environment
from dist_trainer.benchmark.worth.words import NOTHING, interval, percent, seconds, size
from dist_trainer.report.tables import Table
from dist_trainer.units import counted

TITLES: dict[Mode, str] = {
    "strong": "Strong scaling: the same batch of all ranks together",
    "weak": "Weak scaling: the same batch of each rank",
}


def scaling_table(points: Sequence[Point], mode: Mode) -> Table:
    header = (
        *("ranks", "speed-up", "95% interval", "ideal", "efficiency", "of ideal", "tokens/s", "step p50", "step p95"),
        *("planned peak", "measured peak", "data wait", "loss", "sequences a step", "threads", "rounds"),
    )
    wanted = [point for point in points if point.mode == mode]
    return Table(
        TITLES[mode],
        header,
        tuple(
            (
                f"{point.num_ranks}, more than cores" if point.is_crowded else str(point.num_ranks),
                speed_up(point),
                interval(point.speed_up),
                f"{point.ideal:.2f}",
                percent(point.efficiency),
                percent(point.share_of_ideal),
                NOTHING if point.tokens_per_s is None else f"{point.tokens_per_s:,.0f}",
                seconds(point.step_p50_s),
                seconds(point.step_p95_s),
                size(point.planned_bytes),
                size(point.peak_bytes),
                percent(point.data_wait_share, digits=2),
                NOTHING if point.loss is None else f"{point.loss:.4f}",
                f"{point.num_sequences} = {point.micro_batch} x {point.accumulation} x {point.num_ranks}",
                str(point.num_threads),
                f"{point.num_rounds}, {point.num_busy_rounds} busy" if point.num_busy_rounds else str(point.num_rounds),
            )
            for point in wanted
        ),
        kinds=tuple("missed" if point.judgement == "failed" else "" for point in wanted),
        note="Sequences a step: micro batch x accumulation x ranks. Threads: of each rank. Peaks: of the fullest rank.",
    )


def speed_up(point: Point) -> str:
    """The multiple, and whether it is shown to be one; or why there is none. "1" is what others are multiples of."""
    if point.speed_up is None:
        return point.judgement or "1"
    multiple = f"x{point.speed_up.value:.2f}"
    return f"{multiple}, {point.judgement}" if point.judgement == "no difference shown" else multiple


def failure_table(points: Sequence[Point]) -> Table | None:
    failed = tuple(
        (
            point.title,
            f"{counted(point.num_failed_rounds, 'round')} of {point.num_rounds + point.num_failed_rounds}",
            point.failure,
        )
        for point in each_cell(points)
        if point.failure is not None
    )
    return Table("What failed, and why", ("", "in", "reason"), failed) if failed else None


def command_table(points: Sequence[Point]) -> Table:
    rows = tuple((point.title, point.command) for point in each_cell(points))
    return Table("What runs each cell again by itself", ("", "command"), rows)


def environment_table(environment: Environment) -> Table:
    found = (
        ("measured", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(environment.started_s))),
        ("model", f"{environment.model_size}, sequences of {counted(environment.sequence_length, 'token')}"),
        ("DeepSpeed JSON", environment.deepspeed),
        ("steps", f"{environment.num_steps} a measurement"),
        ("hardware", environment.hardware),
        ("this host", f"{counted(environment.num_cores, 'core')}, {counted(environment.num_gpus, 'GPU')}"),
        *([("revision", environment.revision)] if environment.revision else []),
        *sorted(environment.versions.items()),
    )
    return Table("Environment", ("", ""), found)


def each_cell(points: Sequence[Point]) -> list[Point]:
    """The smallest world is in both kinds, but once here."""
    return list({point.cell: point for point in points}.values())
