"""What is compared: the settings, the peers, and what ours runs with in each setting. To be changed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["fp32", "autocast", "bf16"]

# Dropout is 0: with it, each framework would draw other random numbers, and losses could not be compared.
SMALL: dict[str, Any] = {
    "num_layers": 12,
    "hidden_size": 768,
    "num_heads": 12,
    "vocab_size": 50257,
    "context_length": 1024,
    "dropout": 0.0,
    "loss": "full",
}
TINY: dict[str, Any] = SMALL | {"num_layers": 4, "hidden_size": 128, "num_heads": 4, "context_length": 256}
SEED = 1337


@dataclass(frozen=True)
class Peer:
    """A script beside this file. `precision`: fp32, torch's autocast to bf16, or weights in bf16. `needs_environment`:
    it imports what dist_trainer does not depend on.
    """

    script: str
    precision: Precision = "fp32"
    is_compiled: bool = False
    needs_environment: bool = True


@dataclass(frozen=True)
class Ours:
    """A run of dist_trainer. `ds`: a file of ds_configs/. `changes`: "path=value", made in a copy of that file, which
    peers that train by DeepSpeed get too. `switches`: further ones of `train`, such as --set or --compile; ours alone.
    None: as the setting says; the product of ranks, micro batch and accumulation must remain the setting's.
    """

    ds: str
    changes: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    num_ranks: int | None = None
    micro_batch: int | None = None
    accumulation: int | None = None


@dataclass(frozen=True)
class Setting:
    """One comparison. `dtype`: of the matrix product whose measured rate the MFU is a share of. `num_threads`: of all
    ranks together. `micro_batch`: sequences per rank.
    """

    model: dict[str, Any]
    sequence_length: int
    micro_batch: int
    accumulation: int
    dtype: Literal["fp32", "bf16"]
    peers: tuple[str, ...]
    ours: dict[str, Ours]
    num_ranks: int = 1
    num_threads: int = 2

    @property
    def num_tokens(self) -> int:
        """Of one step, over all ranks."""
        return self.num_ranks * self.micro_batch * self.accumulation * self.sequence_length


PEERS: dict[str, Peer] = {
    "plain": Peer("plain.py", needs_environment=False),
    "plain-compiled": Peer("plain.py", is_compiled=True, needs_environment=False),
    "plain-autocast": Peer("plain.py", "autocast", needs_environment=False),
    "plain-bf16": Peer("plain.py", "bf16", needs_environment=False),
    "plain-bf16-compiled": Peer("plain.py", "bf16", is_compiled=True, needs_environment=False),
    "hf-trainer": Peer("hf_trainer.py"),
    "accelerate": Peer("accelerate_loop.py"),
    "fabric": Peer("fabric.py"),
    "hf-trainer-bf16": Peer("hf_trainer.py", "autocast"),
    "accelerate-bf16": Peer("accelerate_loop.py", "autocast"),
    "fabric-bf16": Peer("fabric.py", "autocast"),
}

FP32_PEERS = ("plain", "plain-compiled", "hf-trainer", "accelerate", "fabric")
ZERO2_PEERS = ("hf-trainer-bf16", "accelerate-bf16")
# The shipped run files have this loss; the peers' is the textbook's.
LOSS = ("--set", "model.loss=fused")
# The setting's first one is what the peers are compared with.
FP32 = {"ours": Ours("fused", switches=LOSS)}
BF16 = {
    "ours": Ours("fused", ("bf16.enabled=true",), LOSS),
    "ours-compiled": Ours("fused", ("bf16.enabled=true",), (*LOSS, "--compile")),
}
BF32 = {"ours": Ours("fused", switches=(*LOSS, "--matmul", "bf32"))}
ONE_PROCESS = Ours("fused", ("bf16.enabled=true",), LOSS, num_ranks=1, accumulation=4)
# Over gloo an all-reduce of each bucket is faster than a reduction to each rank; the peers get the same JSON.
ZERO2 = {"ours": Ours("zero2", ("zero_optimization.reduce_scatter=false",), LOSS), "ours-1-process": ONE_PROCESS}

SETTINGS: dict[str, Setting] = {
    "small-256-fp32": Setting(SMALL, 256, 2, 2, "fp32", FP32_PEERS, FP32),
    "small-1024-fp32": Setting(SMALL, 1024, 1, 1, "fp32", FP32_PEERS, FP32),
    "tiny-fp32": Setting(TINY, 256, 4, 2, "fp32", FP32_PEERS, FP32),
    "small-256-bf16": Setting(SMALL, 256, 2, 2, "bf16", ("plain-autocast", "plain-bf16", "plain-bf16-compiled"), BF16),
    "small-256-bf32": Setting(SMALL, 256, 2, 2, "fp32", FP32_PEERS, BF32),
    "tiny-bf16-zero2-2ranks": Setting(TINY, 256, 2, 2, "bf16", ZERO2_PEERS, ZERO2, num_ranks=2),
    "small-bf16-zero2-2ranks": Setting(SMALL, 256, 1, 2, "bf16", ZERO2_PEERS, ZERO2, num_ranks=2),
}
