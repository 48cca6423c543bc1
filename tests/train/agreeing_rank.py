"""One of two ranks that train at every stage and in every precision: FOLDER, in which the first writes the losses."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from unittest import mock

TESTS = Path(__file__).parents[1]


def main(folder: Path) -> None:
    sys.path.insert(0, str(TESTS))
    import torch
    from deepspeed.accelerator import get_accelerator
    from one_rank import Trained, batches

    from dist_trainer.cluster.rank import find_rank
    from dist_trainer.config.request import Precision
    from dist_trainer.train import process
    from dist_trainer.train.engine import build_engine
    from dist_trainer.train.step import train_step

    torch.set_num_threads(1)
    rank = find_rank(os.environ)
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    found = {}
    with mock.patch.object(type(get_accelerator()), "is_fp16_supported", lambda self: True):
        process.join_process_group(rank, process.device_facts())
        for precision, stage in itertools.product(precisions, range(4)):
            trained = Trained(stage=stage, precision=precision, accumulation=2)
            own = folder / str(rank.rank)
            own.mkdir(exist_ok=True)
            engine = build_engine(trained.resolved(own, world_size=rank.world_size), device_index=0)
            mine = slice(rank.rank, rank.rank + 1)
            data = ((inputs[mine], targets[mine]) for inputs, targets in batches())
            found[f"{precision} {stage}"] = [train_step(engine, data, step=step).loss for step in range(1, 11)]
            engine.destroy()
    if rank.rank == 0:
        (folder / "losses.json").write_text(json.dumps(found))
    process.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
