"""Whether a run that is not started could resume from a checkpoint, what would change, and what it would read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_trainer.checkpoints.changed import data_facts, differences, made_by, refuse_another_kind
from dist_trainer.checkpoints.facts import states_of
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import DataFacts
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.deepspeed.rules import zero_stage
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import ResolvedRun, names, resolve
from dist_trainer.data.corpus import STANDARD_LIBRARY
from dist_trainer.data.tokens import open_tokens
from dist_trainer.errors import UserError


@dataclass(frozen=True)
class Resuming:
    """`refusal`: why it cannot be, None where it can. `differences`: one line for each thing that would change.

    `states_bytes`: what each rank reads of weights and states; with ZeRO its share, but for padding. `verified_bytes`:
    what each rank reads before that, to see whether all is as it was written. `without_data`: phases whose data is not
    made before a run needs it, and was not compared.
    """

    config: str
    deepspeed: str
    world_size: int
    refusal: UserError | None
    differences: tuple[str, ...]
    states_bytes: int
    verified_bytes: int
    without_data: tuple[str, ...]


def resuming(found: Found, request: Request, *, world_size: int) -> Resuming:
    """Raises UserError for a mistake in the files, and for data that cannot be opened."""
    resolved = resolve(request, world_size=world_size, device=ANY_DEVICE, done=found.index.position.phases)
    now = made_by(resolved, world_size=world_size, data=_data(resolved))
    refusal = None
    try:
        refuse_another_kind(found, now)
    except UserError as error:
        refusal = error
    states_bytes = sum(state.num_bytes for state in states_of(found.index).values())
    config, deepspeed = names(request)
    return Resuming(
        config,
        deepspeed,
        world_size,
        refusal,
        tuple(differences(found, now)),
        -(-states_bytes // world_size) if zero_stage(resolved.deepspeed) else states_bytes,
        -(-found.index.num_bytes // world_size),
        tuple(phase.name for phase in resolved.phases if phase.data == STANDARD_LIBRARY),
    )


def _data(resolved: ResolvedRun) -> dict[str, DataFacts]:
    vocab_size = resolved.run.model.vocab_size
    return {
        phase.name: data_facts(open_tokens(Path(phase.data), "train", vocab_size))
        for phase in resolved.phases
        if phase.data != STANDARD_LIBRARY
    }
