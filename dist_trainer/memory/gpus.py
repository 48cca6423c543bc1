"""Common cards and their memory, by the names people say. Nominal: what nvidia-smi lists as total, in MiB."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from dist_trainer.errors import UserError
from dist_trainer.units import MIB


class Gpu(NamedTuple):
    name: str
    num_bytes: int


_MEMORY_MIB = {
    "a10": 23028,
    "a100-40g": 40960,
    "a100-80g": 81920,
    "a30": 24576,
    "a40": 46068,
    "a6000": 49140,
    "b200": 183359,
    "gtx1080ti": 11264,
    "h100-80g": 81559,
    "h100-nvl": 95830,
    "h200": 143771,
    "l4": 23034,
    "l40": 46068,
    "l40s": 46068,
    "p100-16g": 16280,
    "rtx2080ti": 11264,
    "rtx3060-12g": 12288,
    "rtx3080-10g": 10240,
    "rtx3090": 24576,
    "rtx4070ti": 12282,
    "rtx4080": 16376,
    "rtx4090": 24564,
    "rtx5090": 32607,
    "rtx6000ada": 49140,
    "t4": 15360,
    "titanrtx": 24576,
    "v100-16g": 16384,
    "v100-32g": 32768,
}
_ALSO = {"h100": "h100-80g", "h100-sxm": "h100-80g", "rtxa6000": "a6000", "rtx3060": "rtx3060-12g"}
_WITHOUT_BF16 = ("gtx", "p100", "rtx20", "t4", "titanrtx", "v100")


def find_gpu(name: str) -> Gpu:
    """The card of that name, in any spelling of case, dashes and blanks. Raises UserError with the nearest names."""
    wanted = _bare(name)
    for known in (*_MEMORY_MIB, *_ALSO):
        if _bare(known) == wanted:
            listed = _ALSO.get(known, known)
            return Gpu(listed, _MEMORY_MIB[listed] * MIB)
    sizes = [known for known in _MEMORY_MIB if _bare(known).startswith(wanted)]
    near = sizes or difflib.get_close_matches(name.lower(), _MEMORY_MIB, n=3, cutoff=0.5)
    raise UserError(
        "this card is not in the table",
        where="--gpu",
        found=name,
        expected="one of " + ", ".join(near or _MEMORY_MIB),
        hint="say its memory instead: --gpu-memory 24GiB",
    )


def has_bf16(name: str | None) -> bool:
    """Whether the card computes in bf16; one that is not named is taken to."""
    return name is None or not _bare(name).startswith(_WITHOUT_BF16)


def _bare(name: str) -> str:
    bare = "".join(character for character in name.lower() if character.isalnum())
    return bare.removeprefix("nvidia").removeprefix("geforce").removesuffix("gb").removesuffix("g")
