"""What `--init-from` means: the weights that a new run begins from, without moments and without a position."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.checkpoints.facts import model_of
from dist_trainer.checkpoints.find import Found, Resume, Use, find
from dist_trainer.checkpoints.index import INDEX_FILE
from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.errors import UserError
from dist_trainer.exchange.foreign import open_foreign
from dist_trainer.exchange.weights import Weights

SWITCH = "--init-from"
BEGINNING = Use(
    act="begin from",
    acted="begun from",
    where=SWITCH,
    instead=f"begin from it with {SWITCH} {{folder}}",
    without="name one of another run",
    expected="a run's folder with checkpoints, one checkpoints/step-N folder, a folder of transformers' GPT-2, or a "
    "DeepSpeed checkpoint",
)


@dataclass(frozen=True)
class Initial:
    """`source`: a checkpoint of this program, whose bytes are still to be verified, or another program's weights.
    `said`: what it is, for people.
    """

    source: Found | Weights
    said: str
    notices: tuple[str, ...]

    @property
    def found(self) -> Found | None:
        return self.source if isinstance(self.source, Found) else None

    @property
    def fingerprint(self) -> str:
        """The same on every rank that sees the same weights."""
        if isinstance(self.source, Found):
            return f"{self.source.folder.name} of {self.source.index.num_bytes} bytes"
        return self.source.fingerprint


def check_initial(
    init_from: Path | None,
    resume: Resume,
    resolved: ResolvedRun,
    *,
    asked_resume: str = "auto",
    with_files: bool = True,
    damaged: Mapping[Path, str] | None = None,
) -> Initial | None:
    """What the run begins from; None if it does not ask for any, or resumes from a checkpoint of its own.

    `resume`: what the run resumes from, as `--resume`, which says `asked_resume`, selects it. `with_files` and
    `damaged` as in `checkpoints.find`. Raises UserError if there are no weights at `init_from`, if they are damaged or
    of another model, and if `--resume` names another beginning.
    """
    if init_from is None:
        return None
    if asked_resume not in ("auto", "never"):
        raise UserError(
            "the run has two beginnings",
            where=SWITCH,
            found=f"{init_from}, and --resume {asked_resume}",
            hint=f"leave one of them out: --resume goes on with moments and position, {SWITCH} begins a new run",
        )
    if resume.found is not None:
        return None
    initial = _find(init_from, with_files=with_files, damaged=damaged)
    _refuse_other_shape(initial, init_from, resolved)
    return initial


def not_read(init_from: Path | None, resume: Resume) -> tuple[str, ...]:
    """A line if a checkpoint of the run comes before what it was asked to begin from."""
    if init_from is None or resume.found is None:
        return ()
    step = resume.found.index.position.step
    return (f"{SWITCH} {init_from} is not read: it was for the first start, and the run goes on from step {step}",)


def _find(init_from: Path, *, with_files: bool, damaged: Mapping[Path, str] | None) -> Initial:
    foreign = open_foreign(init_from)
    if foreign is not None:
        return Initial(foreign, f"{init_from} ({foreign.said})", foreign.notices)
    # Never "auto" or "never", which mean something else there.
    path = os.path.join(".", init_from)  # noqa: PTH118
    chosen = find(path, None, with_files=with_files, damaged=damaged, use=BEGINNING)
    assert chosen.found is not None
    made = chosen.found.index.made_by
    said = made.imported_from or f"after step {chosen.found.index.position.step}"
    return Initial(chosen.found, f"{chosen.found.folder} ({said})", chosen.notices)


def _refuse_other_shape(initial: Initial, init_from: Path, resolved: ResolvedRun) -> None:
    if isinstance(initial.source, Found):
        there, where = dict(model_of(initial.source.index.made_by)), str(initial.source.folder / INDEX_FILE)
    else:
        there, where = vars(initial.source.shape), str(init_from)
    run = resolved.run.model
    other = {key: said for key, said in there.items() if said is not None and said != getattr(run, key)}
    if not other:
        return
    key, said = next(iter(other.items()))
    raise UserError(
        "the run's model is another one than that whose weights it is to begin from",
        where=resolved.run_source,
        key=f"model.{key}",
        found=getattr(run, key),
        expected=f"{said}, as {where} has it",
        hint="set the run's model to it: " + " ".join(f"--set model.{name}={value}" for name, value in other.items()),
    )
