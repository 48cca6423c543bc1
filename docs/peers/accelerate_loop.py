"""A loop as Accelerate's guides show it; with a DeepSpeed JSON, through its DeepSpeed plugin."""

from __future__ import annotations

import deepspeed_on_cpus
import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DummyOptim
from common import Job, Steps, build_model, build_optimizer, open_windows, read_job
from torch.utils.data import DataLoader


def main() -> None:
    job = read_job()
    accelerator = _accelerator(job)
    model = build_model(job)
    # With an optimizer in the JSON, DeepSpeed builds it.
    by_deepspeed = job.deepspeed is not None
    optimizer = DummyOptim(model.parameter_groups()) if by_deepspeed else build_optimizer(job, model)
    loader = DataLoader(open_windows(job), batch_size=job.micro_batch)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    if by_deepspeed:
        deepspeed_on_cpus.check(model)

    steps, loss_sum = Steps(), torch.zeros(())
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(batch["tokens"], batch["targets"])
            loss_sum += loss.detach()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), job.max_norm)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            steps.end(accelerator.reduce(loss_sum, "mean").item() / job.accumulation)
            loss_sum = torch.zeros(())
    steps.write(job)
    accelerator.end_training()


def _accelerator(job: Job) -> Accelerator:
    if job.deepspeed is not None:
        deepspeed_on_cpus.join()
        return Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=job.deepspeed))
    precision = "bf16" if job.precision == "autocast" else "no"
    return Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=job.accumulation)


if __name__ == "__main__":
    main()
