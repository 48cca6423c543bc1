"""A folder that transformers' `save_pretrained` made of a GPT-2: config.json, and safetensors in one file or more."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_trainer import strict_json
from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.inside import read_inside
from dist_trainer.encoding import printable
from dist_trainer.errors import UserError, cut
from dist_trainer.exchange.gpt2_form import OUTPUT, PREFIX, TOKENS, Shape, model_of, their_names, weights_of
from dist_trainer.exchange.safetensors_file import SafetensorsFile, Stored, open_safetensors
from dist_trainer.exchange.weights import Weights, check_names, own_output
from dist_trainer.units import MIB

if TYPE_CHECKING:
    from torch import Tensor

    from dist_trainer.config.run import ModelConfig

CONFIG_FILE = "config.json"
_FILE, _INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_PICKLE = "pytorch_model.bin"
_MAX_CONFIG_BYTES, _MAX_INDEX_BYTES = MIB, 4 * MIB
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")
_DTYPES = ("F32", "BF16", "F16", "F64")


def has_weights(folder: Path) -> bool:
    """Whether there is a model's file that transformers would load."""
    return any((folder / name).exists() for name in (_FILE, _INDEX_FILE))


def read_config(folder: Path) -> ModelConfig:
    """The model that config.json describes. Raises UserError, and DamageError for a file that cannot be read."""
    return model_of(_read_json(folder / CONFIG_FILE, _MAX_CONFIG_BYTES), str(folder / CONFIG_FILE))


def open_folder(folder: Path) -> Weights:
    """Looks at names, shapes and places of all weights; reads those of an output embedding alone, to compare it.

    Raises UserError for a model that this program's GPT cannot be; DamageError for files that are not what they say, or
    lie elsewhere.
    """
    model = read_config(folder)
    files = _open_files(folder)
    where = {name: file for file in files for name in file.tensors}
    in_file = their_names(where)
    _check_output(folder, where, in_file)
    stored = {theirs: where[name].tensors[name] for theirs, name in in_file.items() if theirs != OUTPUT}
    weights = {weight.theirs: weight for weight in weights_of(model)}
    check_names(weights, {name: one.shape for name, one in stored.items()}, folder)
    _check_dtypes(folder, stored)
    ours = {weight.ours: weight for weight in weights.values()}

    def read(parameter: str) -> Tensor:
        weight = ours[parameter]
        name = in_file[weight.theirs]
        tensor = where[name].read(name)
        return tensor.t().contiguous() if weight.transposed else tensor

    dtypes = {name: stored[weight.theirs].dtype for name, weight in ours.items()}
    digest = hashlib.sha256("".join(file.digest for file in files).encode()).hexdigest()
    kinds = ", ".join(sorted(set(dtypes.values())))
    what = f"a GPT-2 of transformers, {kinds}"
    return Weights(folder, what, Shape.of(model), model.dropout, dtypes, read, digest)


def _open_files(folder: Path) -> list[SafetensorsFile]:
    if (folder / _FILE).exists() or not (folder / _INDEX_FILE).exists():
        if not (folder / _FILE).exists() and any(folder.glob(f"{_PICKLE}*")):
            raise UserError(
                "the model is in a pickle, which can run anything when it is loaded",
                where=str(folder),
                found=_PICKLE,
                expected=f"{_FILE}, or {_INDEX_FILE} and its parts",
                hint="where you trust it, write it as safetensors: AutoModelForCausalLM.from_pretrained(DIR)"
                ".save_pretrained(NEW)",
            )
        return [open_safetensors(folder / _FILE)]
    index = folder / _INDEX_FILE
    placed = _read_json(index, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise DamageError(index, "has no weight_map of names")
    for name in placed.values():
        if not _SHARD.fullmatch(name):
            raise DamageError(index, f"names a file that is none of this folder: {printable(cut(name))}")
    files = [open_safetensors(folder / name) for name in sorted(set(placed.values()))]
    there = [(name, file.path.name) for file in files for name in file.tensors]
    if len(there) != len(placed) or dict(there) != placed:
        wrong = next((name for name, file in there if placed.get(name) != file), None)
        wrong = wrong or next((name for name in placed if name not in dict(there)), "a tensor twice")
        raise DamageError(index, f"does not agree with its files: {printable(cut(wrong))}")
    return files


def _check_output(folder: Path, where: Mapping[str, SafetensorsFile], in_file: Mapping[str, str]) -> None:
    """Raises UserError if the output embedding is another than that of the tokens. `where`: by names in the file."""
    if OUTPUT not in in_file or TOKENS not in in_file:
        return
    pair = [(where[in_file[name]], in_file[name]) for name in (OUTPUT, TOKENS)]
    stored = [file.tensors[name] for file, name in pair]
    alike = (stored[0].dtype, stored[0].shape) == (stored[1].dtype, stored[1].shape)
    if not alike or len({file.checksum(name) for file, name in pair}) > 1:
        raise own_output(folder)


def _check_dtypes(folder: Path, stored: Mapping[str, Stored]) -> None:
    for name, one in stored.items():
        if one.dtype not in _DTYPES:
            raise UserError(
                "a weight is of a type that is none of weights",
                where=str(folder),
                key=printable(cut(name.removeprefix(PREFIX))),
                found=one.dtype,
                expected=", ".join(_DTYPES),
            )


def _read_json(file: Path, max_bytes: int) -> dict[str, Any]:
    try:
        value = strict_json.loads(read_inside(file, file.parent, max_bytes=max_bytes))
    except ValueError as error:
        raise DamageError(file, f"is no JSON: {printable(cut(str(error)))}") from error
    if not isinstance(value, dict):
        raise DamageError(file, "is no JSON object")
    return value
