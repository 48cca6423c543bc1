"""A file of torch.save from somebody else, loaded without running anything of it.

It is a zip with a pickle and the bytes of tensors. Before torch sees it, the zip must be one that all readers
understand alike, with nothing compressed, and the pickle may name and call nothing but what is on the lists here. torch
then loads it weights-only, with the file mapped into memory; for DeepSpeed's classes it is given stand-ins, so that
DeepSpeed's code does not run either.
"""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.inside import stat_inside
from dist_trainer.encoding import printable
from dist_trainer.errors import UserError, cut
from dist_trainer.exchange import stranger_pickle
from dist_trainer.exchange.stranger_pickle import StrangerPickleError
from dist_trainer.units import MIB

# torch's weights-only loading could be broken out of up to 2.9.1 (GHSA-63cw-57p8-fm3p), before 2.6 by CVE-2025-32434.
_OLDEST_TORCH = (2, 10)
# A thousand parameters take half a MiB.
_MAX_PICKLE_BYTES = 8 * MIB


class _Ignored:
    """In the place of an object that weights do not depend on."""

    def __init__(self, *arguments: object) -> None:
        pass


# DeepSpeed's classes in its checkpoints, of all ZeRO stages and precisions (DeepSpeed 0.19.8).
_STAND_INS: list[Any] = [
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_Ignored, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Ignored, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_Ignored, "deepspeed.utils.tensor_fragment.fragment_address"),
]
_STORAGES = ("Float", "BFloat16", "Half", "Double", "Long", "Int", "Byte", "Bool")
_DTYPES = ("float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8", "bool")
_CALLABLE = frozenset(
    (
        *(name for _, name in _STAND_INS),
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch._tensor._rebuild_from_type_v2",
        "torch.Size",
        "torch.device",
    )
)
# Less than torch allows, which has functions that allocate what a number says, such as bytearray.
_ALLOWED = _CALLABLE | {
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    *(f"torch.{kind}Storage" for kind in _STORAGES),
    *(f"torch.{kind}" for kind in _DTYPES),
}
_END = struct.Struct("<4s4H2LH")
_END_MARK = b"PK\x05\x06"
_END_64_LOCATOR = struct.Struct("<4sLQL")
_END_64_MARK = b"PK\x06\x07"
_END_64_BYTES = 56
_LOCAL_HEADER_BYTES = 30
_IS_ENCRYPTED = 1


def require_safe_torch() -> None:
    """Raises UserError for a torch that a stranger's file could break out of."""
    version = torch.__version__
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < _OLDEST_TORCH:
        raise UserError(
            "a DeepSpeed checkpoint is made of pickles, and weights-only loading of this torch can be broken out of "
            "(GHSA-63cw-57p8-fm3p)",
            where="torch",
            found=version,
            expected=".".join(map(str, _OLDEST_TORCH)) + " or newer",
            hint="install a newer torch, or convert the checkpoint to safetensors where you trust it",
        )


def load(path: Path) -> Any:
    """What the file has, with tensors mapped from it. Only a regular file that, links resolved, lies in its folder.

    Raises DamageError for anything that is not as torch.save and DeepSpeed write it; UserError for an old torch.
    """
    require_safe_torch()
    stat_inside(path, path.parent)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise DamageError(path, f"cannot be read ({error.strerror})") from error
    # What is checked and what is loaded is one opened file, even if another one takes its name meanwhile.
    with os.fdopen(descriptor, "rb") as opened:
        _check_pickle(path, _checked_pickle_of_zip(path, opened))
        try:
            with torch.serialization.safe_globals(_STAND_INS):
                return torch.load(f"/proc/self/fd/{opened.fileno()}", map_location="cpu", mmap=True, weights_only=True)
        # torch raises many kinds for a file that is not as it says.
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DamageError(path, f"cannot be loaded: {printable(cut(said))}") from error


def _checked_pickle_of_zip(path: Path, opened: Any) -> bytes:
    """The pickle of a zip that no two readers could understand differently."""
    num_bytes = os.fstat(opened.fileno()).st_size
    _check_end(path, opened, num_bytes)
    try:
        with zipfile.ZipFile(opened) as archive:
            entries = archive.infolist()
            _check_entries(path, entries, num_bytes)
            pickled = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickled) != 1 or pickled[0].file_size > _MAX_PICKLE_BYTES:
                raise DamageError(path, "has no pickle of the size that a checkpoint's has")
            for entry in entries:
                if entry.filename.endswith("/byteorder") and archive.read(entry) != b"little":
                    raise DamageError(path, "was written in another byte order")
            return archive.read(pickled[0])
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, RuntimeError) as error:
        raise DamageError(path, f"is not a file of torch.save: {printable(cut(str(error)))}") from error


def _check_end(path: Path, opened: Any, num_bytes: int) -> None:
    """The record that says where the table of entries lies must be the last bytes: readers search for it otherwise."""
    tail_bytes = _END.size + _END_64_LOCATOR.size
    opened.seek(max(0, num_bytes - tail_bytes))
    tail = opened.read(tail_bytes)
    if len(tail) < tail_bytes or not tail[-_END.size :].startswith(_END_MARK) or tail[-2:] != b"\0\0":
        raise DamageError(path, "is not a file of torch.save, as versions since 1.6 write it")
    mark, _, place, _ = _END_64_LOCATOR.unpack(tail[: -_END.size])
    if mark == _END_64_MARK and place != num_bytes - tail_bytes - _END_64_BYTES:
        raise DamageError(path, "is a zip with two tables of entries")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], num_bytes: int) -> None:
    names = [entry.filename.casefold() for entry in entries]
    folders = {name.partition("/")[0] for name in names}
    if not entries or len(folders) != 1 or len(set(names)) != len(names):
        raise DamageError(path, "is a zip with an entry twice, or with other folders than torch makes")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise DamageError(path, f"has a compressed entry: {printable(cut(entry.filename))}")
        if entry.flag_bits & _IS_ENCRYPTED:
            raise DamageError(path, f"has an encrypted entry: {printable(cut(entry.filename))}")
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        # The first begins at the first byte: else readers count from different places.
        if entry.header_offset < end or (end == 0 and entry.header_offset):
            raise DamageError(path, f"has entries that lie upon each other: {printable(cut(entry.filename))}")
        end = entry.header_offset + _LOCAL_HEADER_BYTES + len(entry.filename) + entry.file_size
    if end > num_bytes:
        raise DamageError(path, "has an entry that is larger than the file")


def _check_pickle(path: Path, pickled: bytes) -> None:
    try:
        stranger_pickle.check(pickled, names=_ALLOWED, callables=_CALLABLE)
    except StrangerPickleError as error:
        raise DamageError(path, str(error)) from error
    # pickletools raises ValueError, and others for what it cannot decode.
    except Exception as error:
        raise DamageError(path, f"has a pickle that cannot be: {printable(cut(str(error)))}") from error
