"""How many bytes a checkpoint takes on disk, by arithmetic.

Source: what DeepSpeed 0.19.8's engine writes. With ZeRO each rank writes its part of the master weights (fp32, or as
the JSON says) and of the optimizer's states, and up to stage 2 rank 0 writes the whole weights beside them; at stage 3
the weights are in those parts only.
"""

from __future__ import annotations

from collections.abc import Sequence

from dist_trainer.memory.engines.settings import BYTES_OF, Settings

# Per rank: names, shapes and the framing of the files; measured at 7 to 80 kB for small models.
FRAME_BYTES = 100_000


def checkpoint_bytes(settings: Settings, num_parameters: int, world_size: int) -> int:
    """Bytes of one checkpoint: all files of all ranks together."""
    weights = settings.weight_bytes if settings.stage < 3 else 0
    # Plain fp32 training has no copy of the weights beside the model's own.
    master = settings.master_bytes if settings.stage > 0 or settings.dtype != "fp32" else 0
    states = settings.states_per_parameter * BYTES_OF[settings.states_dtype]
    return num_parameters * (weights + master + states) + world_size * FRAME_BYTES


def num_checkpoints(steps_by_phase: Sequence[int], *, every_steps: int, at_end: bool) -> int:
    """How many checkpoints a run writes: every `every_steps` steps (0: none), with `at_end` after each phase.

    Those at intervals of minutes are not counted.
    """
    total, ends = 0, set()
    for steps in steps_by_phase:
        total += steps
        if at_end:
            ends.add(total)
    regular = set(range(every_steps, total + 1, every_steps)) if every_steps else set()
    return len(regular | ends)
