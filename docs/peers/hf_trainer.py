"""Transformers' Trainer with its own loop, optimizer and accumulation."""

from __future__ import annotations

import tempfile
from typing import Any

import deepspeed_on_cpus
from common import Steps, build_model, open_windows, read_job
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from dist_trainer.model.gpt import GPT


class WithLoss(nn.Module):
    """The model as Trainer wants it: it returns its loss under that name."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": self.model(tokens, targets)}


class Recorded(TrainerCallback):  # type: ignore[misc]
    """Trainer logs a step's mean loss after each step, over all ranks: what lies between logs is one step."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.steps.end(float(logs["loss"]))


def main() -> None:
    job = read_job()
    model = WithLoss(build_model(job))
    windows = open_windows(job)
    if job.deepspeed is not None:
        deepspeed_on_cpus.join()
    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            train_dataset=windows,
            callbacks=[Recorded(steps)],
            args=TrainingArguments(
                output_dir=folder,
                use_cpu=True,
                deepspeed=job.deepspeed,
                accelerator_config={"use_configured_state": job.deepspeed is not None},
                seed=job.seed,
                bf16=job.precision == "autocast",
                max_steps=job.num_steps,
                per_device_train_batch_size=job.micro_batch,
                gradient_accumulation_steps=job.accumulation,
                train_sampling_strategy="sequential",
                optim="adamw_torch_fused",
                learning_rate=job.adam["lr"],
                adam_beta1=job.adam["betas"][0],
                adam_beta2=job.adam["betas"][1],
                adam_epsilon=job.adam["eps"],
                weight_decay=job.adam["weight_decay"],
                max_grad_norm=job.max_norm,
                lr_scheduler_type="constant",
                logging_steps=1,
                save_strategy="no",
                eval_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
        )
        trainer.train()
        if job.deepspeed is not None:
            deepspeed_on_cpus.check(trainer.model_wrapped)
    steps.write(job)


if __name__ == "__main__":
    main()
