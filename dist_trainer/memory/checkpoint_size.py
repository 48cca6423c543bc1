"""How many bytes a checkpoint takes on disk, and its copy in each rank's host memory, by arithmetic.

Source: train/checkpoints/capture.py. The ranks together write each parameter's weight and the optimizer's states of it
once: the master weight where there is one (fp32, or as the JSON says), else the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from dist_trainer.memory.engines.ledger import pinned as round_pinned
from dist_trainer.memory.engines.settings import BYTES_OF, Settings

# Per rank: the data file's header and its pieces in the index; 20 to 200 kB.
FRAME_BYTES = 100_000


def checkpoint_bytes(settings: Settings, num_parameters: int, world_size: int) -> int:
    """Bytes of one checkpoint: all files of all ranks together."""
    return num_parameters * _bytes_a_parameter(settings) + world_size * FRAME_BYTES


def copy_bytes(settings: Settings, num_parameters: int, world_size: int, *, pinned: bool) -> int:
    """Bytes that each rank keeps for copies of what it saves; pinned memory comes in powers of two."""
    num_bytes = -(-num_parameters // world_size) * _bytes_a_parameter(settings)
    return round_pinned(num_bytes) if pinned else num_bytes


def _bytes_a_parameter(settings: Settings) -> int:
    # Plain fp32 training has no copy of the weights beside the model's own.
    has_master = settings.stage > 0 or settings.dtype != "fp32"
    weight = settings.master_bytes if has_master else settings.weight_bytes
    return weight + settings.states_per_parameter * BYTES_OF[settings.states_dtype]


def num_checkpoints(steps_by_phase: Sequence[int], *, every_steps: int, at_end: bool) -> int:
    """How many checkpoints a run writes: every `every_steps` steps (0: none), with `at_end` after each phase.

    Those at intervals of minutes, or by `every: auto`, are not counted.
    """
    total, ends = 0, set()
    for steps in steps_by_phase:
        total += steps
        if at_end:
            ends.add(total)
    regular = set(range(every_steps, total + 1, every_steps)) if every_steps else set()
    return len(regular | ends)
