"""Common cards by the names people say: their memory and, for ranking settings, how fast they are."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from dist_trainer.errors import UserError
from dist_trainer.units import GB, MIB


class Gpu(NamedTuple):
    """A card. `num_bytes` is nominal: what public nvidia-smi listings show as total (ECC on where it is by default)."""

    name: str
    num_bytes: int


class Speeds(NamedTuple):
    """What a card does at most by its vendor's data sheet: dense 16-bit matrix products summed in fp32, plain fp32
    (torch's default, without TF32), and its memory.
    """

    half_flops_per_s: float
    single_flops_per_s: float
    memory_bytes_per_s: float


# MiB; TFLOP/s in 16-bit and in fp32; GB/s. A name without its form factor has the figures of the faster form.
_CARDS = {
    "a10": (23028, 125, 31.2, 600),
    "a100-40g": (40960, 312, 19.5, 1555),
    "a100-80g": (81920, 312, 19.5, 2039),
    "a30": (24576, 165, 10.3, 933),
    "a40": (46068, 149.7, 37.4, 696),
    "a6000": (49140, 154.8, 38.7, 768),
    "b200": (183359, 2250, 75, 8000),
    "gtx1080ti": (11264, 11.3, 11.3, 484),
    "h100-80g": (81559, 989, 67, 3350),
    "h100-nvl": (95830, 835, 60, 3900),
    "h200": (143771, 989, 67, 4800),
    "l4": (23034, 121, 30.3, 300),
    "l40": (46068, 181, 90.5, 864),
    "l40s": (46068, 362, 91.6, 864),
    "p100-16g": (16280, 18.7, 9.3, 732),
    "rtx2080ti": (11264, 53.8, 13.4, 616),
    "rtx3060-12g": (12288, 25.5, 12.7, 360),
    "rtx3080-10g": (10240, 59.5, 29.8, 760),
    "rtx3090": (24576, 71, 35.6, 936),
    "rtx4070ti": (12282, 80, 40, 504),
    "rtx4080": (16376, 97.5, 48.7, 717),
    "rtx4090": (24564, 165.2, 82.6, 1008),
    "rtx5090": (32607, 209.5, 104.8, 1792),
    "rtx6000ada": (49140, 182.1, 91.1, 960),
    "t4": (15360, 65, 8.1, 320),
    "titanrtx": (24576, 130.5, 16.3, 672),
    "v100-16g": (16384, 125, 15.7, 900),
    "v100-32g": (32768, 125, 15.7, 900),
}
_ALSO = {"h100": "h100-80g", "rtxa6000": "a6000", "rtx3060": "rtx3060-12g", "rtx3080": "rtx3080-10g"}
# What torch 2.13 gives cuBLAS: two buffers of 4 MiB and eight of 16 KiB; 32 MiB on Hopper (compute capability 9) and
# Blackwell (10 and 12). Older releases have it on Hopper alone.
WORKSPACE_BYTES = 2 * 4 * MIB + 8 * 16 * 2**10
LARGE_WORKSPACE_BYTES = 32 * MIB
_HOPPER_OR_BLACKWELL = re.compile(r"g?h(100|20|200|800)|g?b(10|100|200|300)|rtx50[5-9]0|rtxpro")
# Kepler to Turing, as `_bare` leaves their names: with all TITANs, and with Quadro RTX, whose numbers Ada has again.
_BEFORE_AMPERE = re.compile(r"gt\d|gt[sx]|mx[1-4]\d\d|[kmpt]\d|titan|g?v100|rtx20[678]0|rtx[3-8]000(?!.*ada)")
# What drivers write around the name: "NVIDIA A100-SXM4-80GB", "Tesla V100-SXM2-32GB", "NVIDIA H100 80GB HBM3".
_AROUND = re.compile(r"nvidia|geforce|tesla|quadro|generation|(sxm|pcie|hbm)\d*e?")


def find_gpu(name: str) -> Gpu:
    """The card of that name, in any spelling of case, dashes and blanks, or as the driver writes it.

    Raises UserError with the nearest names.
    """
    listed = _listed(name)
    if listed is not None:
        return Gpu(listed, _CARDS[listed][0] * MIB)
    wanted = _bare(name)
    near = [known for known in _CARDS if wanted and _bare(known).startswith(wanted)]
    if not near:
        stems = {known.split("-")[0] for known in _CARDS}
        close = difflib.get_close_matches(wanted, sorted(stems), n=3, cutoff=0.5)
        near = [known for stem in close for known in _CARDS if known.split("-")[0] == stem]
    raise UserError(
        "this card is not in the table",
        where="--gpu",
        found=name,
        expected="one of " + ", ".join(near or _CARDS),
        hint="say its memory instead: --gpu-memory 24GiB",
    )


def speeds(name: str | None) -> Speeds | None:
    """How fast the card is; None for one that is not in the table."""
    listed = None if name is None else _listed(name)
    if listed is None:
        return None
    _, half, single, memory = _CARDS[listed]
    return Speeds(half * 1e12, single * 1e12, memory * GB)


def has_bf16(name: str | None) -> bool:
    """Whether the card computes in bf16. True for one that is not named or not known."""
    return name is None or not _BEFORE_AMPERE.match(_bare(name))


def cublas_workspace_bytes(name: str | None) -> int:
    """What torch gives cuBLAS on the card from its own allocator (CublasHandlePool.cpp: parseChosenWorkspaceSize)."""
    has_more = name is not None and _HOPPER_OR_BLACKWELL.match(_bare(name))
    return LARGE_WORKSPACE_BYTES if has_more else WORKSPACE_BYTES


def _listed(name: str) -> str | None:
    wanted = _bare(name)
    return next((_ALSO.get(known, known) for known in (*_CARDS, *_ALSO) if _bare(known) == wanted), None)


def _bare(name: str) -> str:
    plain = "".join(re.findall(r"[a-z0-9]+", _AROUND.sub("", name.lower())))
    return re.sub(r"(?<=\d)gb?$", "", plain)
