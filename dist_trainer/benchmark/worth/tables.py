"""The tables of a benchmark, as text: the page and the Markdown show the same ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dist_trainer.benchmark.worth.contributions import Contributions
from dist_trainer.benchmark.worth.results import Environment
from dist_trainer.benchmark.worth.rows import Row
from dist_trainer.benchmark.worth.words import NOTHING, interval, judged, percent, seconds, size, worth
from dist_trainer.report.tables import Table
from dist_trainer.units import counted

# What a judgement's row looks like in the page.
_KINDS = {"faster": "met", "slower": "missed", "spoils the loss": "missed", "failed": "missed"}


def speed_table(rows: Sequence[Row]) -> Table:
    header = (
        *("", "judgement", "tokens/s", "x baseline", "95% interval", "step p50", "step p95", "first step", "compile"),
        *("data wait", "MFU", "MFU, data sheet", "rounds"),
    )
    return Table(
        "Speed",
        header,
        tuple(
            (
                numbered(number, row),
                judged(row),
                NOTHING if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
                NOTHING if row.ratio is None else f"{row.ratio.value:.3f}",
                interval(row.ratio),
                seconds(row.step_p50_s),
                seconds(row.step_p95_s),
                seconds(row.first_step_s),
                seconds(row.compile_s),
                percent(row.data_wait_share, digits=2),
                percent(row.mfu),
                percent(row.mfu_of_data_sheet),
                _rounds(row),
            )
            for number, row in enumerate(rows, start=1)
        ),
        kinds=_kinds(rows),
        note=_busy_note(rows),
    )


def memory_table(rows: Sequence[Row]) -> Table:
    return Table(
        "Memory, loss and energy",
        ("", "planned peak", "measured peak", "reduction", "loss", "loss within the seeds' spread", "energy"),
        tuple(
            (
                numbered(number, row),
                size(row.planned_bytes),
                size(row.peak_bytes),
                percent(row.reduction),
                NOTHING if row.loss is None else f"{row.loss:.4f}",
                {None: NOTHING, True: "no", False: "yes"}[row.loss_is_spoiled],
                NOTHING if row.energy_j is None else f"{row.energy_j:,.0f} J",
            )
            for number, row in enumerate(rows, start=1)
        ),
        kinds=tuple("missed" if row.loss_is_spoiled else "" for row in rows),
    )


def worth_table(found: Contributions) -> Table | None:
    if not any(one.alone or one.in_all for one in found.each):
        return None
    return Table(
        "What each optimisation is worth",
        ("", "speed, alone", "speed, in all", "memory, alone", "memory, in all"),
        tuple(
            (
                one.title,
                NOTHING if one.alone is None else worth(one.alone, is_spoiled=one.spoils_alone),
                NOTHING if one.in_all is None else worth(one.in_all, is_spoiled=one.spoils_in_all),
                _saved(one.reduction_alone),
                _saved(one.reduction_in_all),
            )
            for one in found.each
        ),
        note="Alone: beside the baseline. In all: all together beside all without it.",
    )


def failure_table(rows: Sequence[Row]) -> Table | None:
    failed = tuple(
        (
            numbered(number, row),
            counted(row.num_failed_rounds, "round") + (f" of {row.num_rounds + row.num_failed_rounds}"),
            row.failure,
        )
        for number, row in enumerate(rows, start=1)
        if row.failure is not None
    )
    return Table("What failed, and why", ("", "in", "reason"), failed) if failed else None


def command_table(rows: Sequence[Row]) -> Table | None:
    known = tuple((numbered(number, row), row.command) for number, row in enumerate(rows, start=1) if row.command)
    return Table("What runs each row again by itself", ("", "command"), known) if known else None


def environment_table(environment: Environment) -> Table:
    rates = [
        (f"matrix product, {dtype}{of}", f"{flops_per_s / 1e12:.3g} TFLOP/s")
        for of, rates in ((", measured", environment.rates.measured), (", data sheet", environment.rates.data_sheet))
        for dtype, flops_per_s in sorted(rates.items())
    ]
    found = [
        ("measured", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(environment.started_s))),
        ("model", f"{environment.model_size}, sequences of {counted(environment.sequence_length, 'token')}"),
        ("steps", f"{environment.num_steps} a measurement"),
        ("hardware", environment.hardware),
        ("ranks", f"{environment.num_ranks}, of {counted(environment.num_threads, 'thread')} each"),
        *rates,
        *([("revision", environment.revision)] if environment.revision else []),
        *sorted(environment.versions.items()),
    ]
    return Table("Environment", ("", ""), tuple(found))


def numbered(number: int, row: Row) -> str:
    """The row's title with the number that stands beside its point in the chart."""
    return f"{number}. {row.title}" + (f" (ran in {row.ran_in})" if row.ran_in else "")


def _rounds(row: Row) -> str:
    return f"{row.num_rounds}, {row.num_busy_rounds} busy" if row.num_busy_rounds else str(row.num_rounds)


def _busy_note(rows: Sequence[Row]) -> str:
    if not any(row.num_busy_rounds for row in rows):
        return ""
    return "Busy: rounds in which other processes took more than a tenth of the CPU time. They count."


def _kinds(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(_KINDS.get(row.judgement, "") for row in rows)


def _saved(reduction: float | None) -> str:
    if reduction is None:
        return NOTHING
    return f"{abs(reduction):.1%} {'less' if reduction >= 0 else 'more'}"
