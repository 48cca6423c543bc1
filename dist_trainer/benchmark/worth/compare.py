"""Two results side by side, matched by cell: what the intervals show to have become slower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_trainer.benchmark.worth.ratios import Estimate
from dist_trainer.benchmark.worth.results import Environment, Results, read_results
from dist_trainer.benchmark.worth.rows import Row
from dist_trainer.benchmark.worth.words import NOTHING, SPOILS, interval
from dist_trainer.encoding import printable
from dist_trainer.errors import EXIT_FAILURE, EXIT_OK, UserError
from dist_trainer.units import counted

Side = Literal["slower", "faster"]


@dataclass(frozen=True)
class Change:
    """A cell in both results; `old` or `new` is None if that result does not have it.

    `ratio`: what has become of its speed beside each result's own baseline, `speed`: of its tokens/s; None if no change
    is shown, or none can be judged. `fails`: why a cell that was measured before fails now, if that is judged.
    """

    title: str
    old: Row | None
    new: Row | None
    ratio: Side | None = None
    speed: Side | None = None
    fails: str | None = None

    @property
    def is_regression(self) -> bool:
        return "slower" in (self.ratio, self.speed) or self.fails is not None


@dataclass(frozen=True)
class Comparison:
    """`other_hardware`: how the machines differ; if they do, neither tokens/s nor what fails now is judged.
    `differences`: how else the results differ.
    """

    changes: Sequence[Change]
    other_hardware: Sequence[str]
    differences: Sequence[str]

    @property
    def regressions(self) -> list[Change]:
        return [change for change in self.changes if change.is_regression]

    @property
    def exit_status(self) -> int:
        return EXIT_FAILURE if self.regressions else EXIT_OK


def compare_folders(old: Path, new: Path) -> Comparison:
    """Raises UserError if a folder has no results, or if their model or sequence length is not the same."""
    results = read_results(old), read_results(new)
    for key in ("model_size", "sequence_length"):
        was, now = (getattr(one.environment, key) for one in results)
        if was != now:
            raise UserError(
                "these results are not of the same work",
                where=str(new),
                key=f"environment.{key}",
                found=now,
                expected=f"{was!r}, as in {old}",
                hint="compare results of the same model and sequence length",
            )
    return compare(*results)


def compare(old: Results, new: Results) -> Comparison:
    """The results have to be of the same model and sequence length."""
    other_hardware = tuple(_differences(old.environment, new.environment, ("hardware", "num_ranks", "num_threads")))
    before, after = ({row.cell: row for row in one.rows} for one in (old, new))
    cells = dict.fromkeys([*before, *after])
    return Comparison(
        changes=tuple(
            _change(before.get(cell), after.get(cell), is_same_hardware=not other_hardware) for cell in cells
        ),
        other_hardware=other_hardware,
        differences=(
            *_differences(old.environment, new.environment, ("num_steps", "revision")),
            *_version_differences(old.environment, new.environment),
        ),
    )


def side(old: Estimate | None, new: Estimate | None) -> Side | None:
    """Which way the new interval lies if the two do not touch; None if they do, or if one is missing."""
    if old is None or new is None or old.low is None or old.high is None or new.low is None or new.high is None:
        return None
    if new.high < old.low:
        return "slower"
    return "faster" if new.low > old.high else None


def text(comparison: Comparison) -> str:
    """For a terminal, with a last line that says what the exit status stands for."""
    header = ("", "x baseline, old", "new", "tokens/s, old", "new", "peak", "")
    rows = [header, *(_cells(change) for change in comparison.changes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            value.ljust(width) if column in (0, len(header) - 1) else value.rjust(width)
            for column, (value, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += ["", *(f"differs: {one}" for one in comparison.differences)]
    if comparison.other_hardware:
        lines += [
            f"other hardware: {'; '.join(comparison.other_hardware)}",
            "Judged: each cell beside its own baseline. Not judged: tokens/s, and what fails now.",
        ]
    else:
        lines.append("The same hardware. Judged: each cell beside its own baseline, tokens/s, and what fails now.")
    return printable("\n".join([*lines, _last_line(comparison)])) + "\n"


def _last_line(comparison: Comparison) -> str:
    found = comparison.regressions
    if not found:
        return "No regression is shown."
    return f"{counted(len(found), 'regression')}: {', '.join(change.title for change in found)}."


def _change(old: Row | None, new: Row | None, *, is_same_hardware: bool) -> Change:
    either = new or old
    assert either is not None
    # The noise cells are the baseline again: what they show is noise.
    if old is None or new is None or either.group == "noise":
        return Change(either.title, old, new)
    has_failed = is_same_hardware and old.num_rounds > 0 and new.judgement == "failed"
    return Change(
        either.title,
        old,
        new,
        ratio=side(old.ratio, new.ratio),
        speed=side(old.speed, new.speed) if is_same_hardware else None,
        fails=new.failure if has_failed else None,
    )


def _cells(change: Change) -> tuple[str, ...]:
    old, new = change.old, change.new
    return (
        change.title,
        _ratio(old),
        _ratio(new),
        _tokens(old),
        _tokens(new),
        _peak(old, new),
        "; ".join(_said(change)),
    )


def _said(change: Change) -> Iterator[str]:
    """What the last column says of a row."""
    old, new = change.old, change.new
    if old is None or new is None:
        yield "only in the old results" if new is None else "only in the new results"
        return
    if change.fails is not None:
        yield f"REGRESSION: fails now: {change.fails}"
    elif new.judgement == "failed":
        yield f"fails: {new.failure}"
    for found, of in ((change.ratio, "beside its baseline"), (change.speed, "in tokens/s")):
        if found is not None:
            yield f"{'REGRESSION: ' if found == 'slower' else ''}{found} {of}"
    if new.loss_is_spoiled and not old.loss_is_spoiled:
        yield f"{SPOILS} now"
    yield from _unjudged(change, old, new)


def _unjudged(change: Change, old: Row, new: Row) -> Iterator[str]:
    """Why nothing is shown, where nothing is."""
    if old.group == "noise":
        yield "noise, not judged"
    elif not old.num_rounds and new.num_rounds:
        yield f"{old.judgement} before"
    elif not new.num_rounds:
        # What failed was said.
        yield from [] if new.judgement == "failed" else [f"{new.judgement} now"]
    elif change.ratio is None and change.speed is None:
        pairs = ((old.ratio, new.ratio), (old.speed, new.speed))
        has_intervals = any(was and now and was.low is not None and now.low is not None for was, now in pairs)
        yield "no difference shown" if has_intervals else "too few rounds"


def _ratio(row: Row | None) -> str:
    if row is None or row.ratio is None:
        return NOTHING
    return f"{row.ratio.value:.2f}" if row.ratio.low is None else interval(row.ratio)


def _tokens(row: Row | None) -> str:
    return NOTHING if row is None or row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}"


def _peak(old: Row | None, new: Row | None) -> str:
    if old is None or new is None or not old.peak_bytes or new.peak_bytes is None:
        return NOTHING
    return f"{new.peak_bytes / old.peak_bytes - 1:+.1%}"


def _differences(old: Environment, new: Environment, keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        was, now = getattr(old, key), getattr(new, key)
        if was != now:
            yield f"{key} {_known(was)}, now {_known(now)}"


def _version_differences(old: Environment, new: Environment) -> Iterator[str]:
    for name in sorted({*old.versions, *new.versions}):
        was, now = old.versions.get(name), new.versions.get(name)
        if was != now:
            yield f"{name} {_known(was)}, now {_known(now)}"


def _known(value: object) -> str:
    return "not known" if value is None else str(value)
