"""What all peers have in common: the job, the model, the batches, the optimizer, and the report of times and losses."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dist_trainer.config.run import ModelConfig
from dist_trainer.data.corpus import standard_library_dataset
from dist_trainer.data.sampler import Order
from dist_trainer.data.tokens import TokenFile, open_tokens
from dist_trainer.model.gpt import GPT


@dataclass(frozen=True)
class Job:
    """What a peer is to train; `adam`: lr, betas, eps, weight_decay. `deepspeed`: the JSON to train by, None without
    DeepSpeed. `results`: the file to be written at the end.
    """

    model: dict[str, Any]
    seed: int
    sequence_length: int
    micro_batch: int
    accumulation: int
    num_ranks: int
    num_steps: int
    adam: dict[str, Any]
    max_norm: float
    precision: str
    is_compiled: bool
    deepspeed: str | None
    results: str

    @property
    def num_samples(self) -> int:
        return self.num_steps * self.accumulation * self.num_ranks * self.micro_batch

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")


def read_job() -> Job:
    """The job in the file that the command line names. Also gives torch the threads that OpenMP was given."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


def build_model(job: Job) -> GPT:
    torch.manual_seed(job.seed)
    return GPT(ModelConfig(**job.model))


def build_optimizer(job: Job, model: GPT) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameter_groups(), fused=True, **job.adam)


class Windows(Dataset[dict[str, Tensor]]):
    """The samples of a run in its order: `tokens` and `targets`, int64 [sequence_length].

    Read in order, `micro_batch` at a time and in turn by each rank, they are the micro batches that dist_trainer's
    BatchPlan gives these ranks.
    """

    def __init__(self, tokens: TokenFile, order: Order, num_samples: int) -> None:
        self._tokens = tokens
        self._length = order.sequence_length
        self._starts = (order.windows(np.arange(num_samples)) * order.sequence_length).tolist()
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        if not 0 <= sample < self._num_samples:
            raise IndexError(sample)
        block = self._tokens.read(self._starts[sample], self._length + 1).astype(np.int64)
        return {"tokens": torch.from_numpy(block[:-1].copy()), "targets": torch.from_numpy(block[1:].copy())}


def open_windows(job: Job) -> Windows:
    vocab_size = job.model["vocab_size"]
    tokens = open_tokens(standard_library_dataset(vocab_size), "train", vocab_size)
    order = Order(tokens.num_tokens, job.sequence_length, job.model["context_length"], job.seed)
    return Windows(tokens, order, job.num_samples)


@dataclass
class Steps:
    """Each step's time in seconds, from the end of the one before it, and its mean loss."""

    step_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    _last_s: float = field(default_factory=time.perf_counter)

    def end(self, loss: float) -> None:
        now_s = time.perf_counter()
        self.step_s.append(now_s - self._last_s)
        self.losses.append(loss)
        self._last_s = now_s

    def write(self, job: Job) -> None:
        """On rank 0; the others have the same times."""
        if os.environ.get("RANK", "0") == "0":
            found = {"step_s": self.step_s, "losses": self.losses}
            Path(job.results).write_text(json.dumps(found), encoding="utf-8")
