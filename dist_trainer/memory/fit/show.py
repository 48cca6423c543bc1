"""The result of a search as text for people."""

from __future__ import annotations

from collections.abc import Iterator

from dist_trainer.memory.fit.candidates import Candidate
from dist_trainer.memory.fit.choices import NEUTRAL
from dist_trainer.memory.fit.reasons import risk_line
from dist_trainer.memory.fit.search import Fit
from dist_trainer.memory.plan import needed
from dist_trainer.units import format_gb


def render(fit: Fit) -> str:
    """The winner, what else fits, why the winner's neighbours were not chosen, and what is assumed."""
    limit = f"{fit.limits.name}: {format_gb(fit.limits.num_bytes)}"
    lines = [
        f"{fit.num_candidates} candidates in {fit.seconds:.1f} s, against {limit} a GPU",
        f"({fit.num_planned} planned; the others cost more than those shown, or need more than one that does not fit)",
        "",
        *(_nothing(fit) if fit.winner is None else _found(fit, fit.winner)),
        "",
        "assumed",
        *(f"  {line}" for line in fit.assumptions),
    ]
    return "\n".join(lines) + "\n"


def _found(fit: Fit, winner: Candidate) -> Iterator[str]:
    figure = needed(winner.rank)
    yield f"winner     {winner.choice} x accumulation {winner.accumulation}"
    yield (
        f"           {format_gb(figure.num_bytes)} of {format_gb(fit.limits.num_bytes)}, expected between "
        f"{format_gb(figure.low_bytes)} and {format_gb(figure.high_bytes)}; peak in {winner.rank.peak_phase}"
    )
    if figure.high_bytes > fit.limits.num_bytes:
        yield f"           the upper end would be over {fit.limits.name}"
    if winner.rank.host_bytes:
        yield f"           {format_gb(winner.rank.host_bytes)} a rank in the host's memory"
    if winner.risk != NEUTRAL:
        yield f"           nothing better fits: {risk_line(winner)}"
    total = winner.cost.total_s
    shares = sorted(winner.cost.parts.items(), key=lambda item: -item[1])
    yield "cost       " + ", ".join(
        f"{name} {100 * part / total:.0f}%" for name, part in shares if part > 0.005 * total
    )
    yield ""
    yield "ranking (cost of a step, NVML's figure)"
    for candidate in fit.ranking:
        risk = f"; {risk_line(candidate)}" if candidate.risk != NEUTRAL else ""
        ratio = candidate.cost.total_s / total
        yield f"  {ratio:5.2f} x  {format_gb(candidate.needed_bytes):>9}  {candidate.choice}{risk}"
    yield ""
    yield "why not"
    for label, reason in fit.rejected:
        yield f"  {label}: {reason}"


def _nothing(fit: Fit) -> Iterator[str]:
    yield "nothing fits"
    if fit.nearest is None:
        return
    over = fit.nearest.needed_bytes - fit.limits.num_bytes
    missed = f"over by {format_gb(over)}" if over > 0 else "but the host's memory does not hold what is offloaded"
    yield f"nearest    {fit.nearest.choice}: {format_gb(fit.nearest.needed_bytes)}, {missed}"
    if fit.nearest.risk != NEUTRAL:
        yield f"           {risk_line(fit.nearest)}"
    parts = sorted(fit.nearest.rank.parts.items(), key=lambda item: -item[1])[:5]
    made_of = ", ".join(f"{name} {format_gb(size)}" for name, size in parts)
    yield f"made of    {made_of}; peak in {fit.nearest.rank.peak_phase}"
    yield ""
    yield "what would help"
    for line in fit.helps:
        yield f"  {line}"
