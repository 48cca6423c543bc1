"""One of several ranks that trains the minute model for two steps, and saves it as DeepSpeed does: FOLDER STAGE."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from one_rank import Trained, batches

from dist_trainer.cluster.mpi import ask_mpi
from dist_trainer.cluster.rank import find_rank
from dist_trainer.logs import quiet_deepspeed
from dist_trainer.train import process
from dist_trainer.train.engine import build_engine


def main() -> None:
    folder, stage = Path(sys.argv[1]), int(sys.argv[2])
    rank = find_rank(os.environ, ask_mpi)
    with quiet_deepspeed():
        process.join_process_group(rank, process.device_facts())
        own = folder / str(rank.rank)
        own.mkdir()
        engine = build_engine(
            Trained(stage=stage, precision="bf16").resolved(own, world_size=rank.world_size), device_index=0
        )
        for inputs, targets in itertools.islice(batches(), 2):
            engine.backward(engine(inputs[:1], targets[:1]))
            engine.step()
        engine.save_checkpoint(str(folder / "theirs"))
    process.leave(0)


if __name__ == "__main__":
    main()
