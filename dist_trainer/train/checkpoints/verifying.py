"""All ranks together read every byte of the checkpoint that a run starts from, before anything is built on it."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.verify import damages
from dist_trainer.errors import RunError


def damage_of(found: Found | None, *, seen: str) -> dict[Path, str]:
    """What is wrong with the files of the checkpoint, by its folder; empty if nothing is, or there is no checkpoint.
    Collective.

    `seen`: what this rank starts from. Raises RunError if ranks do not see the same.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    own = None
    if found is not None:
        damage = next(damages(found.folder, found.index, share=rank, num_shares=world_size), None)
        own = None if damage is None else f"{damage.file.name} {damage.problem}"
    answers: list[tuple[str, str | None]] = [("", None)] * world_size
    dist.all_gather_object(answers, (seen, own))
    other = next((number for number, (theirs, _) in enumerate(answers) if theirs != answers[0][0]), None)
    if other is not None:
        raise RunError(
            "ranks do not see the same checkpoint",
            where=f"rank {other}",
            found=answers[other][0],
            expected=f"{answers[0][0]}, as rank 0 sees",
            hint="the checkpoint has to be in a folder that all hosts share",
        )
    problem = next((problem for _, problem in answers if problem is not None), None)
    return {} if found is None or problem is None else {found.folder.resolve(): problem}
