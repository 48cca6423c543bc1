"""The model that a checkpoint has, once every byte of it is known to be as it was written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dist_trainer.checkpoints.find import Found, Resume, Use, find
from dist_trainer.checkpoints.index import INDEX_FILE, WEIGHT
from dist_trainer.checkpoints.verify import damages
from dist_trainer.config.run import ModelConfig
from dist_trainer.encoding import printable
from dist_trainer.errors import UserError, cut

if TYPE_CHECKING:
    import torch

    from dist_trainer.model.gpt import GPT

SAMPLING = Use(
    act="sample from",
    acted="sampled from",
    where="command line",
    instead="name it: {folder}",
    without="name one of another run",
)


def find_whole(path: Path) -> tuple[Found, tuple[str, ...]]:
    """The checkpoint at `path`: a run's folder, its checkpoints folder, or one step-N folder; and notices about it.

    Every byte is read. Where one is not as it was written, the newest whole checkpoint before it is taken, with a
    notice; one step-N folder is refused. Raises UserError.
    """
    damaged: dict[Path, str] = {}
    while True:
        # Never "auto" or "never", which mean something else there.
        resume: Resume = find(os.path.join(".", path), None, damaged=damaged, use=SAMPLING)  # noqa: PTH118
        assert resume.found is not None
        damage = next(damages(resume.found.folder, resume.found.index), None)
        if damage is None:
            return resume.found, resume.notices
        damaged[resume.found.folder.resolve()] = f"{damage.file.name} {damage.problem}"


def model_config(found: Found) -> ModelConfig:
    """The shape of the checkpoint's model, without what matters in training alone. Raises UserError for one that no
    model has.
    """
    try:
        config = ModelConfig.model_validate(found.index.made_by.run.get("model"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(("model", *(str(part) for part in first["loc"])))
        raise UserError(
            "the checkpoint does not say what model it is of",
            where=str(found.folder / INDEX_FILE),
            key=printable(cut(key)),
            found=first["msg"],
            expected="the `model` of a run file",
        ) from error
    return config.model_copy(update={"pad_vocab": False, "dropout": 0.0})


def load_model(found: Found, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> GPT:
    """The model with the checkpoint's weights. Nothing is allocated before it is known to be of the checkpoint's size.

    Raises UserError if the parameters are not those of the model that it says it is, DamageError if it can be read no
    longer.
    """
    import torch

    from dist_trainer.exchange.reading import Reader
    from dist_trainer.model.gpt import GPT

    with torch.device("meta"):
        model = GPT(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    _check_same(found, shapes)
    weights = {}
    with Reader(found.folder, found.index) as reader:
        for name, shape in shapes.items():
            weights[name] = torch.empty(shape, dtype=dtype, device=device)
            reader.read_into(weights[name], name, WEIGHT, 0)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def _check_same(found: Found, shapes: dict[str, tuple[int, ...]]) -> None:
    there = {name: parameter.shape for name, parameter in found.index.parameters.items()}
    if there == shapes:
        return
    name = next(name for name in (*shapes, *there) if there.get(name) != shapes.get(name))
    raise UserError(
        "the checkpoint's weights are not those of the model that it says it is of",
        where=str(found.folder / INDEX_FILE),
        key=printable(name),
        found=f"shape {there[name]}" if name in there else "none",
        expected=f"shape {shapes[name]}" if name in shapes else "no such parameter",
    )
