"""A plain PyTorch loop in the form of nanoGPT's train.py: one process, no framework."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from common import Steps, build_model, build_optimizer, open_windows, read_job
from torch.utils.data import default_collate


def main() -> None:
    job = read_job()
    raw_model = build_model(job)
    if job.precision == "bf16":
        raw_model.bfloat16()
    optimizer = build_optimizer(job, raw_model)
    model = torch.compile(raw_model) if job.is_compiled else raw_model
    context = torch.autocast("cpu", torch.bfloat16) if job.precision == "autocast" else nullcontext()
    windows = open_windows(job)

    first = 0
    steps = Steps()
    for _ in range(job.num_steps):
        loss_sum = 0.0
        for _ in range(job.accumulation):
            batch = default_collate([windows[first + row] for row in range(job.micro_batch)])
            first += job.micro_batch
            with context:
                loss = model(batch["tokens"], batch["targets"]) / job.accumulation
            loss_sum += loss.item()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(raw_model.parameters(), job.max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps.end(loss_sum)
    steps.write(job)


if __name__ == "__main__":
    main()
