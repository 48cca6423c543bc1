"""A DeepSpeed checkpoint of a GPT-2: of ZeRO stages 1 to 3 the fp32 masters, put together from the ranks' partitions.

The form: DeepSpeed 0.19.8, utils/zero_to_fp32.py. At stages 1 and 2 each group of parameters is one flat tensor, cut
into a part for each rank. At stage 3 each rank has its part of every parameter, one behind the other. The order of
parameters is that of `param_shapes`. Without ZeRO the weights are those of the module.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.encoding import printable
from dist_trainer.errors import UserError, cut
from dist_trainer.exchange.deepspeed_files import files_in
from dist_trainer.exchange.gpt2_form import OUTPUT, PREFIX, TOKENS, Shape, Weight, their_names, weights_of
from dist_trainer.exchange.reading import DTYPES
from dist_trainer.exchange.torch_file import load
from dist_trainer.exchange.transformers_folder import CONFIG_FILE, read_config
from dist_trainer.exchange.weights import Weights, check_names, own_output
from dist_trainer.units import counted

_WRAPPERS = ("module.", "_orig_mod.")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Of one model, all in all: beyond it arithmetic on sizes would mean nothing.
_MOST_ELEMENTS = 2**56

_NOT_SAID = (
    "DeepSpeed's files do not say which activation the model has, nor the epsilon of its norms: GELU in its tanh form "
    "and 1e-5 are taken"
)


@dataclass(frozen=True)
class _Stored:
    """A parameter, as flat tensors one behind the other; the last may have padding behind it."""

    shape: tuple[int, ...]
    pieces: tuple[Tensor, ...]

    def whole(self) -> Tensor:
        pieces = self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces)
        return pieces[: math.prod(self.shape)].view(self.shape)


def open_checkpoint(path: Path, folder: Path) -> Weights:
    """`folder`: of `deepspeed_files.folder_of`. A config.json at `path`, as transformers' Trainer writes it, says what
    DeepSpeed does not.

    Raises UserError for a model that this program's GPT cannot be; DamageError for files that are not what they say, or
    lie elsewhere.
    """
    model_files, optimizer_files = files_in(folder)
    first = load(folder / model_files[0])
    if not isinstance(first, dict):
        raise DamageError(folder / model_files[0], "is not the states of a model")
    if optimizer_files:
        said, stored = _of_partitions(folder, model_files[0], first, optimizer_files)
    else:
        said, stored = "without ZeRO", _of_module(folder / model_files[0], first)
    named = {_without_wrappers(name): one for name, one in stored.items()}
    weights, shape, transposed = _in_our_names(folder, named)
    dropout = 0.0
    notices: tuple[str, ...] = (_NOT_SAID,)
    if transposed and (path / CONFIG_FILE).exists():
        model = read_config(path)
        _check_config(path / CONFIG_FILE, shape, Shape.of(model))
        shape, dropout, notices = Shape.of(model), model.dropout, ()

    def read(parameter: str) -> Tensor:
        weight, one = weights[parameter]
        whole = one.whole()
        return whole.t().contiguous() if transposed and weight.transposed else whole.contiguous()

    dtypes = {name: _NAMES[one.pieces[0].dtype] for name, (_, one) in weights.items()}
    sizes = [f"{name}:{(folder / name).stat().st_size}" for name in (*model_files, *optimizer_files)]
    digest = hashlib.sha256("\n".join(sizes).encode()).hexdigest()
    kinds = ", ".join(sorted(set(dtypes.values())))
    what = f"a DeepSpeed checkpoint {said}, {kinds}"
    return Weights(folder, what, shape, dropout, dtypes, read, digest, notices)


def _of_partitions(
    folder: Path, model_file: str, first: Mapping[str, Any], optimizer_files: Sequence[str]
) -> tuple[str, dict[str, _Stored]]:
    file = folder / model_file
    frozen = first.get("frozen_param_shapes")
    if frozen:
        names = ", ".join(name for name in frozen if isinstance(name, str)) if isinstance(frozen, dict) else "no names"
        raise DamageError(file, f"has frozen parameters, which are not read: {printable(cut(names))}")
    groups = [_shapes(file, group) for group in _list(file, "param_shapes", first.get("param_shapes"))]
    states = [_optimizer_state(folder / name) for name in optimizer_files]
    stage, num_ranks = _number(states[0].get("zero_stage")), states[0].get("partition_count")
    num_ranks = max(map(_number, num_ranks), default=0) if isinstance(num_ranks, list) else _number(num_ranks)
    if num_ranks != len(optimizer_files):
        where = folder / optimizer_files[0]
        raise DamageError(where, f"is of {counted(num_ranks, 'rank')}, and there are {len(optimizer_files)} such files")
    key = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}.get(stage)
    if key is None:
        raise DamageError(folder / optimizer_files[0], f"is of ZeRO stage {stage}, which is not known")
    flats = [
        [_flat(folder / name, key, one) for one in _list(folder / name, key, state.get(key))]
        for name, state in zip(optimizer_files, states, strict=True)
    ]
    if len({tuple(one.numel() for one in rank) if stage == 3 else len(rank) for rank in flats}) != 1:
        raise DamageError(folder, "has ranks whose partitions do not belong together")
    said = f"of {counted(num_ranks, 'rank')}, ZeRO {stage}"
    if stage == 3:
        return said, dict(_by_parameter(file, groups, flats))
    paddings = states[0].get("param_alignment_paddings")
    return said, dict(_by_group(file, groups, flats, paddings))


def _by_group(
    file: Path, groups: Sequence[Mapping[str, tuple[int, ...]]], flats: Sequence[Sequence[Tensor]], paddings: Any
) -> Iterator[tuple[str, _Stored]]:
    """Stages 1 and 2."""
    if len(groups) != len(flats[0]):
        raise DamageError(file, f"has {counted(len(groups), 'group')} of parameters, and ranks have {len(flats[0])}")
    aligned_to = 2 * len(flats)
    for number, shapes in enumerate(groups):
        of_group = [rank[number] for rank in flats]
        behind = _paddings(file, paddings, number, len(shapes))
        offset = 0
        for (name, shape), padding in zip(shapes.items(), behind, strict=True):
            yield name, _Stored(shape, tuple(_slices(file, of_group, offset, math.prod(shape))))
            offset += math.prod(shape) + padding
        there = sum(one.numel() for one in of_group)
        # As zero_to_fp32 does: how far a group is padded depends on more than the files say.
        if -(-offset // aligned_to) != -(-there // aligned_to):
            raise DamageError(file, f"has parameters of {offset} elements in a group of {there}")


def _paddings(file: Path, paddings: Any, group: int, num_parameters: int) -> list[int]:
    """Elements behind each parameter of a group. `paddings`: of all groups, where the optimizer has some."""
    if paddings is None:
        return [0] * num_parameters
    said = paddings[group] if isinstance(paddings, list) and group < len(paddings) else None
    if not isinstance(said, list) or len(said) != num_parameters or min(map(_number, said), default=0) < 0:
        raise DamageError(file, "has ranks with paddings that are none")
    return [*map(_number, said)]


def _by_parameter(
    file: Path, groups: Sequence[Mapping[str, tuple[int, ...]]], flats: Sequence[Sequence[Tensor]]
) -> Iterator[tuple[str, _Stored]]:
    """Stage 3."""
    offset = 0
    for name, shape in (item for shapes in groups for item in shapes.items()):
        share = -(-math.prod(shape) // len(flats))
        yield name, _Stored(shape, tuple(one for rank in flats for one in _slices(file, rank, offset, share)))
        offset += share
    there = sum(one.numel() for one in flats[0])
    if offset != there:
        raise DamageError(file, f"has parameters of {offset} elements a rank, and ranks have {there}")


def _slices(file: Path, flats: Sequence[Tensor], start: int, numel: int) -> Iterator[Tensor]:
    """Elements [start, start + numel) of flat tensors that are meant to lie one behind the other."""
    begin, stop = 0, start + numel
    if stop > sum(one.numel() for one in flats):
        raise DamageError(file, f"has parameters beyond the {sum(one.numel() for one in flats)} elements of its ranks")
    for flat in flats:
        end = begin + flat.numel()
        if max(start, begin) < min(stop, end):
            yield flat[max(start, begin) - begin : min(stop, end) - begin]
        begin = end


def _of_module(file: Path, first: Mapping[str, Any]) -> dict[str, _Stored]:
    module = first.get("module")
    if not isinstance(module, dict):
        raise DamageError(file, "has no module")
    stored = {}
    for name, value in module.items():
        tensor = _plain(file, str(name), value)
        stored[str(name)] = _Stored(tuple(tensor.shape), (tensor.reshape(-1),))
    tokens = next((one for name, one in stored.items() if _without_wrappers(name) == TOKENS), None)
    output = next((name for name in stored if _without_wrappers(name) == OUTPUT), None)
    if tokens is not None and output is not None:
        repeated = stored.pop(output)
        if tokens.shape != repeated.shape or not torch.equal(tokens.whole(), repeated.whole()):
            raise own_output(file)
    return stored


def _in_our_names(folder: Path, named: Mapping[str, _Stored]) -> tuple[dict[str, tuple[Weight, _Stored]], Shape, bool]:
    """Each parameter's name and place, the model's shape, and whether projections are transposed as in transformers."""
    is_ours = "token_embedding.weight" in named
    in_file = {name: name for name in named} if is_ours else their_names(named)
    shapes = {name: named[there].shape for name, there in in_file.items()}
    tokens, positions = (
        ("token_embedding.weight", "position_embedding.weight") if is_ours else (TOKENS, f"{PREFIX}wpe.weight")
    )
    for name in (tokens, positions):
        if len(shapes.get(name, ())) != 2:
            raise UserError(
                "these are not the weights of a GPT-2",
                where=str(folder),
                key=name,
                found=printable(cut(", ".join(named))) or "no parameter",
                expected="the parameters of transformers' GPT2LMHeadModel, or of this program's GPT",
            )
    numbers = (re.match(r"(?:blocks|transformer\.h)\.([0-9]{1,4})\.", name) for name in shapes)
    num_layers = 1 + max((int(found[1]) for found in numbers if found), default=-1)
    shape = Shape(num_layers, shapes[tokens][1], None, shapes[tokens][0], shapes[positions][0])
    table = list(weights_of(shape))
    if is_ours:
        # As they are here: nothing is transposed.
        table = [Weight(one.ours, one.ours, one.shape) for one in table]
    expected = {one.theirs: one for one in table}
    check_names(expected, shapes, folder)
    return {one.ours: (one, named[in_file[one.theirs]]) for one in table}, shape, not is_ours


def _check_config(file: Path, shape: Shape, said: Shape) -> None:
    for key, value in vars(shape).items():
        if value is not None and value != getattr(said, key):
            raise DamageError(file, f"says {key} {getattr(said, key)}, and the weights have {value}")


def _without_wrappers(name: str) -> str:
    """Without what DistributedDataParallel, torch.compile and the like put before it."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _shapes(file: Path, group: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(group, dict):
        raise DamageError(file, "has param_shapes that are none")
    shapes = {}
    for name, shape in group.items():
        sizes = tuple(shape) if isinstance(shape, tuple | list) else (-1,)
        if not all(type(size) is int and size > 0 for size in sizes) or math.prod(sizes) > _MOST_ELEMENTS:
            raise DamageError(file, f"has a shape of {printable(cut(str(name)))} that is none")
        shapes[str(name)] = sizes
    return shapes


def _optimizer_state(file: Path) -> Mapping[str, Any]:
    loaded = load(file)
    state = loaded.get("optimizer_state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise DamageError(file, "is not the states of an optimizer")
    return state


def _list(file: Path, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise DamageError(file, f"has no list of {key}")
    return value


def _flat(file: Path, key: str, value: Any) -> Tensor:
    tensor = _plain(file, key, value)
    if tensor.dim() != 1:
        raise _no_weights(file, key)
    return tensor


def _plain(file: Path, key: str, value: Any) -> Tensor:
    """The tensor without what the file has set on it, which could take the place of its methods. Raises DamageError
    for anything but one whose elements all lie in the file, each once.
    """
    if type(value) not in (Tensor, torch.nn.Parameter):
        raise _no_weights(file, key)
    tensor = Tensor.detach(value)
    if tensor.layout != torch.strided or not tensor.is_contiguous() or tensor.dtype not in _NAMES:
        raise _no_weights(file, key)
    return tensor


def _no_weights(file: Path, key: str) -> DamageError:
    return DamageError(file, f"has {printable(cut(key))} that are no weights")


def _number(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**31 else -1
