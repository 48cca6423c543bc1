"""One of some ranks that take a checkpoint from engine to engine: FOLDER, and LEGS as JSON.

A leg is {"from": a checkpoint's folder name or null to train three steps instead, "to": name, "stage", "precision",
"offload", "settings", "steps": how many to train after loading}. The first rank writes the losses of all legs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

TESTS = Path(__file__).parents[2]


def main(folder: Path, legs: list[dict[str, Any]]) -> None:
    sys.path.insert(0, str(TESTS))
    import torch
    from deepspeed.accelerator import get_accelerator
    from one_rank import Trained, batches, load, save

    from dist_trainer.checkpoints.index import Made
    from dist_trainer.checkpoints.position import Position, Progress
    from dist_trainer.cluster.rank import find_rank
    from dist_trainer.train import process
    from dist_trainer.train.engine import build_engine
    from dist_trainer.train.step import train_step

    torch.set_num_threads(1)
    rank = find_rank(os.environ)
    losses: dict[str, list[float]] = {}
    with mock.patch.object(type(get_accelerator()), "is_fp16_supported", lambda self: True):
        process.join_process_group(rank, process.device_facts())
        for leg in legs:
            trained = Trained(
                leg.get("optimizer", "AdamW"),
                leg.get("params", {"lr": 0.003, "torch_adam": True}),
                stage=leg["stage"],
                precision=leg["precision"],
                offload=leg.get("offload", False),
                settings=tuple(leg.get("settings", ())),
            )
            own = folder / str(rank.rank)
            own.mkdir(exist_ok=True)
            # Each rank trains on the whole batch, so that a mean over ranks is the same for any number of them.
            engine = build_engine(trained.resolved(own, world_size=rank.world_size, whole_batch=True), device_index=0)
            start = 0
            if leg["from"] is not None:
                load(engine, folder / leg["from"] / "step-8")
                start = engine.global_steps
            data = batches(start=start)
            num_steps = leg.get("steps", 0)
            losses[leg["to"]] = [train_step(engine, data, step=start + step + 1).loss for step in range(num_steps)]
            position = Position(8, {"only": Progress(8)})
            save(engine, folder / leg["to"], position, Made(rank.world_size, {}, {}, {}))
            engine.destroy()
    if rank.rank == 0:
        (folder / f"losses-{rank.world_size}.json").write_text(json.dumps(losses))
    process.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
