"""A loop as Lightning Fabric's guides show it; one process."""

from __future__ import annotations

from common import Steps, build_model, build_optimizer, open_windows, read_job
from lightning_fabric import Fabric
from torch.utils.data import DataLoader


def main() -> None:
    job = read_job()
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if job.precision == "autocast" else "32-true")
    raw_model = build_model(job)
    model, optimizer = fabric.setup(raw_model, build_optimizer(job, raw_model))
    loader = fabric.setup_dataloaders(DataLoader(open_windows(job), batch_size=job.micro_batch))

    steps, loss_sum = Steps(), 0.0
    for number, batch in enumerate(loader, start=1):
        loss = model(batch["tokens"], batch["targets"]) / job.accumulation
        loss_sum += loss.item()
        fabric.backward(loss)
        if number % job.accumulation == 0:
            fabric.clip_gradients(model, optimizer, max_norm=job.max_norm)
            optimizer.step()
            optimizer.zero_grad()
            steps.end(loss_sum)
            loss_sum = 0.0
    steps.write(job)


if __name__ == "__main__":
    main()
