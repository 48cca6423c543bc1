"""Real DeepSpeed engines of one rank in the test's own process, and the plain PyTorch loop they have to agree with."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import Made
from dist_trainer.checkpoints.position import Position
from dist_trainer.cluster.rank import RankInfo
from dist_trainer.config.request import Precision, Request, Switches
from dist_trainer.config.resolve import ResolvedRun, resolve
from dist_trainer.config.run import ModelConfig
from dist_trainer.logs import quiet_deepspeed
from dist_trainer.model.gpt import GPT
from dist_trainer.train import process
from dist_trainer.train.checkpoints import loading
from dist_trainer.train.checkpoints.holders import holders_of
from dist_trainer.train.checkpoints.saving import Kept, Saver
from dist_trainer.train.engine import build_engine

SEED = 7
MODEL = {
    "num_layers": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "vocab_size": 64,
    "context_length": 16,
    "dropout": 0.0,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MICRO_BATCH = 2
ALONE = RankInfo(0, 1, 0, 1, "127.0.0.1", None, "single")

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Trained:
    """How the minute model is trained. `params` are the optimizer's; a JSON's other keys are in `settings`."""

    optimizer: str = "AdamW"
    params: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.003, "torch_adam": True})
    stage: int = 0
    precision: Precision = "fp32"
    offload: bool = False
    accumulation: int = 1
    gradient_clipping: float = 1.0
    settings: tuple[str, ...] = ()

    def resolved(self, folder: Path, *, world_size: int = 1, whole_batch: bool = False) -> ResolvedRun:
        """As it runs here: what this machine's CPU lacks of 16-bit arithmetic it works out more slowly.

        `whole_batch`: each rank takes the whole batch instead of its part.
        """
        config = folder / "minute.yaml"
        phase = [{"name": "only", "sequence_length": MODEL["context_length"], "steps": 10}]
        config.write_text(
            json.dumps({"name": "minute", "deepspeed": "baseline", "seed": SEED, "model": MODEL, "phases": phase})
        )
        settings = (
            f"zero_optimization.stage={self.stage}",
            "optimizer=" + json.dumps({"type": self.optimizer, "params": dict(self.params)}),
            f"gradient_clipping={self.gradient_clipping}",
            f"train_micro_batch_size_per_gpu={MICRO_BATCH if whole_batch else MICRO_BATCH // world_size}",
            f"gradient_accumulation_steps={self.accumulation}",
            "zero_allow_untested_optimizer=true",
            *(["fp16.initial_scale_power=8"] if self.precision == "fp16" else []),
            *(['zero_optimization.offload_optimizer={"device": "cpu"}'] if self.offload else []),
        )
        request = Request(
            config=str(config),
            ds="baseline",
            settings=(*settings, *self.settings),
            switches=Switches(precision=self.precision),
        )
        return resolve(request, world_size=world_size, device=process.device_facts())


@contextmanager
def one_rank() -> Iterator[None]:
    """This process is a rank of its own, on an accelerator that takes fp16; on one thread, as the model is minute.

    What ZeRO-3 puts in the place of torch's `linear` does not outlive it.
    """
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    linear = mock.patch.object(torch.nn.functional, "linear", torch.nn.functional.linear)
    fp16 = mock.patch.object(type(get_accelerator()), "is_fp16_supported", lambda self: True)
    with quiet_deepspeed(), linear, fp16:
        process.join_process_group(ALONE, process.device_facts())
        yield
    # DeepSpeed's own, which also forgets the groups that it keeps for the next engine.
    comm.destroy_process_group()
    torch.set_num_threads(num_threads)


def build(trained: Trained, folder: Path) -> Any:
    return build_engine(trained.resolved(folder), device_index=0)


def save(engine: Any, checkpoints_dir: Path, position: Position, made_by: Made) -> Path:
    """Saves the engine's state, and waits for it. Collective."""
    saver = Saver(engine, holders_of(engine, MODEL["vocab_size"]), checkpoints_dir, made_by, Kept())
    saver.begin(position)
    outcome = saver.finish()
    assert outcome is not None and outcome.folder is not None, outcome
    return outcome.folder


def load(engine: Any, folder: Path, *, with_random_state: bool = True) -> None:
    """Loads a checkpoint into the engine. Collective."""
    found = Found(folder, index.read(folder))
    loading.load(engine, holders_of(engine, MODEL["vocab_size"]), found, with_random_state=with_random_state)


def batches(*, start: int = 0) -> Batches:
    """Micro batches without end, from the one of that number on: three that repeat, so that there is much to learn."""
    generator = torch.Generator().manual_seed(0)
    shape = (MICRO_BATCH, MODEL["context_length"] + 1)
    windows = [torch.randint(MODEL["vocab_size"], shape, generator=generator) for _ in range(3)]
    for number in itertools.count(start):
        window = windows[number % 3]
        yield window[:, :-1], window[:, 1:]


def plain_losses(
    optimizer: type[torch.optim.Optimizer], params: Mapping[str, Any], trained: Trained, *, num_steps: int
) -> list[float]:
    """Each step's loss in a loop that anyone would write: in 16-bit the optimizer works on fp32 copies of weights."""
    torch.manual_seed(SEED)
    model = GPT(ModelConfig(**MODEL), None).to(DTYPES[trained.precision])
    groups = [
        {**group, "masters": [weight.detach().float().requires_grad_() for weight in group["params"]]}
        for group in model.parameter_groups()
    ]
    pairs = [pair for group in groups for pair in zip(group["params"], group["masters"], strict=True)]
    masters = [
        {"params": group["masters"], **{key: value for key, value in group.items() if key not in ("params", "masters")}}
        for group in groups
    ]
    updating = optimizer(masters, **params)
    data, losses = batches(), []
    for _ in range(num_steps):
        total = 0.0
        for inputs, targets in itertools.islice(data, trained.accumulation):
            loss = model(inputs, targets)
            (loss / trained.accumulation).backward()
            total += loss.item()
        losses.append(total / trained.accumulation)
        for weight, master in pairs:
            assert weight.grad is not None
            master.grad, weight.grad = weight.grad.float(), None
        if trained.gradient_clipping:
            torch.nn.utils.clip_grad_norm_([master for _, master in pairs], trained.gradient_clipping)
        updating.step()
        with torch.no_grad():
            for weight, master in pairs:
                weight.copy_(master)
    return losses
