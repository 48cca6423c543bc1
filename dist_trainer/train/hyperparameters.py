"""Keeps the JSON's optimizer settings when a checkpoint is loaded, which would restore its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

# The keys of a parameter group that are no settings: its weights, and the step count that DeepSpeed's FusedAdam keeps.
_STATE_OF_A_GROUP = ("params", "step")
_STATE_OF_A_LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
# The attribute's name in ZeRO's optimizers, and in those without ZeRO.
_LOSS_SCALES = ("loss_scaler", "loss_scale_config")


@dataclass(frozen=True)
class Hyperparameters:
    """The settings of each parameter group, the clipping norm, and the loss scaling."""

    groups: list[dict[str, Any]]
    clip_grad: float | None
    loss_scales: dict[str, Any]

    @classmethod
    def of(cls, optimizer: Any) -> Hyperparameters:
        """The settings of an optimizer as it was built."""
        groups = [
            {name: copy.deepcopy(value) for name, value in group.items() if name not in _STATE_OF_A_GROUP}
            for group in optimizer.param_groups
        ]
        scales = {name: copy.copy(getattr(optimizer, name)) for name in _LOSS_SCALES if hasattr(optimizer, name)}
        return cls(groups, getattr(optimizer, "clip_grad", None), scales)

    def put_back(self, optimizer: Any) -> None:
        """Sets them in the optimizer again. A dynamic loss scale keeps the value that it had reached."""
        for group, settings in zip(optimizer.param_groups, self.groups, strict=True):
            group.update(settings)
        if self.clip_grad is not None:
            optimizer.clip_grad = self.clip_grad
        for name, scale in self.loss_scales.items():
            reached = getattr(optimizer, name)
            if _is_dynamic(scale) and _is_dynamic(reached):
                for state in _STATE_OF_A_LOSS_SCALE:
                    if hasattr(scale, state):
                        setattr(scale, state, getattr(reached, state))
            setattr(optimizer, name, scale)


def _is_dynamic(scale: Any) -> bool:
    return bool(getattr(scale, "dynamic", False) or getattr(scale, "dynamic_loss_scale", False))
