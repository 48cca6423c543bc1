"""What `--sweep` takes: `world=1,2,4`, the numbers of ranks that are measured beside each other."""

from __future__ import annotations

from collections.abc import Sequence

from dist_trainer.errors import UserError
from dist_trainer.units import counted, whole_number

EXPECTED = "world=N,M,...: two or more different numbers of ranks above 0"


def parse(text: str) -> tuple[int, ...]:
    """The numbers of ranks, ascending. Raises UserError for any other text."""
    name, _, listed = text.partition("=")
    if name != "world":
        raise _refused("this cannot be swept", name)
    worlds = []
    for word in listed.split(","):
        number = whole_number(word.strip())
        if not number:
            raise _refused("not a number of ranks", word)
        worlds.append(number)
    twice = next((world for world in worlds if worlds.count(world) > 1), None)
    if twice is not None:
        raise _refused("a number of ranks said twice", twice)
    if len(worlds) < 2:
        raise _refused("one number of ranks has nothing to be compared with", text)
    return tuple(sorted(worlds))


def check_gpus(worlds: Sequence[int], num_gpus: int) -> None:
    """Raises UserError if the host has GPUs, and fewer than the largest world needs."""
    if 0 < num_gpus < max(worlds):
        raise UserError(
            f"{counted(max(worlds), 'rank')} need {counted(max(worlds), 'GPU')}",
            where="--sweep",
            found=f"{counted(num_gpus, 'GPU')} of this host that can be seen",
            hint="sweep fewer ranks: a sweep is of this host alone",
        )


def in_words(worlds: Sequence[int]) -> str:
    return f"world={','.join(map(str, worlds))}"


def _refused(problem: str, found: object) -> UserError:
    return UserError(problem, where="--sweep", found=found, expected=EXPECTED)
